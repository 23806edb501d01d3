"""Rows of groups are evened out over learners; a split group pays its prompt again."""

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns

from pure_rllib.learners.balance import RowSizes, _joined, even_out
from pure_rllib.learners.train_batch import deal_by_tokens
from pure_rllib.models import columns


def sizes(*rows: tuple[int, int, int, int]) -> RowSizes:
    """Of rows (owner, group, prompt tokens, own tokens)."""
    return RowSizes(*np.array(rows, dtype=np.int64).T)


def loads_of(rows: RowSizes, owner: np.ndarray, num_learners: int) -> list[int]:
    """Each learner's tokens, counted group by group."""
    loads = [0] * num_learners
    for learner in range(num_learners):
        held = np.flatnonzero(owner == learner)
        prompts = {int(rows.group[i]): int(rows.shared[i]) for i in held}
        loads[learner] = sum(prompts.values()) + int(rows.own[held].sum())
    return loads


def test_a_row_is_given_by_hand() -> None:
    # A has 4 + 5 + 3 + 2 = 14, B has 4 + 1. What A gives costs B the prompt of 4, too:
    # the 5 leaves 9 and 14, the 3 leaves 11 and 12, the 2 leaves 12 and 11. With the 1
    # in exchange, A has its prompt as well: 13, 15 or 16.
    rows = sizes((0, 0, 4, 5), (0, 0, 4, 3), (0, 0, 4, 2), (1, 1, 4, 1))
    owner, imbalance = even_out(rows, 2)
    assert loads_of(rows, owner, 2) == [11, 12]
    assert owner.tolist() == [0, 1, 0, 1]
    assert imbalance == pytest.approx(12 / 11.5)


def test_rows_change_places_where_none_can_be_given() -> None:
    # 9 + 6 and 4 + 3: to give the 6 leaves 9 and 13; 6 for 3 leaves 12 and 10.
    rows = sizes((0, 0, 0, 9), (0, 1, 0, 6), (1, 2, 0, 4), (1, 3, 0, 3))
    owner, imbalance = even_out(rows, 2)
    assert sorted(loads_of(rows, owner, 2)) == [10, 12]
    assert imbalance == pytest.approx(12 / 11)


def test_a_prompt_longer_than_the_difference_is_not_passed_twice() -> None:
    rows = sizes(*[(0, 0, 90, 10)] * 4, *[(1, 1, 90, 5)] * 4)
    owner, imbalance = even_out(rows, 2)
    assert owner.tolist() == rows.owner.tolist()
    assert imbalance == pytest.approx(130 / 120)
    # Where rows are padded each brings its own prompt anyway.
    apart = sizes(*[(0, 0, 0, 100)] * 5, *[(1, 1, 0, 100)] * 3)
    assert even_out(apart, 2)[1] == 1.0


@pytest.mark.parametrize("packing", [True, False])
def test_128_rows_on_8_learners(packing: bool) -> None:
    rng = np.random.default_rng(0)
    split = 0
    for _ in range(10):
        # As long as solutions of mathematics: 104 tokens of prompts, 400 of responses.
        own = rng.lognormal(5.8, 0.6, size=(16, 8)).clip(1, 2110).astype(np.int64)
        prompts = np.repeat(rng.integers(52, 156, size=16), 8)
        dealt = deal_by_tokens((own.sum(axis=1) + prompts[::8] * 8).tolist(), 8)
        of_group = np.zeros(16, dtype=np.int64)
        for learner, groups in enumerate(dealt):
            of_group[groups] = learner
        rows = RowSizes(
            np.repeat(of_group, 8),
            np.repeat(np.arange(16), 8),
            prompts * packing,
            own.ravel() + prompts * (not packing),
        )
        whole = loads_of(rows, rows.owner, 8)
        owner, imbalance = even_out(rows, 8)
        loads = loads_of(rows, owner, 8)
        assert imbalance == pytest.approx(max(loads) / np.mean(loads))
        assert imbalance < 1.02
        assert max(loads) <= max(whole)
        split += int(max(whole) > 1.05 * np.mean(whole))
    assert split, "whole groups would do"


def test_rows_of_learners_are_padded_to_the_widest() -> None:
    def rows(prompt: int, lens: list[int], width: int) -> dict[str, torch.Tensor]:
        return {
            columns.PROMPT_LENS: torch.full((len(lens),), prompt),
            columns.RESPONSE_LENS: torch.tensor(lens),
            columns.STEP_ENDS: torch.zeros(len(lens), width, dtype=torch.long),
            Columns.ACTIONS: torch.ones(len(lens), width, dtype=torch.long),
        }

    plain, turns = rows(2, [3, 1], 3), rows(4, [2], 2)
    turns[columns.ACTION_POSITIONS] = torch.tensor([[4, 8]])
    joined = _joined([plain, turns])
    assert joined[columns.RESPONSE_LENS].tolist() == [3, 1, 2]
    assert joined[Columns.ACTIONS].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    assert joined[columns.STEP_ENDS].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, -1]]
    assert joined[columns.ACTION_POSITIONS].tolist() == [
        [2, 3, 4],
        [2, 0, 0],
        [4, 8, 0],
    ]
    assert columns.row_lens(joined).tolist() == [5, 3, 9]
