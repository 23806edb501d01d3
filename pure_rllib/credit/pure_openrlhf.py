"""The mathematics of PURE's first published code, the `main` branch on OpenRLHF.

Kept apart and bug for bug, for comparison; see docs/credit_assignment.md for what we do
differently and why. B responses, P prompt tokens and A response tokens (padded, prompt
left, response right), S steps (padded).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pure_rllib.credit.tensors import group_sums, suffix_sums


class Advantages(NamedTuple):
    """Rewards and advantages of B responses.

    Attributes:
        rewards: `[B, A]` rewards less baselines at step ends and EOS, before the KL.
        returns: `[B]` sum of all rewards less the KL penalty, from the first token on.
        advantages: `[B, A]` the same from each token on; 0.0 at separators and EOS if
            they are masked.
        outcome_rewards: `[B]` sum of the process rewards, before any baseline.
    """

    rewards: Tensor
    returns: Tensor
    advantages: Tensor
    outcome_rewards: Tensor


def advantages(
    token_rewards: Tensor,
    step_ends: Tensor,
    action_mask: Tensor,
    group_index: Tensor,
    *,
    solved: Tensor | None,
    kl: Tensor | None = None,
    use_process: bool = True,
    baseline: Literal["token", "step"] = "token",
    verifiable_coeff: float = 1.0,
    kl_coeff: float = 0.0,
    mask_separators: bool = True,
) -> Advantages:
    """Rewards to advantages, before batch normalisation.

    The token baseline multiplies by the tokens of a step without its last one but
    divides by all tokens, so a step without further tokens is free of it. The KL
    penalty has no baseline. With masked separators the EOS is masked as well. Groups of
    one give NaN, as the original does.

    Args:
        token_rewards: `[B, A]` transformed process rewards at step ends, 0.0 elsewhere.
        step_ends: `[B, A]` bool, True on the last token of each step.
        action_mask: `[B, A]` bool.
        group_index: `[B]` int64.
        solved: `[B]` 1.0 or 0.0, 1.0 without an answer; None leaves the verifiable
            reward out.
        kl: `[B, A]` KL estimates, 0.0 off mask.
        use_process: False leaves the process rewards out.
        baseline: of the process rewards.
        verifiable_coeff: weighs the verifiable reward after its baseline.
        kl_coeff: weighs the KL penalty.
        mask_separators: whether the advantages at step ends are set to 0.
    """
    num_others = group_sums(torch.ones_like(group_index), group_index) - 1.0
    num_tokens = action_mask.sum(1)
    rewards = torch.zeros_like(token_rewards)
    outcome = rewards.sum(1)
    if use_process:
        outcome = token_rewards.sum(1)
        if baseline == "token":
            rate = _others(outcome, group_index) / _others(num_tokens, group_index)
            counts = _tokens_before_end(step_ends)
        else:
            means = outcome / step_ends.sum(1)
            rate, counts = _others(means, group_index) / num_others, step_ends
        deduction = torch.where(step_ends, rate[:, None] * counts, 0.0)
        rewards = (token_rewards - deduction).to(token_rewards.dtype)
    if solved is not None:
        others = _others(solved - 1.0, group_index) / num_others
        excess = verifiable_coeff * (solved - 1.0 - others)
        last = action_mask.shape[1] - 1 - action_mask.flip(1).long().argmax(1)
        rewards = rewards.scatter_add(1, last[:, None], excess[:, None].to(rewards))
    penalised = rewards if kl is None else rewards - kl_coeff * kl
    returns = suffix_sums(penalised)
    kept = returns.masked_fill(step_ends, 0.0) if mask_separators else returns
    return Advantages(rewards, returns[:, 0], kept, outcome)


def _others(values: Tensor, group_index: Tensor) -> Tensor:
    """`[B]` float64 sum over the group's other rows; 0 in a group of one."""
    return group_sums(values, group_index) - values.double()


def _tokens_before_end(step_ends: Tensor) -> Tensor:
    """`[B, A]` at each step end, the tokens of its step without the end itself."""
    positions = torch.arange(step_ends.shape[1], device=step_ends.device)
    latest = torch.where(step_ends, positions, -1).cummax(dim=1).values
    before = torch.cat([torch.full_like(latest[:, :1], -1), latest[:, :-1]], dim=1)
    return positions - before - 1
