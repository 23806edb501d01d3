"""RLlib's learning-rate schedules, through a checkpoint."""

from pathlib import Path

import pytest

from pure_rllib.algorithms import PURE, PUREConfig


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_learning_rate(
    tiny_config: PUREConfig, tmp_path: Path
) -> None:
    tiny_config.training(lr=[[0, 1.0e-3], [1000, 0.0]])
    algo = tiny_config.build_algo()
    try:
        first = algo.train()
        path = algo.save_to_path(tmp_path / "checkpoint")
        through = algo.train()
    finally:
        algo.stop()
    restored = PURE.from_checkpoint(path)
    try:
        resumed = restored.train()
    finally:
        restored.stop()
    assert first["learning_rate"] == pytest.approx(1.0e-3)
    # By then the first iteration's tokens have been sampled, of the 1,000 to zero.
    num_tokens = first["num_env_steps_sampled_lifetime"]
    assert through["learning_rate"] == pytest.approx(1.0e-3 * (1 - num_tokens / 1000))
    assert resumed["learning_rate"] == through["learning_rate"]
