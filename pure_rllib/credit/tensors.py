"""Small tensor operations that the modules of credit assignment share."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Returns `x` in float32, or in float64 if it came so."""
    return x if x.dtype == torch.float64 else x.float()


def suffix_sums(x: Tensor, gamma: float = 1.0) -> Tensor:
    """Sums each row from every position to its end: y_t = x_t + gamma * y_{t+1}.

    With gamma below 1 the sum is built in log2(N) doublings, each of them over the
    whole tensor, rather than in N steps: after the pass of width d, y_t covers the 2d
    entries from t on.

    Args:
        x: `[B, N]` floats.
        gamma: in [0, 1].

    Returns:
        `[B, N]`, dtype of `x`.
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(
            f"`gamma` ({gamma}) must be in [0, 1]: it discounts later rewards. "
            "Set gamma=1.0 for plain sums."
        )
    if gamma == 1.0:
        return x.flip(-1).cumsum(-1).flip(-1)
    y, width = x.clone(), 1
    while width < x.shape[-1] and gamma**width > 0.0:
        shifted = torch.zeros_like(y)
        shifted[..., :-width] = y[..., width:]
        y = y + gamma**width * shifted
        width *= 2
    return y


def group_sums(values: Tensor, group_index: Tensor) -> Tensor:
    """Sums values over the rows of each row's own group, in float64.

    Args:
        values: `[B]` numbers.
        group_index: `[B]` integers, equal for rows of one group; any ids, any order.

    Returns:
        `[B]` float64: the sum over the row's group, the row itself included.
    """
    groups, inverse = torch.unique(group_index, return_inverse=True)
    sums = torch.zeros(len(groups), dtype=torch.float64, device=values.device)
    return sums.index_add_(0, inverse, values.double())[inverse]
