"""From rewards to advantages in one call, by our formulas or by published ones.

B responses, T response tokens, S steps (padded).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pure_rllib.credit import pure_openrlhf, pure_verl
from pure_rllib.credit.baselines import process_advantages, verifiable_advantages
from pure_rllib.credit.kl import kl_estimate
from pure_rllib.credit.normalize import (
    NormalizeStyle,
    advantage_moments,
    normalize_advantages,
)
from pure_rllib.credit.presets import CreditConfig
from pure_rllib.credit.returns import (
    process_returns,
    scatter_to_tokens,
    step_credits,
)
from pure_rllib.credit.tensors import at_least_float32, suffix_sums


@dataclass(frozen=True, kw_only=True)
class CreditBatch:
    """What credit assignment reads of B whole groups of responses.

    Attributes:
        step_rewards: `[B, S]` process rewards; ignored off mask.
        step_mask: `[B, S]` bool, True on real steps, which come first in each row.
        step_ends: `[B, S]` int64 positions of the steps' last tokens; -1 off mask.
        response_mask: `[B, T]` bool, True on response tokens.
        group_index: `[B]` int64, equal for responses to one prompt.
        verifiable_rewards: `[B]` 0.0 or 1.0, NaN without a gold answer.
        logp: `[B, T]` log-probabilities at sampling; needed for a KL in the reward.
        ref_logp: `[B, T]` those of the reference policy; likewise.
    """

    step_rewards: Tensor
    step_mask: Tensor
    step_ends: Tensor
    response_mask: Tensor
    group_index: Tensor
    verifiable_rewards: Tensor
    logp: Tensor | None = None
    ref_logp: Tensor | None = None


class Credit(NamedTuple):
    """What the rewards of a batch come to, `[B, T]` each; 0.0 outside responses.

    Attributes:
        returns: of the process rewards, before any baseline and coefficient.
        advantages: normalised, if that is asked for.
    """

    returns: Tensor
    advantages: Tensor


def assign_credit(batch: CreditBatch, config: CreditConfig) -> Credit:
    """Computes returns and advantages of a whole batch, in one pass.

    With several learners the moments of a normalisation must be added up in between;
    the learner connectors do so, from the same functions.

    Args:
        batch: rewards of B responses.
        config: settings; see `presets.PRESETS`.
    """
    mask = batch.response_mask
    credits = step_credits(
        batch.step_rewards,
        batch.step_mask,
        credit_assignment=config.credit_assignment,
        credit_temperature=config.credit_temperature,
    )
    returns = process_returns(
        credits, batch.step_mask, batch.step_ends, mask.shape[1], gamma=config.gamma
    )
    if config.formulas == "pure_openrlhf":
        raw = _openrlhf(batch, credits, config)
    elif config.formulas == "pure_verl":
        raw = _verl(batch, credits, config)
    else:
        raw = _ours(batch, credits, config)
    raw = raw * mask
    style = config.normalize_advantages
    if style is False:
        return Credit(returns, raw)
    name: NormalizeStyle = "tokens" if style is True else style
    moments = advantage_moments(raw, mask, name)
    return Credit(returns, normalize_advantages(raw, mask, moments, name))


def _ours(batch: CreditBatch, credits: Tensor, config: CreditConfig) -> Tensor:
    raw = torch.zeros_like(at_least_float32(batch.response_mask))
    if config.process_reward_coeff:
        process = process_advantages(
            credits,
            batch.step_mask,
            batch.step_ends,
            batch.response_mask.shape[1],
            batch.group_index,
            baseline=config.baseline,
            gamma=config.gamma,
            max_response_tokens=config.max_response_tokens,
        )
        raw = raw + config.process_reward_coeff * process
    if config.verifiable_reward_coeff:
        excess = verifiable_advantages(batch.verifiable_rewards, batch.group_index)
        raw = raw + config.verifiable_reward_coeff * excess[:, None]
    kl = _kl(batch, config)
    if kl is not None:
        raw = raw - config.kl_coeff * suffix_sums(kl)
    if config.mask_separators:
        raw = raw.masked_fill(_step_end_flags(batch), 0.0)
    return raw


def _openrlhf(batch: CreditBatch, credits: Tensor, config: CreditConfig) -> Tensor:
    solved = at_least_float32(batch.verifiable_rewards).nan_to_num(nan=1.0)
    return pure_openrlhf.advantages(
        _process_at_ends(batch, credits, config),
        _step_end_flags(batch),
        batch.response_mask,
        batch.group_index,
        solved=solved if config.verifiable_reward_coeff else None,
        kl=_kl(batch, config),
        use_process=config.process_reward_coeff > 0,
        baseline="step" if config.baseline == "step" else "token",
        verifiable_coeff=config.verifiable_reward_coeff,
        kl_coeff=config.kl_coeff,
        mask_separators=config.mask_separators,
    ).advantages


def _verl(batch: CreditBatch, credits: Tensor, config: CreditConfig) -> Tensor:
    num_tokens = batch.response_mask.shape[1]
    if config.max_response_tokens is None or config.max_response_tokens < num_tokens:
        raise ValueError(
            f"`max_response_tokens` ({config.max_response_tokens}) must be at least "
            f"the {num_tokens} tokens of the longest response: the formulas "
            '"pure_verl" divide by it.'
        )
    is_strict = config.credit_assignment == "strict_min"
    last = batch.response_mask.sum(1, keepdim=True) - 1
    solved = at_least_float32(batch.verifiable_rewards).nan_to_num(nan=0.0)
    at_last = torch.zeros_like(at_least_float32(batch.response_mask)).to(solved)
    at_last = at_last.scatter(1, last, solved[:, None])
    scores = pure_verl.token_scores(
        at_last,
        _process_at_ends(batch, credits, config)
        if config.process_reward_coeff
        else None,
        config.verifiable_reward_coeff,
    )
    rewards, _ = pure_verl.apply_kl_penalty(
        scores, _kl(batch, config), batch.response_mask, config.kl_coeff
    )
    margin = (0, config.max_response_tokens - num_tokens)
    return pure_verl.rloo_advantages(
        pad(rewards, margin),
        pad(batch.response_mask, margin),
        batch.group_index,
        aggregate="min" if is_strict else "sum",
        normalize=False,
    ).returns[:, :num_tokens]


def _process_at_ends(
    batch: CreditBatch, credits: Tensor, config: CreditConfig
) -> Tensor:
    """`[B, T]` the published formulas' process rewards, on the steps' last tokens.

    Their strict minimum is one of raw rewards, taken over tokens later on.
    """
    if config.credit_assignment == "strict_min":
        rewards = at_least_float32(batch.step_rewards)
        rewards = rewards.masked_fill(~batch.step_mask, 0.0)
    else:
        rewards = credits
    return _at_ends(batch, config.process_reward_coeff * rewards)


def _step_end_flags(batch: CreditBatch) -> Tensor:
    return _at_ends(batch, batch.step_mask.float()) > 0


def _at_ends(batch: CreditBatch, step_values: Tensor) -> Tensor:
    ends = batch.step_ends.masked_fill(~batch.step_mask, -1)
    return scatter_to_tokens(step_values, ends, batch.response_mask.shape[1])


def _kl(batch: CreditBatch, config: CreditConfig) -> Tensor | None:
    """`[B, T]` KL estimates of a penalty in the reward, 0.0 off mask."""
    if config.kl_coeff == 0 or config.kl_placement != "reward":
        return None
    if batch.logp is None or batch.ref_logp is None:
        raise ValueError(
            f"`logp` and `ref_logp` must be given: `kl_coeff` ({config.kl_coeff}) asks "
            "for a KL penalty in the reward. Set kl_coeff=0.0 to do without."
        )
    kl = kl_estimate(batch.logp, batch.ref_logp, config.kl_estimator)
    return kl.masked_fill(~batch.response_mask, 0.0)
