"""Formulas of PURE's second published code that training here never runs.

With those of `pure_rllib.credit.pure_verl` they make up that code's whole road. B
responses, P prompt tokens, L response tokens: always the token budget, whatever was
sampled. S steps (padded).
"""

import torch
from torch import Tensor

from pure_rllib.credit.kl import KLEstimator, kl_estimate
from tests.reference.padded_steps import PaddedSteps, pack_step_ends

KL_PENALTIES: dict[str, KLEstimator] = {
    "kl": "k1",
    "abs": "abs",
    "mse": "k2",
    "low_var_kl": "low_var_kl",
}


def response_mask(response_ids: Tensor, eos_token_id: int) -> Tensor:
    """Marks tokens up to and with the first EOS: all, padding too, if there is none.

    Args:
        response_ids: `[B, L]` int64, padded on the right.
        eos_token_id: EOS.

    Returns:
        `[B, L]` bool.
    """
    is_eos = (response_ids == eos_token_id).long()
    return is_eos.cumsum(1) - is_eos == 0


def split_steps(is_separator: Tensor, mask: Tensor) -> tuple[PaddedSteps, Tensor]:
    """Ends a step at each separator of the buffer and at the last valid token.

    If the last valid token is a separator it is listed twice: once too often.

    Args:
        is_separator: `[B, L]` bool, True on separator tokens.
        mask: `[B, L]` bool, from `response_mask`.

    Returns:
        The listed steps, and `[B, L]` bool flags on their last tokens.
    """
    length = mask.shape[1]
    last = (mask.sum(1) - 1)[:, None]
    doubled = is_separator.gather(1, last)
    # A column behind the buffer stands for the second listing of the last token.
    flags = torch.cat([is_separator.scatter(1, last, True), doubled], dim=1)
    ends, step_mask = pack_step_ends(flags)
    ends = torch.where(ends == length, last, ends)
    return PaddedSteps(ends, step_mask), flags[:, :length]


def process_rewards(
    prm_logits: Tensor, step_ends: Tensor, *, temperature: float | None
) -> Tensor:
    """Turns two-class PRM logits into token-level scores.

    In the dtype of the logits, like the original (bfloat16 in its runs).

    Args:
        prm_logits: `[B, P + L, 2]` over the whole PRM input.
        step_ends: `[B, L]` bool, True on the last token of each step.
        temperature: of the min-form weights; None leaves the rewards unweighted.

    Returns:
        `[B, L]` scores at step ends, 0.0 elsewhere.
    """
    classes = prm_logits[:, -step_ends.shape[1] :].softmax(dim=-1)
    rewards = (classes[..., 1] - classes[..., 0]) * step_ends
    if temperature is None:
        return rewards
    scaled = (-rewards / temperature).masked_fill(~step_ends, -torch.inf)
    return rewards * scaled.softmax(dim=1)


def kl_penalty(logp: Tensor, ref_logp: Tensor, name: str) -> Tensor:
    """`[B, L]` KL estimates by verl's names.

    Raises:
        NotImplementedError: for a name other than kl, abs, mse and low_var_kl.
    """
    if name not in KL_PENALTIES:
        raise NotImplementedError(
            f"`kl_penalty` ({name!r}) must be one of {', '.join(KL_PENALTIES)}: "
            "verl implements no other. Set one of these."
        )
    return kl_estimate(logp, ref_logp, KL_PENALTIES[name])


def adapt_kl_coeff(
    kl_coeff: float, kl: float, *, kl_target: float, num_responses: int, horizon: int
) -> float:
    """Moves the KL coefficient towards a target KL (arXiv 1909.08593, section 2.2).

    Args:
        kl_coeff: the coefficient just used.
        kl: mean KL per token that was measured with it.
        kl_target: the KL to hold, > 0.
        num_responses: responses in the batch that was measured.
        horizon: responses over which the full correction is made.

    Returns:
        The next coefficient.
    """
    error = min(max(kl / kl_target - 1.0, -0.2), 0.2)
    return kl_coeff * (1.0 + error * num_responses / horizon)
