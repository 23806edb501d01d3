"""The embedded default reaches what the README says it reaches."""

import json
from pathlib import Path

import pytest

from pure_rllib.cli.main import main


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_arithmetic_learns(tmp_path: Path) -> None:
    # Two seeds of three reach more; the bounds leave room for another machine's
    # rounding, and none for a run that learns nothing: it starts from .62 and .30.
    out = tmp_path / "run"
    assert main(["train", "arithmetic", "--seed", "0", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    before, after = summary["before"], summary["after"]
    assert before["evaluation/sampled_accuracy"] < 0.4
    assert after["evaluation/greedy_accuracy"] >= 0.9
    assert after["evaluation/sampled_accuracy"] >= 0.75
