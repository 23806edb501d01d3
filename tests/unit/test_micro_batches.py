"""Cutting rows into batches under a token budget, and a train batch by them."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.rllib.core.columns import Columns

from pure_rllib.models import columns
from pure_rllib.models.batching import cut_rows, micro_batches, token_budget_batches

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("lens", "budget", "longest_first", "expected"),
    [
        # 2 x 4 = 8 fits into 10, 3 x 4 = 12 does not; 2 x 3 = 6 does.
        ([3, 10, 4, 4, 2], 10, True, [[1], [2, 3], [0, 4]]),
        # 3 x 4 = 12 does not fit either, from the other end.
        ([3, 10, 4, 4, 2], 10, False, [[4, 0], [2, 3], [1]]),
        # A row over the budget is alone.
        ([3, 50, 40, 3], 8, True, [[1], [2], [0, 3]]),
        ([0, 2, 0], 8, False, [[1]]),
        ([], 8, True, []),
    ],
)
def test_batches_by_hand(
    lens: list[int], budget: int, longest_first: bool, expected: list[list[int]]
) -> None:
    batches = token_budget_batches(lens, budget, longest_first=longest_first)
    assert batches == expected


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.integers(1, 200),
    st.booleans(),
)
def test_budget_is_held_and_no_row_is_lost(
    lens: list[int], budget: int, longest_first: bool
) -> None:
    batches = token_budget_batches(lens, budget, longest_first=longest_first)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lens)))
    order = [lens[row] for batch in batches for row in batch]
    assert order == sorted(order, reverse=longest_first)
    for batch in batches:
        cost = len(batch) * max(lens[row] for row in batch)
        assert cost <= budget or len(batch) == 1


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
        # An algorithm's own: by token, by column, by step and by response.
        "targets": torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.0, 0.0], [0.5, 0.6, 0.0]]),
        "segments": torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0]]),
        "scores": torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]),
        "notes": ["no", "tensor", "here"],
    }


def test_micro_batches_are_cut_to_their_longest_row() -> None:
    pieces = list(micro_batches(batch(), cut_rows(batch(), 6), CPU))
    assert [index.tolist() for index, _ in pieces] == [[0], [2, 1]]
    _, second = pieces[1]
    assert second[columns.INPUT_IDS].tolist() == [[4, 14, 15], [3, 13, 0]]
    assert second[Columns.ACTIONS].tolist() == [[14, 15], [13, 0]]
    assert second[Columns.LOSS_MASK].tolist() == [[True, True], [True, False]]
    assert second[columns.GROUP_ID].tolist() == [6, 6]
    assert second["segments"].tolist() == [[0, 1, 1], [0, 1, 0]]
    torch.testing.assert_close(second["targets"], torch.tensor([[0.5, 0.6], [0.4, 0]]))
    torch.testing.assert_close(second["scores"], torch.tensor([[0.5, 0.6], [0.3, 0.4]]))
    assert "notes" not in second


def test_micro_batches_of_some_rows_name_rows_of_the_whole_batch() -> None:
    cuts = cut_rows(batch(), 100, torch.tensor([1, 2]))
    pieces = list(micro_batches(batch(), cuts, CPU))
    assert [index.tolist() for index, _ in pieces] == [[2, 1]]
    assert pieces[0][1][columns.INPUT_IDS].shape == (2, 3)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert cut_rows(batch(), 100, nothing) == []


def test_only_the_columns_asked_for_are_taken_and_none_is_missed() -> None:
    cuts = cut_rows(batch(), 6)
    for _, piece in micro_batches(batch(), cuts, CPU, columns=("targets",)):
        assert set(piece) == {"targets"}
    with pytest.raises(KeyError, match=r"`columns` has \['ref_logp'\], which the"):
        next(micro_batches(batch(), cuts, CPU, columns=("targets", columns.REF_LOGP)))
