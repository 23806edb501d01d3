"""The command line up to the point where something would be trained."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pure_rllib import __version__
from pure_rllib.cli.experiment import EXAMPLES
from pure_rllib.cli.main import main
from pure_rllib.cli.train import Interrupt
from tests.unit.conftest import Refused

TINY = """
tiny:
  run: PURE
  stop: {training_iteration: 2}
  config:
    environment:
      env: pure_rllib/Arithmetic-v0
      env_config: {process_rewards: exact}
    training: {lr: 1e-3}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def test_help_is_quick_and_says_what_to_do_first() -> None:
    code = (
        "import sys; from pure_rllib.cli.main import main; main([])\n"
        "heavy = {'torch', 'ray', 'numpy', 'transformers', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "pure-rllib train arithmetic" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pure-rllib {__version__}\n"


def test_list_has_a_line_for_every_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {line.split()[0] for line in lines if not line.startswith(" ")}
    assert names == {path.stem for path in EXAMPLES.glob("*.yaml")}
    assert all(len(line) <= 88 for line in lines)


def stored_run(folder: Path) -> Path:
    """A folder with what a resume reads before it loads anything."""
    (folder / "checkpoints" / "iteration_000002").mkdir(parents=True)
    (folder / "experiment.yaml").write_text(TINY)
    return folder


# What `train` was asked for, in a folder that holds `tiny.yaml`, a run without a
# checkpoint, `new`, a run, `run`, and a sweep, `sweep`; and words of the answer.
MISTAKES = [
    ("", ["pure-rllib train arithmetic"]),
    ("no_such.yaml", ["no_such.yaml"]),
    (
        "tiny.yaml --set training.credit_temperature=0",
        ["`training.credit_temperature` (0)"],
    ),
    ("tiny.yaml --out run", ["--resume run", "another --out"]),
    ("tiny.yaml --out .", ["(.)", "another --out"]),
    ("tiny.yaml --out tiny.yaml", ["is a file"]),
    ("--resume none", ["experiment.yaml"]),
    ("--resume .", ["experiment.yaml"]),
    ("--resume new", ["must have a checkpoint"]),
    ("--resume run --out x", ["no effect"]),
    ("--resume sweep --iterations 9", ["`stop` ({'training_iteration': 9})"]),
]


@pytest.mark.parametrize(("given", "words"), MISTAKES)
def test_a_mistake_is_named_and_leaves_nothing(
    tiny: Path,
    given: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
) -> None:
    monkeypatch.chdir(tiny.parent)
    for name in ("new", "run", "sweep"):
        stored_run(Path(name))
    Path("new/checkpoints/iteration_000002").rmdir()
    Path("sweep/tuner.pkl").touch()
    files = set(Path().rglob("*"))
    message = refused("train", *given.split())
    assert [word for word in words if word not in message] == []
    assert set(Path().rglob("*")) == files


def test_a_traceback_is_shown_when_asked_for(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tiny), "--set", "x.y=1", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["", "checkpoints/iteration_000002"])
def test_a_changed_configuration_is_listed_at_resume(
    tiny: Path, place: str, refused: Refused
) -> None:
    folder = stored_run(tiny.with_name("run"))
    message = refused(
        "train",
        *("--resume", folder / place),
        *("--set", "training.lr=5e-4", "--set", "env_runners.group_size=4"),
        *("--seed", 1, "--iterations", 9),
    )
    changes = [line.strip() for line in message.splitlines() if line.startswith("  ")]
    assert changes == [
        "training.lr: 0.001 -> 0.0005",
        "env_runners.group_size: not set -> 4",
        "debugging.seed: not set -> 1",
    ]
    tiny.write_text(TINY.replace("exact", "none"))
    message = refused("train", tiny, "--resume", folder)
    assert "environment.env_config.process_rewards: 'exact' -> 'none'" in message


def test_the_first_interrupt_is_noted_and_the_second_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    told: list[str] = []
    with Interrupt(told.append) as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        assert len(told) == 1 and "checkpoint" in told[0]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
