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


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Runs a command that asks for something wrong; returns what it says."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


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


def test_without_an_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert "pure-rllib train arithmetic" in fails(capsys, "train")


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no_such.yaml" in fails(capsys, "train", "no_such.yaml")


def test_a_wrong_setting_makes_no_folder(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tiny.with_name("out")
    options = ("--out", out, "--set", "training.credit_temperature=0")
    assert "`credit_temperature` (0)" in fails(capsys, "train", tiny, *options)
    assert not out.exists()


def test_a_traceback_is_shown_when_asked_for(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tiny), "--set", "x.y=1", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


def stored_run(folder: Path) -> Path:
    """A folder with what a resume reads before it loads anything."""
    (folder / "checkpoints" / "iteration_000002").mkdir(parents=True)
    (folder / "experiment.yaml").write_text(TINY)
    return folder


def test_a_folder_that_holds_another_run(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored_run(tiny.with_name("run"))
    message = fails(capsys, "train", tiny, "--out", folder)
    assert f"--resume {folder}" in message and "another --out" in message


def test_a_folder_that_holds_other_files(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, "train", tiny, "--out", tiny.parent)
    assert str(tiny.parent) in message and "another --out" in message


@pytest.mark.parametrize("place", ["", "checkpoints/iteration_000002"])
def test_a_changed_configuration_is_listed_at_resume(
    tiny: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored_run(tiny.with_name("run"))
    message = fails(
        capsys,
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


def test_a_changed_file_is_listed_at_resume(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored_run(tiny.with_name("run"))
    tiny.write_text(TINY.replace("exact", "none"))
    message = fails(capsys, "train", tiny, "--resume", folder)
    assert "environment.env_config.process_rewards: 'exact' -> 'none'" in message


@pytest.mark.parametrize("words", [["--resume", "{}/none"], ["--resume", "{}"]])
def test_resuming_what_is_no_run(
    tiny: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(tiny.parent) for word in words]
    assert "experiment.yaml" in fails(capsys, "train", *given)


def test_resuming_a_run_without_a_checkpoint(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored_run(tiny.with_name("run"))
    (folder / "checkpoints" / "iteration_000002").rmdir()
    assert "must have a checkpoint" in fails(capsys, "train", "--resume", folder)


def test_out_beside_resume(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stored_run(tiny.with_name("run"))
    assert "no effect" in fails(capsys, "train", "--resume", folder, "--out", "x")


def test_the_first_interrupt_is_noted_and_the_second_stops() -> None:
    from pure_rllib.cli.train import Interrupt

    before = signal.getsignal(signal.SIGINT)
    told: list[str] = []
    with Interrupt(told.append) as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        assert len(told) == 1 and "checkpoint" in told[0]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_sweep_is_not_resumed_with_another_end(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored_run(tiny.with_name("run"))
    (folder / "tuner.pkl").touch()
    message = fails(capsys, "train", "--resume", folder, "--iterations", 9)
    assert "`stop` ({'training_iteration': 9})" in message
