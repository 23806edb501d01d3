"""Estimators of the KL divergence from the reference policy, per token.

With d = logp - ref_logp at tokens sampled from the policy (J. Schulman, "Approximating
KL Divergence", 2020). B responses, T response tokens.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from pure_rllib.credit.tensors import at_least_float32

KLEstimator = Literal["k1", "k2", "k3", "abs", "low_var_kl"]
KL_ESTIMATORS: tuple[KLEstimator, ...] = get_args(KLEstimator)
LOW_VAR_KL_BOUND = 10.0


def kl_estimate(logp: Tensor, ref_logp: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimates the KL divergence at each token.

    Args:
        logp: `[B, T]` log-probabilities of the sampled tokens under the policy.
        ref_logp: `[B, T]` the same under the reference policy.
        estimator: "k1": d, unbiased, of either sign; "k2": d^2 / 2, whose gradient is
            that of the KL when used in the loss; "k3": exp(-d) - 1 + d, unbiased and
            >= 0; "low_var_kl": k3 clamped to [-10, 10]; "abs": |d|.

    Returns:
        `[B, T]` estimates, float32 at least; mask them yourself.
    """
    d = at_least_float32(logp) - at_least_float32(ref_logp)
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "abs":
        return d.abs()
    if estimator == "k3":
        return torch.expm1(-d) + d
    if estimator == "low_var_kl":
        return (torch.expm1(-d) + d).clamp(-LOW_VAR_KL_BOUND, LOW_VAR_KL_BOUND)
    raise ValueError(
        f"`kl_estimator` ({estimator!r}) must be one of {', '.join(KL_ESTIMATORS)}."
    )


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
