"""Weights & Biases for real, without a network."""

import json
from pathlib import Path

import pytest

from pure_rllib.cli.main import main
from pure_rllib.reporting.rollout_table import COLUMNS

pytestmark = pytest.mark.slow

TINY = """
tiny:
  run: PURE
  stop: {training_iteration: 2}
  report: {max_groups: 2}
  wandb: {project: pure-rllib-test, mode: offline}
  config:
    environment:
      env: pure_rllib/Arithmetic-v0
      env_config:
        {process_rewards: exact, max_response_tokens: 16, num_eval_problems: 4}
    env_runners: {num_prompts: 2, group_size: 4}
    rl_module:
      model_config:
        model:
          {model_type: qwen2, vocab_size: 32, hidden_size: 16, intermediate_size: 16,
           num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1,
           max_position_embeddings: 128, tie_word_embeddings: true}
    debugging: {seed: 0}
"""


def test_metrics_and_a_table_of_rollouts_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: not run")
    # Set by the run; put back by the fixture.
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    assert main(["train", str(path), "--out", str(tmp_path / "out")]) == 0

    (run,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    tables = [json.loads(f.read_text()) for f in run.rglob("*.table.json")]
    assert len(tables) == 2
    for table in tables:
        assert table["columns"] == list(COLUMNS)
        assert len(table["data"]) == 8
    (log,) = run.glob("*.wandb")
    logged = log.read_bytes()
    for name in (b"reward/total", b"response/tokens", b"rollouts"):
        assert name in logged
