"""Formulas of PURE's first published code that training here never runs.

With those of `pure_rllib.credit.pure_openrlhf` they make up that code's whole road. B
responses, P prompt tokens and A response tokens (padded, prompt left, response right),
S steps (padded).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pure_rllib.credit.policy_loss import (
    LossScale,
    clipped_policy_loss,
    loss_denominator,
)

RATIO_GUARD = 10.0


class Sequences(NamedTuple):
    """Prompts and responses in one row each.

    Attributes:
        token_ids: `[B, P + A]` int64, EOS written after the last real token.
        attention_mask: `[B, P + A]` bool, True from the first real token to that EOS.
        action_mask: `[B, A]` bool, True on response tokens up to and with that EOS.
    """

    token_ids: Tensor
    attention_mask: Tensor
    action_mask: Tensor


def build_sequences(
    prompt_ids: Tensor, response_ids: Tensor, *, eos_token_id: int, pad_token_id: int
) -> Sequences:
    """Joins prompts and responses and forces an EOS behind each response.

    A response without EOS that fills its row loses its last token to the EOS.

    Args:
        prompt_ids: `[B, P]` int64, padded on the left.
        response_ids: `[B, A]` int64, padded on the right.
        eos_token_id: EOS; may equal the pad id.
        pad_token_id: padding.
    """
    token_ids = torch.cat([prompt_ids, response_ids], dim=1)
    real = (token_ids != eos_token_id) & (token_ids != pad_token_id)
    width = token_ids.shape[1]
    num_trailing = real.flip(1).long().argmax(1, keepdim=True)
    eos_position = width - num_trailing.clamp(min=1)
    token_ids = token_ids.scatter(1, eos_position, eos_token_id)
    positions = torch.arange(width, device=token_ids.device)
    first_real = real.long().argmax(1, keepdim=True)
    attention_mask = (positions >= first_real) & (positions <= eos_position)
    num_prompt = prompt_ids.shape[1]
    action_mask = real[:, num_prompt - 1 : -1].clone()
    action_mask[:, 0] = True
    return Sequences(token_ids, attention_mask, action_mask)


def step_end_mask(is_separator: Tensor, action_mask: Tensor) -> Tensor:
    """Marks the separators and the EOS: every one of them ends a step.

    Args:
        is_separator: `[B, A]` bool, True on separator tokens of the response.
        action_mask: `[B, A]` bool, whose last True is the EOS.

    Returns:
        `[B, A]` bool.
    """
    width = action_mask.shape[1]
    eos_position = width - 1 - action_mask.flip(1).long().argmax(1, keepdim=True)
    return is_separator.scatter(1, eos_position, True)


def process_rewards(
    logits: Tensor, step_mask: Tensor, *, temperature: float, weighted: bool = True
) -> Tensor:
    """Turns two-class PRM logits into transformed process rewards.

    In the dtype of the logits, like the original (bfloat16 in its runs).

    Args:
        logits: `[B, S, 2]`; ignored where the mask is False.
        step_mask: `[B, S]` bool.
        temperature: of the min-form weights, > 0.
        weighted: False weighs all steps of a response equally.

    Returns:
        `[B, S]` weight times reward; 0.0 off mask; NaN in a row without steps.
    """
    classes = logits.softmax(dim=-1)
    rewards = (classes[..., 1] - classes[..., 0]).masked_fill(~step_mask, 0.0)
    if weighted:
        scaled = (-rewards / temperature).masked_fill(~step_mask, -torch.inf)
        weights = scaled.softmax(dim=1)
    else:
        weights = step_mask / step_mask.sum(1, keepdim=True).to(rewards.dtype)
    return weights * rewards


def kl_penalty(
    logp: Tensor, ref_logp: Tensor, mask: Tensor | None, *, use_k3: bool = False
) -> Tensor:
    """`[B, A]` KL estimates in float32, 0.0 off mask."""
    d = logp.float() - ref_logp.float()
    if mask is not None:
        d = d * mask
    # Rounded as the original rounds: `kl.kl_estimate` is more exact for small d.
    return (-d).exp() - 1.0 + d if use_k3 else d


def normalize(advantages: Tensor, mask: Tensor, *, mask_separators: bool) -> Tensor:
    """Normalises the advantages of a whole buffer, with statistics in float32.

    Zero advantages are taken for masked separators. `normalize.normalize_advantages`
    does the same from sums that learners can add up, in float64.

    Args:
        advantages: `[B, A]`.
        mask: `[B, A]` bool.
        mask_separators: whether advantages of exactly 0 are left out and stay 0.

    Returns:
        `[B, A]`; 0.0 off mask.
    """
    left_out = ((advantages == 0) if mask_separators else ~mask) | ~mask
    values, count = advantages[mask].float(), (~left_out).sum()
    mean = values.sum() / count
    scale = ((values - mean).square().sum() / count).clamp(min=1e-8).rsqrt()
    return ((advantages - mean) * scale).masked_fill(left_out, 0.0)


def match(outcome_rewards: Tensor, solved: Tensor, has_answer: Tensor) -> Tensor:
    """`[B]` 1.0 where the PRM's sign agrees with the verifier, -1.0 without answer."""
    agrees = (outcome_rewards > 0) == (solved == 1)
    return agrees.to(outcome_rewards.dtype).masked_fill(~has_answer, -1.0)


def policy_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip: float
) -> tuple[Tensor, Tensor]:
    """The clipped loss, switched off where the mean ratio exceeds 10.

    Returns:
        The loss (mean over each response, then over responses) and the mean ratio.
    """
    count = float(loss_denominator(mask, "sequence_mean"))
    scale = LossScale("sequence_mean", count)
    loss, _ = clipped_policy_loss(
        logp,
        old_logp,
        advantages,
        mask,
        clip_low=clip,
        clip_high=clip,
        scale=scale,
    )
    ratio = scale.aggregate((logp - old_logp).exp().detach(), mask)
    # Multiplied like the original, so an infinite loss becomes NaN and not 0.
    return loss * (ratio <= RATIO_GUARD), ratio
