"""PPO's clipped loss with a stated denominator. B responses, T response tokens."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pure_rllib.credit.tensors import at_least_float32

LossAggregation = Literal["token_mean", "sequence_mean", "fixed_length"]
LOSS_AGGREGATIONS: tuple[LossAggregation, ...] = get_args(LossAggregation)
RatioLevel = Literal["token", "sequence"]


def loss_denominator(
    loss_mask: Tensor,
    aggregation: LossAggregation,
    max_response_tokens: int | None = None,
) -> Tensor:
    """Counts what a sum of losses is divided by.

    Sum this over all learners and micro-batches of an update and hand the sum to the
    loss: dividing by each micro-batch's own count would weigh tokens of a micro-batch
    with few tokens more.

    Args:
        loss_mask: `[B, T]` bool, True on tokens that the loss uses.
        aggregation: "token_mean": tokens; "sequence_mean": responses with a token;
            "fixed_length": those times `max_response_tokens`.
        max_response_tokens: the token budget; read by "fixed_length" only.

    Returns:
        Scalar float64 tensor.
    """
    if aggregation == "token_mean":
        return loss_mask.sum().double()
    num_responses = loss_mask.any(dim=1).sum().double()
    if aggregation == "sequence_mean":
        return num_responses
    if aggregation != "fixed_length":
        raise ValueError(
            f"`loss_aggregation` ({aggregation!r}) must be one of "
            f"{', '.join(LOSS_AGGREGATIONS)}."
        )
    if max_response_tokens is None:
        raise ValueError(
            "`max_response_tokens` (None) must be given: "
            '`loss_aggregation` "fixed_length" divides every response by it.'
        )
    return num_responses * max_response_tokens


@dataclass(frozen=True, slots=True)
class LossScale:
    """How the losses of tokens are added up over an optimiser step.

    Attributes:
        aggregation: see `loss_denominator`.
        denominator: of the whole step: summed over all learners and micro-batches.
        max_response_tokens: the token budget; read by "fixed_length" only.
    """

    aggregation: LossAggregation
    denominator: float
    max_response_tokens: int | None = None

    def aggregate(self, token_losses: Tensor, loss_mask: Tensor) -> Tensor:
        """Adds up losses to a micro-batch's share of the step's mean.

        Args:
            token_losses: `[B, T]`; ignored where the mask is False, gradient included.
            loss_mask: `[B, T]` bool, True on tokens that the loss uses.

        Returns:
            Scalar; 0 with a denominator of 0.
        """
        losses = torch.where(loss_mask, token_losses, 0.0)
        if self.aggregation == "sequence_mean":
            losses = losses / loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
        return losses.sum() / max(self.denominator, 1.0)

    def share(self, loss_mask: Tensor) -> float:
        """Returns these rows' share of the step, in [0, 1].

        For a term of a loss that is not one of tokens, such as a weight's norm: times
        this, it counts once per step, however the step is cut.
        """
        own = loss_denominator(loss_mask, self.aggregation, self.max_response_tokens)
        return float(own) / max(self.denominator, 1.0)


def clipped_policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio_level: RatioLevel = "token",
    weights: Tensor | None = None,
    scale: LossScale | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7), to be minimised.

    Args:
        logp: `[B, T]` log-probabilities under the policy, with gradient.
        old_logp: `[B, T]` log-probabilities at sampling, or before the first update.
        advantages: `[B, T]`, no gradient.
        loss_mask: `[B, T]` bool, True on tokens that the loss uses; whatever stands
            elsewhere in the other arguments is ignored, NaN included.
        clip_low: the ratio's lower bound is 1 - clip_low.
        clip_high: the ratio's upper bound is 1 + clip_high.
        dual_clip: c > 1: a token's loss is at most -c times its advantage where that is
            negative (arXiv 1912.09729, eq. 5); None: no such limit.
        ratio_level: see `policy_ratio`.
        weights: `[B, T]` factors of the tokens' losses, no gradient; None: all 1. The
            denominator is not changed by them.
        scale: how tokens are added up; None: their mean over these rows alone.

    Returns:
        The scalar loss, and detached scalars over the loss tokens of these rows, which
        can be added over micro-batches: `num_tokens`, `clip_low_count` and
        `clip_high_count` (tokens whose gradient is cut at that bound), `ratio_sum`,
        `kl_k1_sum` and `kl_k3_sum` (estimates of the KL from the policy at sampling);
        and `ratio_max`, over which the maximum is to be taken (0.0 without tokens).
    """
    change = at_least_float32(logp) - at_least_float32(old_logp)
    change = torch.where(loss_mask, change, 0.0)
    advantages = torch.where(loss_mask, at_least_float32(advantages), 0.0)
    # With a dual clip the loss is constant for larger ratios; an infinite one would
    # make its gradient NaN, not 0.
    largest = math.e * max(dual_clip, 1.0 + clip_high) if dual_clip else math.inf
    ratio = policy_ratio(change, loss_mask, ratio_level, largest)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    token_losses = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        limit = -dual_clip * advantages
        token_losses = torch.where(
            advantages < 0, torch.minimum(token_losses, limit), token_losses
        )
    if weights is not None:
        token_losses = token_losses * weights
    scale = scale or LossScale("token_mean", float(loss_mask.sum()))
    loss = scale.aggregate(token_losses, loss_mask)
    with torch.no_grad():
        is_clipped = (clipped > unclipped) & loss_mask
        masked_ratio = ratio.masked_fill(~loss_mask, 0.0)
        stats = {
            "num_tokens": loss_mask.sum().to(ratio.dtype),
            "clip_low_count": (is_clipped & (advantages < 0)).sum().to(ratio.dtype),
            "clip_high_count": (is_clipped & (advantages > 0)).sum().to(ratio.dtype),
            "ratio_sum": masked_ratio.sum(),
            "ratio_max": masked_ratio.max() if ratio.numel() else ratio.new_zeros(()),
            # `change` is 0 off mask and both estimates of 0 are 0.
            "kl_k1_sum": -change.sum(),
            "kl_k3_sum": (torch.expm1(change) - change).sum(),
        }
    return loss, stats


def policy_ratio(
    change: Tensor, loss_mask: Tensor, level: RatioLevel, largest: float = math.inf
) -> Tensor:
    """The policy's probability over the old policy's, at each token.

    Args:
        change: `[B, T]` logp - old_logp, 0.0 off mask.
        loss_mask: `[B, T]` bool.
        level: "token": exp(change). "sequence": the geometric mean of a response's
            ratios at each of its tokens, with the gradient through the token's own
            log-probability (GSPO-token, arXiv 2507.18071, eq. 13 and 14).
        largest: what larger ratios are set to, without a gradient.

    Returns:
        `[B, T]` ratios.
    """
    bound = math.log(largest)
    if level == "token":
        return change.clamp(max=bound).exp()
    counts = loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (change.sum(dim=1, keepdim=True) / counts).detach()
    return (mean + change - change.detach()).clamp(max=bound).exp()
