"""Steps as padded positions, from flags on tokens."""

from typing import NamedTuple

import torch
from torch import Tensor


class PaddedSteps(NamedTuple):
    """The steps of B responses.

    Attributes:
        step_ends: `[B, S]` int64, position of each step's last token; -1 off mask.
        step_mask: `[B, S]` bool, True on real steps, which come first in each row.
    """

    step_ends: Tensor
    step_mask: Tensor


def pack_step_ends(is_step_end: Tensor) -> PaddedSteps:
    """Turns flags on tokens into padded positions.

    Args:
        is_step_end: `[B, T]` bool, True on the last token of each step.

    Returns:
        The steps of every row, in order; S = the largest number of steps.
    """
    num_steps = is_step_end.sum(1)
    max_steps = int(num_steps.max()) if len(is_step_end) else 0
    slots = torch.arange(max_steps, device=is_step_end.device)
    step_mask = slots < num_steps[:, None]
    step_ends = torch.full_like(step_mask, -1, dtype=torch.int64)
    # Both sides run over rows first, then upwards within a row.
    step_ends[step_mask] = is_step_end.nonzero()[:, 1]
    return PaddedSteps(step_ends, step_mask)
