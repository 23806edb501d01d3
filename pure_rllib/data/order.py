"""The order in which problems are asked: shuffled, exact, resumable by one number."""

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pure_rllib.setting_types import Count, NaturalNumber, check_setting

_Item = TypeVar("_Item")
# The permutation of the last epoch is still needed where a batch crosses into the next.
_NUM_CACHED_EPOCHS = 2


@dataclass(frozen=True, slots=True)
class ProblemTicket:
    """One turn of one problem.

    Attributes:
        index: of the problem in its source.
        epoch: how often each problem has been asked before, from 0.
        position: of this turn in its epoch, from 0.
        seed: in [0, 2**63), for everything random about this turn; differs between
            turns, so sampling has no state that a resumed run would have to restore.
    """

    index: int
    epoch: int
    position: int
    seed: int


class ProblemOrder:
    """Shuffles the problems anew in each epoch; every epoch holds each exactly once.

    The only state is the cursor, the number of turns taken since the start, which the
    caller keeps.

    Args:
        num_problems: >= 1.
        seed: >= 0, of the run; the same seed gives the same turns.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, num_problems: int, seed: int):
        check_setting("num_problems", num_problems, Count)
        check_setting("seed", seed, NaturalNumber)
        self.num_problems = operator.index(num_problems)
        self.seed = operator.index(seed)
        self._permutations: dict[int, np.ndarray] = {}

    def take(self, cursor: int, count: int) -> list[ProblemTicket]:
        """Returns the turns `cursor`, ..., `cursor + count - 1`.

        `take(0, a) + take(a, b)` equals `take(0, a + b)`; epochs may be crossed.

        Args:
            cursor: >= 0, turns taken before.
            count: >= 0.

        Raises:
            ValueError: an argument is negative.
        """
        check_setting("cursor", cursor, NaturalNumber)
        check_setting("count", count, NaturalNumber)
        tickets = []
        for turn in range(cursor, cursor + count):
            epoch, position = divmod(turn, self.num_problems)
            index = int(self._permutation(epoch)[position])
            seed = ticket_seed(self.seed, epoch, position)
            tickets.append(ProblemTicket(index, epoch, position, seed))
        return tickets

    def _permutation(self, epoch: int) -> np.ndarray:
        permutation = self._permutations.get(epoch)
        if permutation is None:
            # 32 bits where they do: 40 MB for ten million problems.
            dtype = np.int32 if self.num_problems <= 2**31 else np.int64
            permutation = np.arange(self.num_problems, dtype=dtype)
            np.random.default_rng((self.seed, epoch)).shuffle(permutation)
            while len(self._permutations) >= _NUM_CACHED_EPOCHS:
                del self._permutations[min(self._permutations)]
            self._permutations[epoch] = permutation
        return permutation


def ticket_seed(run_seed: int, epoch: int, position: int) -> int:
    """Hashes a turn to a seed in [0, 2**63), the same on every machine."""
    text = f"{run_seed}/{epoch}/{position}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def shard(items: Sequence[_Item], num_shards: int) -> list[list[_Item]]:
    """Deals items in turn to `num_shards` shards; each item goes to exactly one.

    Args:
        items: any number; shards differ by at most one item.
        num_shards: >= 1, for example the number of env runners.

    Raises:
        ValueError: `num_shards` is below 1.
    """
    check_setting("num_shards", num_shards, Count)
    return [list(items[start::num_shards]) for start in range(num_shards)]


def sample_seed(run_seed: int, index: int, number: int) -> int:
    """The seed of a problem's sample in evaluations; others than in training.

    Args:
        run_seed: of the run or the evaluation.
        index: of the problem in its source.
        number: of the sample, from 0.

    Returns:
        In [0, 2**63).
    """
    return ticket_seed(run_seed, -1 - number, index)
