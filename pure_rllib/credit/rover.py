"""ROVER's loss: the policy's own change as a value function (arXiv 2509.24981).

B responses, T response tokens. In a tree of tokens whose leaves are right or wrong, to
act greedily on the values of the *uniformly random* policy is optimal, and to sample
from their softmax keeps all right paths. Those values are parametrised by how far the
policy has moved since the iteration began, q = logp - old_logp, and fitted to their own
Bellman equation: the response's reward plus the successor's value under the uniform
policy.
"""

import torch
from torch import Tensor

from pure_rllib.credit.policy_loss import LossScale
from pure_rllib.credit.tensors import at_least_float32


def rover_loss(
    logp: Tensor,
    old_logp: Tensor,
    mean_logp: Tensor,
    old_mean_logp: Tensor,
    rewards: Tensor,
    loss_mask: Tensor,
    *,
    log_ratio_coeff: float = 1.0,
    next_value_coeff: float = 1.0,
    weights: Tensor | None = None,
    scale: LossScale | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The squared error of q against reward plus next value, to be minimised.

    At an iteration's first optimiser step q and next value are 0, and the gradient is
    twice that of REINFORCE with these rewards. From then on log-ratios are drawn to
    their target, which limits how far the policy moves.

    Args:
        logp: `[B, T]` log-probabilities under the policy; the only gradient.
        old_logp: `[B, T]` under the policy before the iteration's first update.
        mean_logp: `[B, T]` mean log-probability over the vocabulary, unweighted, of the
            distribution that each token was drawn from.
        old_mean_logp: `[B, T]` likewise before the first update.
        rewards: `[B, T]` the response's normalised reward, on *every* token.
        loss_mask: `[B, T]` bool, True on tokens that the loss uses; whatever stands
            elsewhere in the other arguments is ignored, NaN included.
        log_ratio_coeff: factor of all log-ratios.
        next_value_coeff: factor of the next value in the target.
        weights: `[B, T]` factors of the tokens' losses, no gradient; None: all 1.
        scale: how tokens are added up; None: their mean over these rows alone.

    Returns:
        The scalar loss, and `[B, T]` detached `q`, `next_value` and `target`, 0.0 where
        the mask is False.
    """

    def change(new: Tensor, old: Tensor) -> Tensor:
        difference = at_least_float32(new) - at_least_float32(old)
        return log_ratio_coeff * torch.where(loss_mask, difference, 0.0)

    q = change(logp, old_logp)
    # The value of where a token leads is that at the next one; the last leads nowhere.
    next_value = change(mean_logp, old_mean_logp).detach().roll(-1, dims=1)
    next_value[:, -1] = 0.0
    target = torch.where(loss_mask, rewards + next_value_coeff * next_value, 0.0)
    errors = (q - target.detach()).square()
    if weights is not None:
        errors = errors * weights
    scale = scale or LossScale("token_mean", float(loss_mask.sum()))
    return scale.aggregate(errors, loss_mask), {
        "q": q.detach(),
        "next_value": next_value,
        "target": target.detach(),
    }
