"""`pure-rllib train` for real, with a tiny random policy.

In processes of its own where what it computes is compared with another run's, or where
it is interrupted; else in this one, which has imported everything already.
"""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from pure_rllib.cli.folder import read_rollouts
from tests.integration.conftest import TINY_EXPERIMENT, TrainHere

pytestmark = pytest.mark.slow

# Seven problems, two per iteration: epochs end inside the run.
TINY = (
    TINY_EXPERIMENT.replace("training_iteration: 2", "training_iteration: 6")
    .replace("num_eval_problems: 4", "num_problems: 7, num_eval_problems: 6")
    .replace("lr: 1e-3", "lr: 1e-2, lr_warmup_updates: 3")
    .replace("evaluation_interval: 2", "evaluation_interval: 4")
    + "  checkpoint: {every: 2, keep: 2}\n"
    + "  report: {rollouts_every: 2, max_groups: 2}\n"
)
COMMAND = [sys.executable, "-m", "pure_rllib.cli.main", "train"]
# Clocks differ between any two runs.
TIMES = ("seconds/", "throughput/", "time_")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def rows_of(folder: Path) -> list[dict[str, float]]:
    """The metrics of `progress.csv` that a repetition must have as well."""
    with (folder / "progress.csv").open() as stream:
        return [
            {k: float(v) for k, v in row.items() if not k.startswith(TIMES)}
            for row in csv.DictReader(stream)
        ]


def differences(
    first: list[dict[str, float]], second: list[dict[str, float]]
) -> list[tuple[int, str, float, float]]:
    """Iteration, metric and values of everything that is not equal bit by bit."""
    return [
        (index, key, a[key], b[key])
        for index, (a, b) in enumerate(zip(first, second, strict=True))
        for key in a
        if a[key] != b[key] and not (math.isnan(a[key]) and math.isnan(b[key]))
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> tuple[Path, str]:
    """A run that was never stopped, and what it said."""
    done = run(place, "tiny.yaml", "--out", "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "whole", done.stdout + done.stderr


def test_a_run_says_where_everything_is(whole: tuple[Path, str]) -> None:
    folder, said = whole
    assert "accuracy, greedy" in said and "6/6" in said
    for read in ("problems  ", "first prompt\n  | ", "responses end   at "):
        assert read in said
    for name in (
        "learning_curves.png",
        "rollouts.html",
        "policy",
        "checkpoints/iteration_000006",
        "progress.csv",
    ):
        assert f"whole/{name}" in said
        assert (folder / name).exists()
    assert not [
        word for word in ("accelerator", "Deprecat", "Traceback") if word in said
    ]


def test_a_run_leaves_what_it_promises(whole: tuple[Path, str]) -> None:
    folder, _ = whole
    rows = rows_of(folder)
    assert [row["training_iteration"] for row in rows] == list(range(7))
    evaluated = [not math.isnan(row["evaluation/greedy_accuracy"]) for row in rows]
    # Before, by the interval, and at the end.
    assert [i for i, was in enumerate(evaluated) if was] == [0, 4, 6]
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == [
        "iteration_000004",
        "iteration_000006",
    ]
    rollouts = read_rollouts(folder / "rollouts")
    assert list(rollouts) == [1, 2, 4, 6]
    assert all(r.advantages is not None for g in rollouts[6] for r in g)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["iterations"] == 6
    assert (
        summary["after"]["evaluation/greedy_accuracy"]
        == rows[6]["evaluation/greedy_accuracy"]
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["env_runners"]["group_size"] == 4
    assert list(folder.glob("events.out.tfevents.*"))
    AutoModelForCausalLM.from_pretrained(folder / "policy")


def test_a_resumed_run_has_the_metrics_of_one_never_stopped(
    place: Path, whole: tuple[Path, str]
) -> None:
    """From an older checkpoint, what came after it is dropped and made again."""
    before = rows_of(whole[0])
    checkpoint = whole[0] / "checkpoints" / "iteration_000004"
    again = run(place, "tiny.yaml", "--resume", str(checkpoint))
    assert again.returncode == 0, again.stderr
    assert differences(before, rows_of(whole[0])) == []


def test_interrupting_writes_a_checkpoint_and_says_how_to_go_on(
    place: Path, train_here: TrainHere
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "tiny.yaml", "--out", "cut", "--iterations", "100000"],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A group of its own, all of which gets the signal: as from a terminal.
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "3/100000" in line:
            os.killpg(process.pid, signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    assert "pure-rllib train --resume cut" in out
    last = int(sorted((place / "cut" / "checkpoints").iterdir())[-1].name[-6:])
    assert f"iteration_{last:06d}" in out
    rows = rows_of(place / "cut")
    assert [row["training_iteration"] for row in rows] == list(range(last + 1))
    status, _, err = train_here(place, "--resume", "cut", "--iterations", str(last + 1))
    assert status == 0, err
    assert len(rows_of(place / "cut")) == last + 2


def test_a_loss_that_is_not_a_number_stops_with_the_last_checkpoint(
    place: Path, train_here: TrainHere
) -> None:
    status, out, err = train_here(
        place,
        *("tiny.yaml", "--out", "nan", "--set", "checkpoint.every=1"),
        *("--set", "training.lr=1e25", "--set", "training.lr_warmup_updates=0"),
    )
    assert status == 1
    assert "error: " in err and "Traceback" not in err
    (checkpoint, *_) = (place / "nan" / "checkpoints").iterdir()
    assert f"Last checkpoint: nan/checkpoints/{checkpoint.name}" in out
    assert "pure-rllib train --resume nan" in out


def test_a_wrong_combination_fails_before_a_model_loads(
    place: Path, train_here: TrainHere
) -> None:
    status, _, err = train_here(
        place,
        *("tiny.yaml", "--out", "none"),
        *("--set", "environment.env_config.process_rewards=none"),
    )
    assert status == 2
    assert "`process_reward_coeff` (1.0) must be 0" in err
    assert "Traceback" not in err
    assert not (place / "none").exists()


def test_the_monitor_of_reward_hacking_ends_a_run(
    tmp_path: Path, train_here: TrainHere
) -> None:
    """With thresholds so small that any change of the reward is an alarm."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    thresholds: dict[str, float] = {"window": 2, "memory": 4}
    thresholds |= dict.fromkeys(("noise", "no_answer_rise", "repetition_rise"), 1e-9)
    status, out, err = train_here(
        tmp_path,
        *("tiny.yaml", "--out", "out"),
        *("--set", "reporting.hacking_monitor=stop"),
        *("--set", f"reporting.hacking_thresholds={json.dumps(thresholds)}"),
    )
    assert status == 0, err
    assert "Reward hacking? stopping the trial after iteration 4." in out
    with (tmp_path / "out" / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["training_iteration"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["hacking/alarm"] for row in rows[1:]] == ["0.0", "0.0", "0.0", "1.0"]
