"""One flat row without padding, in which what a group's rows share stands once.

    prompt, response 1, response 2, ..., prompt of the next group, response 1, ...

B rows, L columns of a row, N tokens of the flat row.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pure_rllib.models.columns import (
    GROUP_ID,
    INPUT_IDS,
    PROMPT_LENS,
    row_lens,
)


class Segment(NamedTuple):
    """Tokens that see their prefix and, causally, each other, and nothing else.

    Attributes:
        start: place of the first token in the flat row.
        stop: place behind the last one.
        prefix_start: place of the prefix's first token.
        prefix_stop: place behind its last one; `prefix_start` where there is no prefix.
    """

    start: int
    stop: int
    prefix_start: int
    prefix_stop: int


@dataclass(frozen=True, slots=True)
class FlatRow:
    """Where the tokens of `[B, L]` rows stand in a flat row.

    Attributes:
        token_ids: `[N]` int64.
        positions: `[N]` int64, each token's column in its own row.
        places: `[B, L]` int64, where the token of a row and a column stands in the flat
            row; 0 behind rows. What several rows share has the same places.
        segments: in the order of the flat row; together they are all of it.
    """

    token_ids: Tensor
    positions: Tensor
    places: Tensor
    segments: tuple[Segment, ...]

    def to(self, device: torch.device) -> "FlatRow":
        """Returns the same with its tensors on a device."""
        return replace(
            self,
            token_ids=self.token_ids.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
            places=self.places.to(device, non_blocking=True),
        )


def lay_out(rows: Mapping[str, Any]) -> FlatRow:
    """Lays rows out one behind the other, the beginning of a group's rows once.

    Args:
        rows: reads `INPUT_IDS` `[B, L]`, `PROMPT_LENS`, `RESPONSE_LENS` and `GROUP_ID`
            `[B]`, and `ACTION_POSITIONS` if there are any; on the CPU.
    """
    input_ids, lens = rows[INPUT_IDS], row_lens(rows)
    places = torch.zeros_like(input_ids)
    segments, end = [], 0
    for members, num_shared in _groups(rows):
        prefix = (end, end + num_shared)
        places[members, :num_shared] = torch.arange(*prefix)
        segments.append(Segment(*prefix, end, end))
        end += num_shared
        for row in members:
            stop = end + int(lens[row]) - num_shared
            places[row, num_shared : lens[row]] = torch.arange(end, stop)
            segments.append(Segment(end, stop, *prefix))
            end = stop
    columns = torch.arange(input_ids.shape[1]).expand_as(places)
    is_real = columns < lens[:, None]
    token_ids, positions = torch.empty(2, end, dtype=torch.int64)
    token_ids[places[is_real]] = input_ids[is_real]
    positions[places[is_real]] = columns[is_real]
    kept = tuple(segment for segment in segments if segment.stop > segment.start)
    return FlatRow(token_ids, positions, places, kept)


def pack_rows(rows: Mapping[str, Any], max_tokens: int) -> list[list[int]]:
    """Deals rows to flat rows of at most so many tokens, groups whole where they fit.

    A group that does not fit is cut into several, each with its prompt; a row that
    alone is over the limit is alone. First fit, the largest pieces first.

    Args:
        rows: as for `lay_out`.
        max_tokens: limit of a flat row, >= 1.

    Returns:
        Indices of the rows of each flat row, rising. The flat row with the largest sum
        of squared row lengths comes first, so that what lacks memory fails at once.
    """
    lens = row_lens(rows).tolist()
    pieces: list[_Pack] = []
    for members, num_shared in _groups(rows):
        piece = None
        for row in members:
            own = lens[row] - num_shared
            if piece is None or piece.num_tokens + own > max_tokens:
                piece = _Pack([], num_shared, 0)
                pieces.append(piece)
            piece.add([row], own, lens[row] ** 2)
    packs: list[_Pack] = []
    for piece in sorted(pieces, key=lambda piece: -piece.num_tokens):
        fits = (p for p in packs if p.num_tokens + piece.num_tokens <= max_tokens)
        pack = next(fits, None)
        if pack is None:
            packs.append(piece)
        else:
            pack.add(piece.rows, piece.num_tokens, piece.squares)
    packs.sort(key=lambda pack: -pack.squares)
    return [sorted(pack.rows) for pack in packs]


@dataclass(slots=True)
class _Pack:
    """Rows, the tokens of their flat row, and the sum of their squared lengths."""

    rows: list[int]
    num_tokens: int
    squares: int

    def add(self, rows: list[int], num_tokens: int, squares: int) -> None:
        self.rows += rows
        self.num_tokens += num_tokens
        self.squares += squares


def _groups(rows: Mapping[str, Any]) -> Iterator[tuple[list[int], int]]:
    """Yields the rows of each group and how many tokens they share at their beginning.

    Nothing of a response is shared: what one row says must not move another's numbers.
    """
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(rows[GROUP_ID].tolist()):
        groups.setdefault(group, []).append(row)
    for members in groups.values():
        if len(members) == 1:
            yield members, 0
            continue
        prompts = rows[INPUT_IDS][members, : int(rows[PROMPT_LENS][members].min())]
        is_shared = (prompts == prompts[0]).all(dim=0)
        yield members, int(is_shared.long().cumprod(dim=0).sum())
