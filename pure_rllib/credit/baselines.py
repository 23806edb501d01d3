"""Leave-one-out baselines: what the other responses to the same prompt earned.

B responses, T response tokens, S steps (padded), G responses in a group; groups may
differ in size and their rows may come in any order. R_j is the sum of the credits of
response j, n_j the number of tokens of its steps, S_j the number of its steps.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from pure_rllib.credit.returns import spread_to_tokens
from pure_rllib.credit.steps import step_lengths
from pure_rllib.credit.tensors import at_least_float32, group_sums, suffix_sums

Baseline = Literal["token", "step", "length", "response"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
GroupBaseline = Literal["leave_one_out", "mean"]


def step_level_baseline(
    name: Literal["token", "step", "response"],
    step_credits: Tensor,
    step_mask: Tensor,
    step_ends: Tensor,
    group_index: Tensor,
    *,
    gamma: float = 1.0,
) -> Tensor:
    """The baselines that are equal for all tokens of a step, once per step.

    Args:
        name: "token": the others' mean reward per token, b_i = (sum over j != i of
            R_j) / (sum over j != i of n_j), once for every token of the steps to come.
            The form that PURE's authors trained with.
            "step": the others' mean reward per step, the mean over j != i of
            R_j / S_j, once for each step to come. Kept for comparison: of two
            responses with the same minimum the one with fewer steps pays less, so the
            policy stops separating.
            "response": the others' mean return of a whole response, once (RLOO, arXiv
            2402.14740). Nothing is taken off for length, and the sum form's reward for
            padding shows.
        step_credits: `[B, S]` credits (see `returns.step_credits`), 0.0 off mask.
        step_mask: `[B, S]` bool, True on real steps.
        step_ends: `[B, S]` int64 positions of the steps' last tokens, rising.
        group_index: `[B]` int64, equal for responses to one prompt.
        gamma: discount per step, as in the returns.

    Returns:
        `[B, S]` baseline of the tokens of each step; 0.0 off mask.

    Raises:
        ValueError: if a group has one response only.
    """
    num_others = _require_siblings(group_index)
    if name == "response":
        total = suffix_sums(step_credits.double(), gamma)[:, 0]
        rate = _others_sum(total, group_index) / num_others
        return _like_returns(rate[:, None] * step_mask, step_credits)
    if name == "token":
        counts = step_lengths(step_ends, step_mask)
        rate = _others_sum(step_credits.sum(1), group_index) / _others_sum(
            counts.sum(1), group_index
        )
    else:
        counts = step_mask.long()
        mean_credit = step_credits.double().sum(1) / counts.sum(1).clamp(min=1)
        rate = _others_sum(mean_credit, group_index) / num_others
    to_come = suffix_sums(rate[:, None] * counts, gamma)
    return _like_returns(to_come.masked_fill(~step_mask, 0.0), step_credits)


def length_baseline(
    step_credits: Tensor,
    step_mask: Tensor,
    step_ends: Tensor,
    num_tokens: int,
    group_index: Tensor,
    *,
    max_response_tokens: int,
    gamma: float = 1.0,
) -> Tensor:
    """The others' mean reward over the longest possible response, per token to come.

    The mean over j != i of R_j / max_response_tokens, times the tokens from t to the
    last step's end (PURE, eq. 6, with its N).

    Args:
        step_credits: as in `step_level_baseline`, like all that follow.
        step_mask: `[B, S]`.
        step_ends: `[B, S]`.
        num_tokens: T.
        group_index: `[B]`.
        max_response_tokens: the token budget N, >= 1.
        gamma: discount per step.

    Returns:
        `[B, T]` baseline, falling along the response; 0.0 after the last step's end.
    """
    num_others = _require_siblings(group_index)
    rate = _others_sum(step_credits.sum(1), group_index) / (
        num_others * max_response_tokens
    )
    lengths = step_lengths(step_ends, step_mask).double()
    # Within its own step a token is discounted by nothing, so what lies before it there
    # is taken off the count of the whole step.
    at_start = spread_to_tokens(
        suffix_sums(lengths, gamma), step_ends, step_mask, num_tokens
    )
    starts = spread_to_tokens(step_ends + 1 - lengths, step_ends, step_mask, num_tokens)
    in_step = _in_some_step(step_ends, step_mask, num_tokens)
    positions = torch.arange(num_tokens, device=step_ends.device)
    tokens_to_come = (at_start - (positions - starts)).masked_fill(~in_step, 0.0)
    return _like_returns(rate[:, None] * tokens_to_come, step_credits)


def process_advantages(
    step_credits: Tensor,
    step_mask: Tensor,
    step_ends: Tensor,
    num_tokens: int,
    group_index: Tensor,
    *,
    baseline: Baseline,
    gamma: float = 1.0,
    max_response_tokens: int | None = None,
) -> Tensor:
    """The return of each token less its baseline, for the process rewards.

    Where the baseline is equal for all tokens of a step, it is taken off per step, and
    only the difference is spread over tokens.

    Args:
        step_credits: as in `step_level_baseline`, like all that follow.
        step_mask: `[B, S]`.
        step_ends: `[B, S]`.
        num_tokens: T.
        group_index: `[B]`.
        baseline: "token", "step", "length" or "response".
        gamma: discount per step.
        max_response_tokens: the token budget; read by "length" only.

    Returns:
        `[B, T]` advantages; 0.0 after the last step's end.

    Raises:
        ValueError: the baseline is unknown, lacks the budget, or has one response only.
    """
    args = (step_credits, step_mask, step_ends)
    if baseline not in BASELINES:
        raise ValueError(
            f"`baseline` ({baseline!r}) must be one of {', '.join(BASELINES)}."
        )
    returns = suffix_sums(step_credits, gamma)
    if baseline != "length":
        excess = returns - step_level_baseline(
            baseline, *args, group_index, gamma=gamma
        )
        return spread_to_tokens(excess, step_ends, step_mask, num_tokens)
    if max_response_tokens is None:
        raise ValueError(
            '`max_response_tokens` (None) must be given: `baseline` "length" divides '
            "by it."
        )
    return spread_to_tokens(returns, step_ends, step_mask, num_tokens) - (
        length_baseline(
            *args,
            num_tokens,
            group_index,
            max_response_tokens=max_response_tokens,
            gamma=gamma,
        )
    )


def verifiable_advantages(verifiable_rewards: Tensor, group_index: Tensor) -> Tensor:
    """The verifiable reward less the mean of the others that could be verified.

    Args:
        verifiable_rewards: `[B]`, NaN where there is none (no gold answer).
        group_index: `[B]` int64, equal for responses to one prompt.

    Returns:
        `[B]` advantages; 0.0 for a response without a verifiable reward, and in groups
        where fewer than two have one.
    """
    rewards = at_least_float32(verifiable_rewards)
    known = ~rewards.isnan()
    rewards = rewards.masked_fill(~known, 0.0)
    num_others = _others_sum(known, group_index)
    others_mean = _others_sum(rewards, group_index) / num_others.clamp(min=1)
    advantages = (rewards.double() - others_mean).masked_fill(
        ~known | (num_others < 1), 0.0
    )
    return advantages.to(rewards.dtype)


def group_advantages(
    scores: Tensor,
    group_index: Tensor,
    *,
    baseline: GroupBaseline,
    scale: Literal["std"] | None = None,
    epsilon: float = 1e-6,
) -> Tensor:
    """The score of a whole response less its group's baseline.

    Args:
        scores: `[B]` numbers; NaN where there is none.
        group_index: `[B]` int64, equal for responses to one prompt.
        baseline: "leave_one_out": the mean of the others (RLOO, arXiv 2402.14740);
            "mean": the group's own mean (GRPO, arXiv 2402.03300, section 4.1.2).
        scale: "std" divides by the group's standard deviation (unbiased) plus
            `epsilon`; None does not (Dr. GRPO, arXiv 2503.20783).
        epsilon: > 0; 1e-6 in verl, 1e-4 in TRL.

    Returns:
        `[B]` advantages; 0.0 for a response without a score. For one that is alone with
        its score, "leave_one_out" gives 0.0, and "mean" the score itself: as published,
        its mean is taken for 0 and its deviation for 1.
    """
    values = at_least_float32(scores)
    known = ~values.isnan()
    values = values.masked_fill(~known, 0.0).double()
    count = group_sums(known, group_index)
    mean = group_sums(values, group_index) / count.clamp(min=1)
    mean = mean.masked_fill(count < 2, 0.0)
    deviation = (values - mean).masked_fill(~known, 0.0)
    if baseline == "mean":
        advantages = deviation
    else:
        advantages = verifiable_advantages(scores, group_index).double()
    if scale == "std":
        squares = group_sums(deviation.square(), group_index)
        std = (squares / (count - 1).clamp(min=1)).sqrt().masked_fill(count < 2, 1.0)
        advantages = advantages / (std + epsilon)
    return advantages.to(at_least_float32(scores).dtype)


def _others_sum(values: Tensor, group_index: Tensor) -> Tensor:
    """`[B]` float64 sum over the group's other rows."""
    return group_sums(values, group_index) - values.double()


def _require_siblings(group_index: Tensor) -> Tensor:
    """`[B]` float64 number of the group's other rows, each at least 1."""
    num_others = _others_sum(torch.ones_like(group_index), group_index)
    if bool((num_others < 1).any()):
        alone = group_index[num_others < 1].tolist()
        raise ValueError(
            "`group_size` (1) must be >= 2: the leave-one-out baseline averages the "
            f"other responses to the prompt, and groups {alone[:8]} have one response. "
            "Set `.env_runners(group_size=4)`."
        )
    return num_others


def _in_some_step(step_ends: Tensor, step_mask: Tensor, num_tokens: int) -> Tensor:
    """`[B, T]` bool, True up to and with the last step's end."""
    last_end = step_ends.masked_fill(~step_mask, -1).amax(dim=1, keepdim=True)
    return torch.arange(num_tokens, device=step_ends.device) <= last_end


def _like_returns(baseline: Tensor, step_credits: Tensor) -> Tensor:
    return baseline.to(at_least_float32(step_credits).dtype)
