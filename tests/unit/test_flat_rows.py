"""Rows laid out as one flat row, and dealt to flat rows under a budget, by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pure_rllib.models import columns
from pure_rllib.models.flat_rows import Segment, lay_out, pack_rows
from tests.unit.test_flat_attention import rows_of


def test_a_groups_prompt_stands_once() -> None:
    row = lay_out(
        rows_of(
            (7, [1, 2], [10, 11]),
            (3, [5], [20, 21, 22]),
            (7, [1, 2], [12]),
            (7, [1, 2], []),
        )
    )
    #                                p  p  a   a   c   |  alone
    assert row.token_ids.tolist() == [1, 2, 10, 11, 12, 5, 20, 21, 22]
    assert row.positions.tolist() == [0, 1, 2, 3, 2, 0, 1, 2, 3]
    assert row.places.tolist() == [
        [0, 1, 2, 3],
        [5, 6, 7, 8],
        [0, 1, 4, 0],
        [0, 1, 0, 0],
    ]
    assert row.segments == (
        Segment(0, 2, 0, 0),
        Segment(2, 4, 0, 2),
        Segment(4, 5, 0, 2),
        Segment(5, 9, 5, 5),
    )


@pytest.mark.parametrize(
    ("prompts", "num_shared"),
    [
        # Turns and tools: prompts of a group that part after a while, or end earlier.
        (([1, 2, 3, 4], [1, 2, 5]), 2),
        (([1, 2, 3], [1, 2]), 2),
        # The first response goes on as the second prompt does: still a response.
        (([1, 2], [1, 2, 10]), 2),
        # Alike again further on: only a beginning is shared.
        (([1, 2, 3], [4, 2, 3]), 0),
    ],
)
def test_the_longest_common_beginning_of_prompts_is_shared(
    prompts: tuple[list[int], list[int]], num_shared: int
) -> None:
    one, other = prompts
    row = lay_out(rows_of((0, one, [10]), (0, other, [10, 12])))
    assert len(row.token_ids) == len(one) + len(other) + 3 - num_shared
    shared = row.places[0] == row.places[1]
    assert int(shared[: len(one)].sum()) == num_shared
    alike = [i for i in range(len(one)) if row.places[0, i] == row.places[1, i]]
    assert alike == list(range(num_shared))


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        # Group 0: a prompt of 4 and responses of 3, 3, 2; group 1: alone, 5; group 2:
        # alone, 3. All of it is 20.
        (20, [[0, 1, 2, 3, 4]]),
        # 12 and 5 fit into 17; 3 is left.
        (17, [[0, 1, 2, 3], [4]]),
        # The group is cut, 10 and 6, each with the prompt; 3 goes with the 6.
        (10, [[0, 1], [2, 4], [3]]),
        # The prompt alone is over the budget: one response at a time.
        (3, [[0], [1], [2], [3], [4]]),
    ],
)
def test_groups_are_whole_where_they_fit(
    budget: int, expected: list[list[int]]
) -> None:
    prompt = [1, 2, 3, 4]
    batch = rows_of(
        (0, prompt, [10] * 3),
        (0, prompt, [11] * 3),
        (0, prompt, [12] * 2),
        (1, [5], [13] * 4),
        (2, [6], [14] * 2),
    )
    assert pack_rows(batch, budget) == expected


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(0, 9)),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 60),
)
def test_no_row_is_lost_and_budgets_are_held(
    sizes: list[tuple[int, int, int]], budget: int
) -> None:
    batch = rows_of(*((group, list(range(p)), [50 + r] * r) for group, p, r in sizes))
    packs = pack_rows(batch, budget)
    assert sorted(row for pack in packs for row in pack) == list(range(len(sizes)))
    squares = []
    for pack in packs:
        cut = {name: column[pack] for name, column in batch.items()}
        row = lay_out(cut)
        assert len(pack) == 1 or len(row.token_ids) <= budget
        row_lens = (cut[columns.PROMPT_LENS] + cut[columns.RESPONSE_LENS]).tolist()
        for ids, places, length in zip(
            cut[columns.INPUT_IDS], row.places, row_lens, strict=True
        ):
            assert torch.equal(row.token_ids[places[:length]], ids[:length])
            assert row.positions[places[:length]].tolist() == list(range(length))
        ends = [segment.stop for segment in row.segments]
        assert [0, *ends[:-1]] == [segment.start for segment in row.segments]
        assert ends[-1] == len(row.token_ids)
        squares.append(sum(length**2 for length in row_lens))
    assert squares == sorted(squares, reverse=True)
