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
