"""Cutting a train batch into pieces under a token budget."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.rllib.core.columns import Columns

from pure_rllib.models import columns
from pure_rllib.models.batching import micro_batches, split_by_tokens

CPU = torch.device("cpu")


def test_split_by_hand() -> None:
    lens = torch.tensor([3, 10, 4, 4, 2])
    # Longest first; 2 x 4 = 8 fits into 10, 3 x 4 = 12 does not; 2 x 3 = 6 does.
    pieces = [piece.tolist() for piece in split_by_tokens(lens, 10)]
    assert pieces == [[1], [2, 3], [0, 4]]


def test_a_row_over_the_budget_is_alone() -> None:
    pieces = [p.tolist() for p in split_by_tokens(torch.tensor([3, 50, 40, 3]), 8)]
    assert pieces == [[1], [2], [0, 3]]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.integers(1, 200),
)
def test_budget_is_held_and_no_row_is_lost(lens: list[int], budget: int) -> None:
    pieces = [piece.tolist() for piece in split_by_tokens(torch.tensor(lens), budget)]
    assert sorted(row for piece in pieces for row in piece) == list(range(len(lens)))
    order = [lens[row] for piece in pieces for row in piece]
    assert order == sorted(order, reverse=True)
    for piece in pieces:
        cost = len(piece) * max(lens[row] for row in piece)
        assert cost <= budget or len(piece) == 1


def test_no_rows_make_no_pieces() -> None:
    assert split_by_tokens(torch.zeros(0, dtype=torch.int64), 8) == []


def batch() -> dict[str, Any]:
    return {
        columns.PROMPT_LENS: torch.tensor([2, 1, 1]),
        columns.RESPONSE_LENS: torch.tensor([3, 1, 2]),
        columns.GROUP_ID: torch.tensor([5, 6, 6]),
        #                          P   P  t0  t1  t2
        columns.INPUT_IDS: torch.tensor(
            [[1, 2, 10, 11, 12], [3, 13, 0, 0, 0], [4, 14, 15, 0, 0]]
        ),
        Columns.ACTIONS: torch.tensor([[10, 11, 12], [13, 0, 0], [14, 15, 0]]),
        Columns.LOSS_MASK: torch.tensor(
            [[True, True, True], [True, False, False], [True, True, False]]
        ),
    }


def test_micro_batches_are_cut_to_their_longest_row() -> None:
    pieces = list(micro_batches(batch(), 6, CPU))
    assert [index.tolist() for index, _ in pieces] == [[0], [2, 1]]
    _, second = pieces[1]
    assert second[columns.INPUT_IDS].tolist() == [[4, 14, 15], [3, 13, 0]]
    assert second[Columns.ACTIONS].tolist() == [[14, 15], [13, 0]]
    assert second[Columns.LOSS_MASK].tolist() == [[True, True], [True, False]]
    assert second[columns.GROUP_ID].tolist() == [6, 6]
    # Columns that a batch lacks, such as a reference's, are left out.
    assert columns.REF_LOGP not in second


def test_micro_batches_of_some_rows_name_rows_of_the_whole_batch() -> None:
    pieces = list(micro_batches(batch(), 100, CPU, rows=torch.tensor([1, 2])))
    assert [index.tolist() for index, _ in pieces] == [[2, 1]]
    assert pieces[0][1][columns.INPUT_IDS].shape == (2, 3)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert list(micro_batches(batch(), 100, CPU, rows=nothing)) == []
