"""`pure-rllib train` in a process of its own, parts of which are killed (kill -9)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pure_rllib.cli.folder import read_rollouts
from tests.integration.conftest import TINY_EXPERIMENT, TrainHere

pytestmark = pytest.mark.slow

NUM_PROMPTS, NUM_PROBLEMS = 2, 7
# Checkpoints large enough to be caught half written.
TINY = (
    TINY_EXPERIMENT.replace("training_iteration: 2", "training_iteration: 100000")
    .replace("num_eval_problems: 4", f"num_problems: {NUM_PROBLEMS}")
    .replace(
        "hidden_size: 16, intermediate_size: 16",
        "hidden_size: 256, intermediate_size: 512",
    )
    .replace("num_hidden_layers: 1", "num_hidden_layers: 2")
    .replace("    evaluation: {evaluation_interval: 2}\n", "")
    + "  checkpoint: {every: 1, keep: 2}\n"
    + f"  report: {{rollouts_every: 1, max_groups: {NUM_PROMPTS}}}\n"
)


class Training:
    """A run in a process of its own, in a folder."""

    def __init__(self, place: Path, *words: str):
        self.folder = place / "run"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pure_rllib.cli.main", "train", *words],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until_checkpoint(self, iteration: int) -> None:
        last = self.folder / "checkpoints" / f"iteration_{iteration:06d}"
        while not last.exists() and self.process.poll() is None:
            time.sleep(0.05)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, timeout_s: float = 180.0) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err


def resume(train_here: TrainHere, place: Path, num_more: int) -> int:
    """Resumes the run; returns the iteration that it began after."""
    last = checkpoints(place)[-1]
    status, out, err = train_here(
        place, "--resume", "run", "--iterations", str(last + num_more)
    )
    assert status == 0, out + err
    assert f"after iteration {last}." in out
    return last


def checkpoints(place: Path) -> list[int]:
    paths = (place / "run" / "checkpoints").glob("iteration_*")
    return sorted(int(path.name[-6:]) for path in paths)


def check_prompts(place: Path, num_iterations: int) -> None:
    """Every problem was asked once in each epoch, whatever happened."""
    by_iteration = read_rollouts(place / "run" / "rollouts")
    assert list(by_iteration) == list(range(1, num_iterations + 1))
    asked = [
        group[0].metadata["problem_id"]
        for groups in by_iteration.values()
        for group in groups
    ]
    assert len(asked) == NUM_PROMPTS * num_iterations
    for start in range(0, len(asked), NUM_PROBLEMS):
        epoch = asked[start : start + NUM_PROBLEMS]
        assert len(set(epoch)) == len(epoch)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def test_a_killed_learner_stops_the_run_which_can_be_resumed(
    place: Path, train_here: TrainHere
) -> None:
    training = Training(
        place,
        *("tiny.yaml", "--out", "run"),
        *("--set", "learners.num_learners=2"),
    )
    training.until_checkpoint(2)
    learners = [p for p in training.children() if "_WrappedExecutable" in p.name()]
    assert len(learners) == 2, [p.name() for p in training.children()]
    os.kill(learners[-1].pid, signal.SIGKILL)
    start = time.monotonic()
    status, out, err = training.end()
    assert status == 1, out + err
    assert time.monotonic() - start < 90.0
    assert "error: Learner " in err and "died. The run stops" in err
    assert "Traceback" not in err
    last = checkpoints(place)[-1]
    assert f"Last checkpoint: run/checkpoints/iteration_{last:06d}" in out
    assert "pure-rllib train --resume run" in out
    assert resume(train_here, place, 2) == last
    check_prompts(place, last + 2)


def test_killed_while_it_writes_a_checkpoint_a_run_has_the_one_before(
    place: Path, train_here: TrainHere
) -> None:
    training = Training(place, "tiny.yaml", "--out", "run")
    training.until_checkpoint(2)
    children = training.children()
    folder = place / "run" / "checkpoints"
    while not (half := list(folder.glob(".iteration_*.partial-*"))):
        assert training.process.poll() is None
    training.process.kill()
    assert training.end()[0] == -signal.SIGKILL
    assert half[0].is_dir(), "it was killed while it wrote"
    # Ray's own agents notice late that they are alone.
    for agent in psutil.wait_procs(children, timeout=5)[1]:
        agent.kill()
    last = resume(train_here, place, 4)
    assert half[0].name.startswith(f".iteration_{last + 1:06d}.")
    assert list(folder.glob(".*")) == []
    check_prompts(place, last + 4)
