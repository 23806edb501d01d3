"""Advantage normalisation over the global batch. B responses, T response tokens.

Statistics are sums, so that learners can add theirs up (all-reduce) before they divide.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

NormalizeStyle = Literal["tokens", "pure_openrlhf", "pure_verl"]
NORMALIZE_STYLES: tuple[NormalizeStyle, ...] = get_args(NormalizeStyle)
VARIANCE_FLOOR = 1e-8


def advantage_moments(
    advantages: Tensor, mask: Tensor, style: NormalizeStyle = "tokens"
) -> Tensor:
    """Sums what the mean and the variance of advantages are made of.

    Args:
        advantages: `[B, T]`; ignored where the mask is False.
        mask: `[B, T]` bool, True on loss tokens.
        style: see `normalize_advantages`.

    Returns:
        `[4]` float64, to be added over learners: tokens, tokens that count, sum, sum
        of squares.
    """
    values = torch.where(mask, advantages, 0.0).double()
    num_tokens = mask.sum().double()
    num_counted = (
        (values != 0).sum().double() if style == "pure_openrlhf" else num_tokens
    )
    return torch.stack([num_tokens, num_counted, values.sum(), values.square().sum()])


def normalize_advantages(
    advantages: Tensor,
    mask: Tensor,
    moments: Tensor,
    style: NormalizeStyle = "tokens",
) -> Tensor:
    """Takes off the mean and divides by the standard deviation.

    Args:
        advantages: `[B, T]`; ignored where the mask is False.
        mask: `[B, T]` bool, True on loss tokens.
        moments: `advantage_moments` of the same style, summed over the batch.
        style: "tokens": over all loss tokens, population variance, at least 1e-8;
            "pure_openrlhf": the same over tokens whose advantage is not exactly 0,
            which stay 0 (masked separators among them, but other zeros too), while the
            squares of all tokens are divided by the smaller count; "pure_verl": over
            all loss tokens, unbiased variance plus 1e-8.

    Returns:
        `[B, T]` normalised advantages; 0.0 off mask.

    Raises:
        ValueError: style "pure_verl" with fewer than two tokens.
    """
    num_tokens, num_counted, total, squares = moments.unbind()
    mean = total / num_counted
    deviations = squares - 2.0 * mean * total + num_tokens * mean.square()
    if style == "pure_verl":
        if float(num_tokens) < 2.0:
            raise ValueError(
                f"`advantages` ({int(num_tokens)} loss tokens in the batch) must hold "
                'at least 2 tokens: normalize_advantages="pure_verl" divides by one '
                "less. Set normalize_advantages=True."
            )
        scale = (deviations / (num_tokens - 1.0) + VARIANCE_FLOOR).rsqrt()
    elif style in ("tokens", "pure_openrlhf"):
        scale = (deviations / num_counted).clamp(min=VARIANCE_FLOOR).rsqrt()
    else:
        raise ValueError(
            f"`normalize_advantages` ({style!r}) must be True, False or one of "
            f"{', '.join(NORMALIZE_STYLES)}."
        )
    values = torch.where(mask, advantages, 0.0)
    # Multiplied, not selected: if one advantage is NaN, the whole batch shall show it.
    normalized = (values - mean) * scale * mask
    if style == "pure_openrlhf" or float(num_tokens) == 0.0:
        normalized = normalized.masked_fill(values == 0, 0.0)
    return normalized
