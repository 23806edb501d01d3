"""Evening out an optimiser step's rows over the learners, once they have advantages.

Advantages compare the rows of whole groups, which are therefore fetched whole. The loss
takes each row by itself, and learners wait for the slowest one in every optimiser step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pure_rllib.distributed.collectives import gather_objects, num_ranks, rank
from pure_rllib.models import columns

_CLOSE = 1.01
"""The heaviest share over the mean that is good enough: rows cost time to move."""

_MOST_COMPARED = 512
"""Of more rows of a learner not all are compared: among so many one fits."""

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class RowSizes:
    """What rows cost, `[N]` int64 each.

    Attributes:
        owner: the learner that holds the row.
        group: numbers of the groups, from 0 on.
        shared: tokens that pass once for all rows of a group on a learner: those of the
            prompt, or 0 where rows are padded.
        own: the row's other tokens, at least 1.
    """

    owner: np.ndarray
    group: np.ndarray
    shared: np.ndarray
    own: np.ndarray

    def of(self, rows: np.ndarray) -> "RowSizes":
        """The same of some rows."""
        group = np.unique(self.group[rows], return_inverse=True)[1]
        return RowSizes(self.owner[rows], group, self.shared[rows], self.own[rows])


def even_out(sizes: RowSizes, num_learners: int) -> tuple[np.ndarray, float]:
    """Deals rows anew so that learners have about as many tokens.

    A learner's part of a group costs its prompt once and each of its rows' own tokens,
    so that to split a group costs its prompt once more. Beginning with where the rows
    are, the heaviest learner gives one to the lightest, or exchanges one for one: what
    makes the larger of their two shares smallest, until nothing makes it smaller or the
    heaviest is within 1% of the mean. So a group stays whole where its prompt is longer
    than what could be evened out.

    Args:
        sizes: of N >= 1 rows.
        num_learners: >= 1.

    Returns:
        `[N]` the learner that each row is dealt to, and the heaviest share over the
        mean.
    """
    deal = _Deal(sizes, num_learners)
    while True:
        loads = deal.loads()
        heavy, light = int(loads.argmax()), int(loads.argmin())
        if loads[heavy] <= _CLOSE * loads.mean():
            break
        given = deal.rows_of(heavy)[:, None]
        # The last is none: then a row is given for nothing.
        taken = np.append(deal.rows_of(light), -1)
        larger = np.maximum(
            loads[heavy] - deal.cost(given, heavy, 1) + deal.cost(taken, heavy, 0),
            loads[light] + deal.cost(given, light, 0) - deal.cost(taken, light, 1),
        )
        # Within a group the two would share the prompt that is counted here.
        larger[(sizes.group[given] == sizes.group[taken]) & (taken >= 0)] = _NEVER
        one, other = np.unravel_index(larger.argmin(), larger.shape)
        if larger[one, other] >= loads[heavy]:
            break
        deal.move(int(given[one, 0]), light)
        if taken[other] >= 0:
            deal.move(int(taken[other]), heavy)
    return deal.owner, float(loads[heavy] / loads.mean())


class _Deal:
    """Which learner has which rows, and what they cost it."""

    def __init__(self, sizes: RowSizes, num_learners: int):
        self._sizes = sizes
        self.owner = sizes.owner.copy()
        num_groups = int(sizes.group.max()) + 1
        self._held = np.zeros((num_groups, num_learners), dtype=np.int64)
        np.add.at(self._held, (sizes.group, self.owner), 1)
        self._shared = np.zeros(num_groups, dtype=np.int64)
        self._shared[sizes.group] = sizes.shared

    def loads(self) -> np.ndarray:
        """Each learner's tokens."""
        loads: np.ndarray = self._shared @ (self._held > 0)
        np.add.at(loads, self.owner, self._sizes.own)
        return loads

    def rows_of(self, learner: int) -> np.ndarray:
        rows = np.flatnonzero(self.owner == learner)
        return rows[:: 1 + len(rows) // _MOST_COMPARED]

    def cost(self, rows: np.ndarray, learner: int, num_held: int) -> np.ndarray:
        """Tokens of rows (-1 is none), each with its prompt where the learner holds so
        many rows of its group."""
        pays = self._held[self._sizes.group[rows], learner] == num_held
        tokens = self._sizes.own[rows] + self._sizes.shared[rows] * pays
        return np.where(rows < 0, 0, tokens)

    def move(self, row: int, learner: int) -> None:
        self._held[self._sizes.group[row], [self.owner[row], learner]] += [-1, 1]
        self.owner[row] = learner


class RowBalance:
    """Hands rows of a train batch from learner to learner, step by step.

    All learners make it and call it together.

    Args:
        batch: this learner's columns, on the CPU, of whole groups.
        packing: the rows of a group share the tokens of their prompt.
    """

    def __init__(self, batch: dict[str, Any], *, packing: bool):
        self._batch = batch
        prompts = batch[columns.PROMPT_LENS]
        shared = prompts if packing else torch.zeros_like(prompts)
        own = (batch[columns.GROUP_ID], shared, columns.row_lens(batch) - shared)
        found = gather_objects([one.numpy() for one in own], "row sizes")
        counts = [len(of_one[0]) for of_one in found]
        owners = np.repeat(np.arange(len(found)), counts)
        self._sizes = RowSizes(owners, *map(np.concatenate, zip(*found, strict=True)))
        order = np.argsort(self._sizes.group, kind="stable")
        ids, starts = np.unique(self._sizes.group[order], return_index=True)
        rows = np.split(order, starts[1:])
        self._rows_of = dict(zip(ids.tolist(), rows, strict=True))
        self._first = sum(counts[: rank()])

    def share(self, group_ids: Sequence[int]) -> tuple[dict[str, Any], float]:
        """Returns this learner's rows of an optimiser step on these groups.

        Returns:
            The columns, and the heaviest learner's tokens over the mean.
        """
        rows = np.sort(np.concatenate([self._rows_of[i] for i in group_ids]))
        sizes = self._sizes.of(rows)
        dealt, imbalance = even_out(sizes, num_ranks())
        is_here = sizes.owner == rank()
        share = self._select(rows[is_here & (dealt == rank())])
        if (dealt == sizes.owner).all():
            return share, imbalance
        parcels = [
            self._select(rows[is_here & (dealt == learner) & (learner != rank())])
            for learner in range(num_ranks())
        ]
        received = [of_one[rank()] for of_one in gather_objects(parcels, "rows")]
        parts = [part for part in received if len(part[columns.GROUP_ID])]
        return (_joined([share, *parts]) if parts else share), imbalance

    def _select(self, rows: np.ndarray) -> dict[str, Any]:
        index = torch.from_numpy(rows - self._first)
        return {
            name: column[index]
            for name, column in self._batch.items()
            if isinstance(column, Tensor)
        }


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Puts the rows of learners below each other, padded to the widest."""
    if any(columns.ACTION_POSITIONS in part for part in parts):
        for part in parts:
            part.setdefault(columns.ACTION_POSITIONS, columns.plain_positions(part))
    return {
        name: torch.cat([part[name] for part in parts])
        if column.ndim == 1
        else pad_sequence(
            [row for part in parts for row in part[name]],
            batch_first=True,
            padding_value=columns.PADDING.get(name, 0),
        )
        for name, column in parts[0].items()
    }
