"""The mathematics of PURE's second published code, the `verl` branch.

Kept apart and bug for bug, for comparison; see docs/credit_assignment.md for what we do
differently and why. B responses, P prompt tokens, L response tokens: always the token
budget, whatever was sampled. S steps (padded).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pure_rllib.credit.normalize import advantage_moments, normalize_advantages
from pure_rllib.credit.tensors import group_sums, suffix_sums


class Advantages(NamedTuple):
    """`[B, L]` returns less baseline, and the same normalised if asked for."""

    advantages: Tensor
    returns: Tensor


def token_scores(
    verifiable_scores: Tensor, process_scores: Tensor | None, coeff: float | None
) -> Tensor:
    """Adds both kinds of scores; without a PRM the coefficient is not applied.

    Args:
        verifiable_scores: `[B, L]` 1.0 or 0.0 on the last valid token.
        process_scores: `[B, L]` at step ends, or None without a PRM.
        coeff: of the verifiable reward; None is 1.

    Returns:
        `[B, L]` scores.
    """
    if process_scores is None:
        return verifiable_scores
    return (1.0 if coeff is None else coeff) * verifiable_scores + process_scores


def apply_kl_penalty(
    scores: Tensor, kl: Tensor | None, mask: Tensor, kl_coeff: float
) -> tuple[Tensor, float]:
    """Takes the KL penalty off the scores, inside returns and baseline.

    Args:
        scores: `[B, L]` token scores.
        kl: `[B, L]` KL estimates, None without a reference policy.
        mask: `[B, L]` bool.
        kl_coeff: weighs the penalty.

    Returns:
        `[B, L]` token rewards, and the mean over responses of their mean KL per token.
    """
    if kl is None:
        return scores, 0.0
    kl = kl * mask
    return scores - kl_coeff * kl, float((kl.sum(1) / mask.sum(1)).mean())


def rloo_advantages(
    token_rewards: Tensor,
    mask: Tensor,
    group_index: Tensor,
    *,
    aggregate: Literal["sum", "min"] = "sum",
    normalize: bool = True,
) -> Advantages:
    """Token rewards to advantages.

    The baseline is the others' summed returns over (group size - 1) x L, so a reward
    counts once for every token before it. "min" takes the minimum over all later buffer
    positions, zeros of ordinary tokens and padding included: no return is above 0
    but a full buffer's. Groups of one give NaN, as the original does.

    Args:
        token_rewards: `[B, L]`; ignored where the mask is False.
        mask: `[B, L]` bool.
        group_index: `[B]` int64.
        aggregate: "sum" or "min" over the rewards from each token on.
        normalize: whether advantages are normalised over all valid tokens.

    Raises:
        ValueError: if one valid token is to be normalised.
    """
    rewards = token_rewards * mask
    if aggregate == "sum":
        returns = suffix_sums(rewards)
    else:
        returns = rewards.flip(1).cummin(dim=1).values.flip(1)
    num_others = group_sums(torch.ones_like(group_index), group_index) - 1.0
    totals = returns.sum(1)
    others = group_sums(totals, group_index) - totals.double()
    baseline = others / (num_others * rewards.shape[1])
    returns = (returns - baseline[:, None].to(returns.dtype)) * mask
    if not normalize:
        return Advantages(returns, returns)
    moments = advantage_moments(returns, mask, "pure_verl")
    normalized = normalize_advantages(returns, mask, moments, "pure_verl")
    return Advantages(normalized, returns)
