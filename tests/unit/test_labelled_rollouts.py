"""Rollouts of a run become labelled solutions."""

from pathlib import Path
from typing import Any

import pytest

from pure_rllib.cli.folder import write_rollouts
from pure_rllib.cli.labelled_rollouts import labelled_rollouts
from pure_rllib.reporting.records import ResponseRecord

EXPERIMENT = """\
run-of-a-test:
  run: PURE
  stop: {{training_iteration: 1}}
  config:
    environment: {{env: {env}}}
"""


def record(text: str, num_steps: int) -> ResponseRecord:
    return ResponseRecord(
        group_id="0",
        prompt="3-2+4=?",
        answer="5",
        response_text=text,
        response_tokens=None,
        token_ids=list(range(num_steps)),
        step_spans=[(k, k + 1) for k in range(num_steps)],
    )


def make_run(folder: Path, env: str, records: list[ResponseRecord]) -> str:
    folder.mkdir()
    (folder / "experiment.yaml").write_text(EXPERIMENT.format(env=env))
    if records:
        write_rollouts([records], folder / "rollouts", 1)
    return str(folder)


def test_the_checker_labels_the_steps(tmp_path: Path):
    records = [
        record("3-2=1\n\n1+4=6\n\n\\boxed{6}", 3),
        # Again, and with blank lines: the same response.
        record("3-2=1\n\n\n\n1+4=6\n\n\\boxed{6}\n\n", 3),
        record("", 1),
    ]
    run = make_run(tmp_path / "run", "pure_rllib/Arithmetic-v0", records)
    [solution], num_left_out = labelled_rollouts(run)
    assert solution.labels == (True, False, True)
    assert solution.steps == ("3-2=1", "1+4=6", "\\boxed{6}")
    assert num_left_out == 1


def test_another_labeller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = tmp_path / "judge_of_a_test.py"
    module.write_text(
        "def judge(prompt, steps):\n    return [len(step) - 3.5 for step in steps]\n"
        "def short(prompt, steps):\n    return [1.0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = make_run(tmp_path / "run", "pure_rllib/Math-v0", [record("a\n\nlong", 2)])
    [solution], _ = labelled_rollouts(run, "judge_of_a_test:judge")
    assert solution.labels == (False, True)
    for labeller, message in (
        (None, "has no checker"),
        ("judge_of_a_test", "module:name"),
        ("judge_of_a_test:nobody", "nobody"),
        ("judge_of_a_test:short", "one number per step"),
    ):
        with pytest.raises(ValueError, match=message):
            labelled_rollouts(run, labeller)


@pytest.mark.parametrize("kind", ["no run", "no rollouts"])
def test_folders_without_rollouts(kind: str, tmp_path: Path):
    run: Any = tmp_path / "run"
    if kind == "no rollouts":
        run = make_run(run, "pure_rllib/Arithmetic-v0", [])
    with pytest.raises(FileNotFoundError, match="--rollouts"):
        labelled_rollouts(str(run))
