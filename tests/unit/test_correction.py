"""The rollout correction's settings, and what it does to a train batch."""

from typing import Any

import pytest
import torch
from ray.rllib.core.columns import Columns

from pure_rllib.algorithms import PUREConfig
from pure_rllib.learners.rollout_correction import (
    add_first_gaps,
    correct_rollouts,
    correction_cap,
    correction_mode,
)
from pure_rllib.learners.stats import LearnerStats
from pure_rllib.models import columns


def config() -> PUREConfig:
    return PUREConfig().environment("pure_rllib/Arithmetic-v0")


def batch() -> dict[str, Any]:
    """Ratios 4 and 1 in row a, 1 in row b; old is 2 under the present policy."""
    ratios = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    return {
        Columns.ACTION_LOGP: torch.zeros(2, 2),
        columns.OLD_LOGP: ratios.log(),
        Columns.LOSS_MASK: torch.tensor([[True, True], [True, False]]),
    }


def test_weights_and_their_stats() -> None:
    made, stats = batch(), LearnerStats()
    correct_rollouts(made, PUREConfig().training(max_weight_lag=1), stats)
    assert made[columns.CORRECTION_WEIGHT].tolist() == [[2.0, 1.0], [1.0, 0.0]]
    values = stats.as_dict()
    assert values["sum"]["correction/truncated_share"] == 1.0
    assert values["count"]["correction/truncated_share"] == 3.0
    # Before the cap
    assert values["sum"]["mismatch/ratio_mean"] == pytest.approx(6.0)
    assert values["max"]["mismatch/ratio_max"] == pytest.approx(4.0)


def test_a_masked_response_leaves_the_loss() -> None:
    made, stats = batch(), LearnerStats()
    mode = PUREConfig().training(rollout_correction="sequence_mask")
    correct_rollouts(made, mode, stats)
    assert made[Columns.LOSS_MASK].tolist() == [[False, False], [True, False]]
    values = stats.as_dict()
    assert values["sum"]["correction/masked_share"] == 1.0
    assert values["count"]["correction/masked_share"] == 2.0
    # Also what is masked is measured.
    assert values["count"]["mismatch/ratio_mean"] == 3.0


def test_without_a_correction_the_batch_stays_as_it_is() -> None:
    made, stats = batch(), LearnerStats()
    correct_rollouts(made, PUREConfig(), stats)
    assert made.keys() == batch().keys()
    assert torch.equal(made[Columns.LOSS_MASK], batch()[Columns.LOSS_MASK])
    assert not any(stats.as_dict().values())


def test_the_first_ratio_is_that_of_the_loss() -> None:
    made, stats = batch(), LearnerStats()
    logp = made[columns.OLD_LOGP] + 0.01
    add_first_gaps(stats, made, logp)
    assert stats.as_dict()["max"] == {
        "ratio/first_minibatch_max_deviation": pytest.approx(0.01005, abs=1e-5)
    }
    # Without a correction it is taken to the generator, and measures that as well.
    del made[columns.OLD_LOGP]
    stats = LearnerStats()
    add_first_gaps(stats, made, logp)
    largest = stats.as_dict()["max"]
    assert largest["mismatch/ratio_max"] == pytest.approx(4.0 * 1.01005, abs=1e-4)
    assert largest["ratio/first_minibatch_max_deviation"] == pytest.approx(
        4.0 * 1.01005 - 1.0, abs=1e-4
    )


def test_a_lag_corrects_unless_told_otherwise() -> None:
    made = config()
    assert correction_mode(made) == "none"
    made.training(max_weight_lag=1).env_runners(num_env_runners=1)
    made.validate()
    assert correction_mode(made) == "token_truncated"
    assert correction_cap(made) == 2.0
    made.training(rollout_correction="none").validate()
    assert correction_mode(made) == "none"
    made.training(rollout_correction="sequence_mask").validate()
    assert correction_cap(made) == 1.01
    made.training(rollout_correction_cap=1.2).validate()
    assert correction_cap(made) == 1.2


@pytest.mark.parametrize(
    ("dtype", "lora", "expected"),
    [
        ("bfloat16", {"r": 2}, "token_truncated"),
        ("float32", {"r": 2}, "none"),
        ("bfloat16", None, "none"),
        ("bfloat16", {}, "token_truncated"),  # PEFT's own settings
    ],
)
def test_rounded_adapters_are_corrected_for_unless_told_otherwise(
    dtype: str, lora: dict[str, int] | None, expected: str
) -> None:
    made = config().rl_module(model_config={"dtype": dtype, "lora": lora})
    assert correction_mode(made) == expected
    made.training(rollout_correction="none")
    assert correction_mode(made) == "none"
