"""Correction for a generator that is not quite the policy that learns.

A generator computes log-probabilities by other kernels, in another precision, or with
weights that are one version old. B responses, T response tokens; per token

    ratio = exp(old_logp - generator_logp)

with `old_logp` under the learner's weights before an iteration's first update. PPO then
clips the ratio of the current to the old policy, and the loss of a token is multiplied
by a weight made of the ratio above (the decoupled objective of arXiv 2110.00641).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pure_rllib.credit.tensors import at_least_float32

RolloutCorrection = Literal["none", "token_truncated", "sequence_mask"]
ROLLOUT_CORRECTIONS: tuple[RolloutCorrection, ...] = get_args(RolloutCorrection)
DEFAULT_CAPS: dict[str, float] = {"token_truncated": 2.0, "sequence_mask": 1.01}
"""`cap` of each correction: 2.0 and 1.01 are what verl, TRL and SkyRL start from."""

# exp(20) is far over any cap: the bound only keeps sums finite.
_LOG_RATIO_BOUND = 20.0


@dataclass(frozen=True, slots=True)
class CorrectedLoss:
    """What a correction does to the loss; nothing here has a gradient.

    Attributes:
        weights: `[B, T]` >= 0, factors of the tokens' losses; 0.0 off `loss_mask`.
        loss_mask: `[B, T]` bool, the mask without the responses that were left out.
        sums: scalars that can be added over learners: `num_tokens`, `weight_sum`,
            `num_truncated` (tokens cut to the cap), `num_responses` and `num_masked`
            (responses left out), all over the mask as it was before.
    """

    weights: Tensor
    loss_mask: Tensor
    sums: dict[str, Tensor]


def correct_loss(
    old_logp: Tensor,
    generator_logp: Tensor,
    loss_mask: Tensor,
    *,
    mode: RolloutCorrection,
    cap: float,
) -> CorrectedLoss:
    """Weighs tokens or leaves out responses by how far generator and learner are apart.

    Args:
        old_logp: `[B, T]` log-probabilities under the learner's weights before any
            update of the iteration.
        generator_logp: `[B, T]` those that the generator sampled with.
        loss_mask: `[B, T]` bool, True on tokens that the loss uses; whatever stands
            elsewhere in the other arguments is ignored, NaN included.
        mode: "token_truncated": min(ratio, cap) per token, truncated importance
            sampling (Ionides 2008, "Truncated importance sampling"; Yao et al. 2025,
            "Your efficient RL framework secretly brings you off-policy RL training").
            The tail's variance is given up for a bias that pulls towards the generator.
            "sequence_mask": weight 1 for responses whose geometric mean of the ratio is
            in [1 / cap, cap], and no loss for the others (Liu et al. 2025, "When speed
            kills stability"). The mean does not grow with T, so that long responses
            are not left out for being long.
            "none": weight 1 everywhere.
        cap: >= 1, and > 1 for "sequence_mask"; ignored by "none".

    Returns:
        The weights and the mask. A response that is left out leaves the loss's
        denominator too, as `mask_truncated` does it: it is treated as one that was
        never sampled, and the update is the mean over the others. If it stayed, how
        far generator and learner are apart would scale the learning rate.
    """
    d = _log_ratio(old_logp, generator_logp, loss_mask)
    kept, num_truncated = loss_mask, d.new_zeros(())
    if mode == "token_truncated":
        bound = math.log(cap)
        weights = d.clamp(max=bound).exp()
        num_truncated = (d > bound).sum()
    elif mode == "sequence_mask":
        # Asked this way round, NaN is kept: the loss shows it, and the update stops.
        too_far = sequence_log_ratio(d, loss_mask).abs() > math.log(cap)
        kept = loss_mask & ~too_far[:, None]
        weights = torch.ones_like(d)
    elif mode == "none":
        weights = torch.ones_like(d)
    else:
        raise ValueError(
            f"`rollout_correction` ({mode!r}) must be one of "
            f"{', '.join(ROLLOUT_CORRECTIONS)}."
        )
    weights = weights.masked_fill(~kept, 0.0)
    num_responses = loss_mask.any(dim=1).sum()
    return CorrectedLoss(
        weights=weights,
        loss_mask=kept,
        sums={
            "num_tokens": loss_mask.sum(),
            "weight_sum": weights.sum(),
            "num_truncated": num_truncated,
            "num_responses": num_responses,
            "num_masked": num_responses - kept.any(dim=1).sum(),
        },
    )


def sequence_log_ratio(log_ratio: Tensor, loss_mask: Tensor) -> Tensor:
    """Mean of a response's log-ratios: the logarithm of their geometric mean.

    Args:
        log_ratio: `[B, T]`, 0.0 off mask.
        loss_mask: `[B, T]` bool.

    Returns:
        `[B]`; 0.0 for a response without a token.
    """
    return log_ratio.sum(dim=1) / loss_mask.sum(dim=1).clamp(min=1)


def mismatch_sums(
    old_logp: Tensor, generator_logp: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """Sums from which the distance of learner and generator is computed.

    Args:
        old_logp: `[B, T]`, see `correct_loss`.
        generator_logp: `[B, T]`, likewise.
        mask: `[B, T]` bool, True on tokens that count.

    Returns:
        Detached scalars over those tokens: `num_tokens`, `ratio_sum`,
        `ratio_square_sum` and `kl_sum` (k3 estimate of the KL from the generator to the
        learner: ratio - 1 - log(ratio), >= 0), which can be added over learners; and
        `ratio_max`, over which the maximum is to be taken (0.0 without tokens).
        The effective sample size is ratio_sum^2 / (num_tokens * ratio_square_sum).
    """
    d = _log_ratio(old_logp, generator_logp, mask).detach()
    ratio = d.exp().masked_fill(~mask, 0.0)
    return {
        "num_tokens": mask.sum(),
        "ratio_sum": ratio.sum(),
        "ratio_square_sum": ratio.square().sum(),
        # 0 off mask, where d is 0.
        "kl_sum": (torch.expm1(d) - d).sum(),
        "ratio_max": ratio.max() if ratio.numel() else ratio.new_zeros(()),
    }


def _log_ratio(old_logp: Tensor, generator_logp: Tensor, mask: Tensor) -> Tensor:
    """`[B, T]` log-ratio in [-20, 20]; 0.0 off mask, whatever stands there."""
    d = at_least_float32(old_logp.detach()) - at_least_float32(generator_logp.detach())
    return torch.where(mask, d, 0.0).clamp(-_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
