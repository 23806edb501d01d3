"""The rollout correction of a learner's train batch."""

import math
from typing import Any

from ray.rllib.core.columns import Columns
from torch import Tensor

from pure_rllib.credit.rollout_correction import (
    DEFAULT_CAPS,
    RolloutCorrection,
    correct_loss,
    mismatch_sums,
)
from pure_rllib.learners.stats import LearnerStats
from pure_rllib.models import columns


def correction_mode(config: Any) -> RolloutCorrection:
    """Returns `rollout_correction`, or what stands for None.

    That is "token_truncated" where generators are known not to be the learner's policy:
    with a lag, and with LoRA on weights of low precision. The learner adds the adapter
    in float32 there, and the merged weights of generators are rounded.
    """
    given: RolloutCorrection | None = config.rollout_correction
    model = config.model_config
    is_rounded = (
        model.get("lora") is not None and model.get("dtype", "float32") != "float32"
    )
    is_apart = config.max_weight_lag or is_rounded
    return given or ("token_truncated" if is_apart else "none")


def correction_cap(config: Any) -> float:
    """Returns `rollout_correction_cap`, or the correction's default for None."""
    default = DEFAULT_CAPS.get(correction_mode(config), math.inf)
    return config.rollout_correction_cap or default


def correct_rollouts(batch: dict[str, Any], config: Any, stats: LearnerStats) -> None:
    """Adds the correction's weights to a train batch and takes responses out of it.

    Comes after the connectors, so that a response that the loss leaves out has still
    counted for baselines and normalisation.

    Args:
        batch: reads `ACTION_LOGP`, `OLD_LOGP` and `LOSS_MASK`; writes
            `CORRECTION_WEIGHT` `[B, T]` and rewrites `LOSS_MASK`. Left as it is where
            `rollout_correction` is "none".
        config: the `LLMConfig`.
        stats: takes what the correction did, over all rows.
    """
    mode = correction_mode(config)
    if mode == "none":
        return
    logps = batch[columns.OLD_LOGP], batch[Columns.ACTION_LOGP]
    stats.add_mismatch(mismatch_sums(*logps, batch[Columns.LOSS_MASK]))
    corrected = correct_loss(
        *logps,
        batch[Columns.LOSS_MASK],
        mode=mode,
        cap=correction_cap(config),
    )
    batch[columns.CORRECTION_WEIGHT] = corrected.weights
    batch[Columns.LOSS_MASK] = corrected.loss_mask
    stats.add_correction(corrected.sums)


def add_first_gaps(stats: LearnerStats, batch: dict[str, Any], logp: Tensor) -> None:
    """Adds what a forward pass before any update says of generator and learner.

    Args:
        stats: takes it.
        batch: a micro-batch of the iteration's first mini-batch.
        logp: `[B, T]` log-probabilities that were computed from it.
    """
    mask, generator_logp = batch[Columns.LOSS_MASK], batch[Columns.ACTION_LOGP]
    stats.add_gap(logp, batch.get(columns.OLD_LOGP, generator_logp), mask)
    if columns.OLD_LOGP not in batch:
        stats.add_mismatch(mismatch_sums(logp, generator_logp, mask))
