"""Choosing one token per row. B rows, T response tokens, V vocabulary."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pure_rllib.generation.base import SamplingParams


def row_uniforms(keys: Sequence[tuple[int, int]], num_tokens: int) -> np.ndarray:
    """Random numbers of each row, which depend on the row's own key only.

    Philox is counter-based: a key is a whole stream, and neighbouring keys give
    independent ones.

    Args:
        keys: B pairs (seed, number in the group); any integers.
        num_tokens: T; a smaller T gives the beginning of the same numbers.

    Returns:
        `[B, T]` float32 in [0, 1).
    """
    uniforms = np.empty((len(keys), num_tokens), dtype=np.float32)
    for row, (seed, member) in enumerate(keys):
        key = np.array([seed % 2**64, member % 2**64], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        generator.random(num_tokens, dtype=np.float32, out=uniforms[row])
    return uniforms


def choose_tokens(
    logits: Tensor, params: SamplingParams, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Chooses one token per row by inverting the cumulative distribution.

    Args:
        logits: `[B, V]` float32, before the temperature.
        params: temperature (0.0 takes the likeliest token) and nucleus.
        uniforms: `[B]` float32 in [0, 1); not used by greedy.

    Returns:
        `[B]` int64 token ids, and `[B]` float32 log-probabilities of them under the
        whole distribution (not the nucleus) at the sampling temperature, at temperature
        1 for greedy.
    """
    if params.temperature == 0.0:
        logps = logits.log_softmax(-1)
        best = logps.argmax(-1)
        return best, logps.gather(1, best[:, None]).squeeze(1)
    if params.temperature != 1.0:
        logits = logits / params.temperature
    logps = logits.log_softmax(-1)
    probs = logps.exp()
    if params.top_p < 1.0:
        probs = _nucleus(probs, params.top_p)
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1]
    # Below the total even after rounding, so that the answer always exists and has a
    # probability above 0.
    target = torch.minimum(
        uniforms * total, torch.nextafter(total, torch.zeros_like(total))
    )
    chosen = torch.searchsorted(cumulative, target[:, None], right=True)
    # NaN logits find nothing; the NaN is then seen in the log-probability.
    chosen = chosen.clamp_(max=logits.shape[1] - 1)
    return chosen.squeeze(1), logps.gather(1, chosen).squeeze(1)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Zeroes what lies outside the fewest likeliest tokens that hold `top_p`."""
    descending, order = probs.sort(dim=-1, descending=True, stable=True)
    before = descending.cumsum(-1) - descending
    descending = descending.masked_fill(before >= top_p, 0.0)
    # The likeliest token stays even if rounding says otherwise.
    return torch.zeros_like(probs).scatter_(1, order, descending)
