"""Weights & Biases for real, without a network."""

import json
from pathlib import Path

import pytest

from pure_rllib.cli.main import main
from pure_rllib.reporting.rollouts import TABLE_COLUMNS
from tests.integration.conftest import TINY_EXPERIMENT

pytestmark = pytest.mark.slow

OPTIONS = """
  report: {max_groups: 2}
  wandb: {project: pure-rllib-test, mode: offline}
"""


def test_metrics_and_a_table_of_rollouts_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: not run")
    # Set by the run; put back by the fixture.
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_EXPERIMENT + OPTIONS)
    assert main(["train", str(path), "--out", str(tmp_path / "out")]) == 0

    (run,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    tables = [json.loads(f.read_text()) for f in run.rglob("*.table.json")]
    assert len(tables) == 2
    for table in tables:
        assert table["columns"] == list(TABLE_COLUMNS)
        assert len(table["data"]) == 8
    (log,) = run.glob("*.wandb")
    logged = log.read_bytes()
    for name in (b"reward/total", b"response/tokens", b"rollouts"):
        assert name in logged
