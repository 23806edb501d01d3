"""Cutting rows into batches that fit into memory.

B rows, L columns, T response tokens.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pure_rllib.models.columns import (
    ACTION_POSITIONS,
    FLAT_ROW,
    GROUP_ID,
    INPUT_IDS,
    PROMPT_LENS,
    RESPONSE_LENS,
    row_lens,
)
from pure_rllib.models.flat_rows import lay_out, pack_rows

_LAYOUT = (INPUT_IDS, PROMPT_LENS, RESPONSE_LENS, GROUP_ID, ACTION_POSITIONS)


def token_budget_batches(
    row_lens: Sequence[int], max_tokens: int, *, longest_first: bool = False
) -> list[list[int]]:
    """Groups rows of like length under a budget of tokens, padding included.

    Args:
        row_lens: tokens per row; rows of length 0 are left out.
        max_tokens: limit of rows times longest row, >= 1. A row that alone is over the
            limit is a batch of its own.
        longest_first: begin with the longest rows, so that what lacks memory fails at
            once; otherwise with the shortest.

    Returns:
        Indices of the rows of each batch; rows of equal length keep their order.
    """
    rows = [row for row, length in enumerate(row_lens) if length]
    batches: list[list[int]] = []
    for row in sorted(rows, key=row_lens.__getitem__, reverse=longest_first):
        if batches:
            # Sorted: either the first row of the batch or the new one is the longest.
            longest = max(row_lens[batches[-1][0]], row_lens[row])
            if (len(batches[-1]) + 1) * longest <= max_tokens:
                batches[-1].append(row)
                continue
        batches.append([row])
    return batches


def cut_rows(
    batch: dict[str, Any],
    micro_batch_tokens: int,
    rows: Tensor | None = None,
    *,
    packing: bool = False,
) -> list[Tensor]:
    """Returns the indices of the rows of each micro-batch.

    Those that take most memory come first.

    Args:
        batch: the train batch's columns, on the CPU.
        micro_batch_tokens: see `pack_rows` and `token_budget_batches`.
        rows: `[n]` indices of the rows to use; None means all.
        packing: rows are to pass as one flat row.
    """
    if rows is None:
        rows = torch.arange(len(batch[PROMPT_LENS]))
    if packing:
        pieces = pack_rows(_layout(batch, rows), micro_batch_tokens)
    else:
        lens = row_lens(batch)[rows].tolist()
        pieces = token_budget_batches(lens, micro_batch_tokens, longest_first=True)
    return [rows[piece] for piece in pieces]


def _layout(batch: dict[str, Any], rows: Tensor) -> dict[str, Tensor]:
    """What flat rows are made of."""
    return {name: batch[name][rows] for name in _LAYOUT if name in batch}


def micro_batches(
    batch: dict[str, Any],
    cuts: Sequence[Tensor],
    device: torch.device,
    columns: Collection[str] | None = None,
    *,
    packing: bool = False,
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yields `(rows, columns)` of each micro-batch, cut to its longest row.

    Args:
        batch: the train batch's columns, on the CPU.
        cuts: see `cut_rows`.
        device: where the micro-batch is moved.
        columns: names of the columns to take; None means all tensors of the batch.
            `[B, L]` and `[B, T]` are cut to the micro-batch's longest row and longest
            response, others are taken whole.
        packing: as for `cut_rows`; the flat row is the added column `FLAT_ROW`.

    Raises:
        KeyError: the batch lacks a column.
    """
    # Reward models make batches where Ray is not needed.
    from ray.rllib.core.columns import Columns

    if columns is None:
        columns = [name for name, value in batch.items() if isinstance(value, Tensor)]
    missing = sorted(set(columns) - set(batch))
    if missing:
        raise KeyError(
            f"`columns` has {missing}, which the train batch lacks; it has "
            f"{sorted(batch)}. Add a learner connector that writes them."
        )
    response_lens = batch[RESPONSE_LENS]
    lens = row_lens(batch)
    for index in cuts:
        # A response has as many tokens as steps, so that a `[B, S]` that happens to
        # be T wide loses nothing but padding.
        width_of = {
            batch[INPUT_IDS].shape[1]: int(lens[index].max()),
            batch[Columns.ACTIONS].shape[1]: int(response_lens[index].max()),
        }
        cut: dict[str, Any] = {}
        for name in columns:
            column = batch[name]
            if column.ndim > 1:
                column = column[:, : width_of.get(column.shape[1])]
            cut[name] = column[index].to(device, non_blocking=True)
        if packing:
            row = lay_out(_layout(batch, index))
            cut[FLAT_ROW] = row.to(device)
        yield index, cut
