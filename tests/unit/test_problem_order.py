"""Tests of the order of problems and of dealing them out."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pure_rllib.data.order import ProblemOrder, ProblemTicket, shard, ticket_seed


@given(
    num_problems=st.integers(1, 50),
    seed=st.integers(0, 2**64),
    counts=st.lists(st.integers(0, 70), max_size=6),
)
def test_small_takes_joined_equal_one_take(num_problems, seed, counts):
    order = ProblemOrder(num_problems, seed)
    joined: list[ProblemTicket] = []
    for count in counts:
        # A new object each time: the cursor is all the state there is.
        joined += ProblemOrder(num_problems, seed).take(len(joined), count)
    assert order.take(0, sum(counts)) == joined


@given(
    num_problems=st.integers(1, 40),
    seed=st.integers(0, 1000),
    num_epochs=st.integers(1, 4),
)
def test_each_problem_once_per_epoch(num_problems, seed, num_epochs):
    tickets = ProblemOrder(num_problems, seed).take(0, num_problems * num_epochs)
    for epoch in range(num_epochs):
        part = tickets[epoch * num_problems : (epoch + 1) * num_problems]
        assert sorted(ticket.index for ticket in part) == list(range(num_problems))
        assert [ticket.position for ticket in part] == list(range(num_problems))
        assert {ticket.epoch for ticket in part} == {epoch}
    assert len({ticket.seed for ticket in tickets}) == len(tickets)
    assert all(0 <= ticket.seed < 2**63 for ticket in tickets)


def test_seeds_and_epochs_shuffle_differently():
    def indices(seed: int, epoch: int) -> list[int]:
        return [t.index for t in ProblemOrder(100, seed).take(100 * epoch, 100)]

    assert indices(0, 0) == indices(0, 0)
    assert indices(0, 0) != indices(1, 0)
    assert indices(0, 0) != indices(0, 1)
    assert indices(0, 0) != list(range(100))


def test_ticket_seeds_are_fixed_by_run_epoch_and_position():
    # Fixed for good: a checkpoint of today must resume with the same samples.
    # `printf 0/0/0 | b2sum -l 64` gives 1514dc2746e37685, bytes in rising order.
    digest = int.from_bytes(bytes.fromhex("1514dc2746e37685"), "little")
    assert ticket_seed(0, 0, 0) == digest >> 1
    assert (
        len({ticket_seed(r, e, p) for r in (1, 11) for e in (1, 11) for p in (1, 11)})
        == 8
    )
    bits = np.array(
        [[ticket_seed(7, 0, p) >> b & 1 for b in range(63)] for p in range(2000)]
    )
    # Each bit is set in half of them: 1000 +- 22.4 (one sigma), here six sigmas.
    assert np.abs(bits.sum(axis=0) - 1000).max() < 135


def test_ten_million_problems():
    order = ProblemOrder(10_000_000, 0)
    across = order.take(9_999_990, 20)
    assert [ticket.epoch for ticket in across] == [0] * 10 + [1] * 10
    assert [ticket.position for ticket in across[10:]] == list(range(10))
    total = sum(permutation.nbytes for permutation in order._permutations.values())
    assert total == 2 * 40_000_000


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`num_problems` \(0\)"):
        ProblemOrder(0, 0)
    with pytest.raises(ValueError, match=r"`seed` \(-1\)"):
        ProblemOrder(5, -1)
    with pytest.raises(ValueError, match=r"`cursor` \(-1\)"):
        ProblemOrder(5, 0).take(-1, 3)
    with pytest.raises(ValueError, match=r"`num_shards` \(0\)"):
        shard([1], 0)


@given(items=st.lists(st.integers(), max_size=30), num_shards=st.integers(1, 8))
def test_every_item_goes_to_one_shard(items, num_shards):
    shards = shard(items, num_shards)
    assert len(shards) == num_shards
    assert sorted(itertools.chain(*shards)) == sorted(items)
    sizes = [len(part) for part in shards]
    assert max(sizes) - min(sizes) <= 1
