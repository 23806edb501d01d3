"""Log-probabilities of a whole train batch, in micro-batches and without gradient.

B rows, T response tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from pure_rllib.models import columns
from pure_rllib.models.batching import micro_batches


@torch.no_grad()
def batch_logps(
    module: Any, model: Any, rows: dict[str, Any], micro_batch_tokens: int
) -> Tensor:
    """Computes what a model thinks of each sampled token.

    Not only on the loss mask: a response that is left out of the loss still has a KL,
    which counts for the others' baseline where the KL is part of the reward.

    Args:
        module: the `LLMRLModule`, which knows how.
        model: its `policy` or `reference`.
        rows: the columns of `EpisodesToRows`, on the CPU.
        micro_batch_tokens: at most so many tokens, padding included, per forward pass.

    Returns:
        `[B, T]` float32 on the CPU, at the sampling temperature; 0.0 behind responses.
    """
    device = next(model.parameters()).device
    logps = torch.zeros(rows[Columns.ACTIONS].shape)
    is_response = torch.arange(logps.shape[1]) < rows[columns.RESPONSE_LENS][:, None]
    whole = {**rows, Columns.LOSS_MASK: is_response}
    pieces = list(micro_batches(whole, micro_batch_tokens, device))
    passes = [partial(module.logps, model, piece) for _, piece in pieces]
    own = module.run_passes if model is module.policy else None
    for (index, _), (logp, _) in zip(pieces, (own or _one_by_one)(passes), strict=True):
        logps[index, : logp.shape[1]] = logp.cpu()
    return logps


def _one_by_one(passes: Sequence[Callable[[], Any]]) -> Iterator[Any]:
    """Makes each pass when its result is asked for."""
    for one in passes:
        yield one()
