"""Cutting a train batch into pieces that fit into memory.

B rows, L columns, T response tokens.
"""

from collections.abc import Iterator
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from pure_rllib.models import columns

_ROW_COLUMNS = (columns.INPUT_IDS,)
_TOKEN_COLUMNS = (
    Columns.ACTIONS,
    Columns.ACTION_LOGP,
    Columns.LOSS_MASK,
    Columns.ADVANTAGES,
    columns.OLD_LOGP,
    columns.CORRECTION_WEIGHT,
    columns.REF_LOGP,
)
_RESPONSE_COLUMNS = (columns.PROMPT_LENS, columns.RESPONSE_LENS, columns.GROUP_ID)


def split_by_tokens(row_lens: Tensor, micro_batch_tokens: int) -> list[Tensor]:
    """Splits rows into micro-batches of similar length under a token budget.

    Args:
        row_lens: `[B]` int64, tokens per row.
        micro_batch_tokens: limit of rows times longest row. A row that alone is over
            the limit is a micro-batch of its own.

    Returns:
        Lists of row indices, longest rows first: a run that lacks memory fails at once.
    """
    pieces: list[list[int]] = []
    for row in torch.argsort(row_lens, descending=True, stable=True).tolist():
        fits = (
            bool(pieces)
            and (len(pieces[-1]) + 1) * int(row_lens[pieces[-1][0]])
            <= micro_batch_tokens
        )
        if fits:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return [torch.tensor(piece) for piece in pieces]


def num_micro_batches(
    batch: dict[str, Any], micro_batch_tokens: int, rows: Tensor
) -> int:
    """Returns how many micro-batches `micro_batches` makes of these rows."""
    row_lens = batch[columns.PROMPT_LENS][rows] + batch[columns.RESPONSE_LENS][rows]
    return len(split_by_tokens(row_lens, micro_batch_tokens))


def micro_batches(
    batch: dict[str, Any],
    micro_batch_tokens: int,
    device: torch.device,
    rows: Tensor | None = None,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yields `(rows, columns)` of each micro-batch, cut to its longest row.

    Args:
        batch: the train batch's columns, on the CPU.
        micro_batch_tokens: see `split_by_tokens`.
        device: where the micro-batch is moved.
        rows: `[n]` indices of the rows to use; None means all.
    """
    if rows is None:
        rows = torch.arange(len(batch[columns.PROMPT_LENS]))
    response_lens = batch[columns.RESPONSE_LENS][rows]
    row_lens = batch[columns.PROMPT_LENS][rows] + response_lens
    for piece in split_by_tokens(row_lens, micro_batch_tokens):
        index = rows[piece]
        num_columns = int(row_lens[piece].max())
        num_tokens = int(response_lens[piece].max())
        cut = {
            **{name: (index, slice(num_columns)) for name in _ROW_COLUMNS},
            **{name: (index, slice(num_tokens)) for name in _TOKEN_COLUMNS},
            **dict.fromkeys(_RESPONSE_COLUMNS, (index,)),
        }
        yield (
            index,
            {
                name: batch[name][where].to(device, non_blocking=True)
                for name, where in cut.items()
                if name in batch
            },
        )
