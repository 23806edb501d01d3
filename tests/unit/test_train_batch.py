"""Which groups are learned from together, and by which learner."""

import tracemalloc

import numpy as np
import pytest

from pure_rllib.learners.train_batch import (
    MiniBatchPlan,
    deal_by_tokens,
    plan_mini_batches,
)


def plan(**settings: object) -> MiniBatchPlan:
    arguments: dict = {
        "group_ids": [40, 41, 42, 43, 44],
        "groups_per_step": 2,
        "num_epochs": 3,
        "seed": 5,
        "iteration": 0,
        "max_response_tokens": 96,
        **settings,
    }
    return plan_mini_batches(**arguments)


def test_every_group_is_learned_from_once_per_epoch() -> None:
    steps = plan().mini_batches
    assert [len(step) for step in steps] == [2, 2, 1] * 3
    for epoch in range(3):
        seen = [i for step in steps[3 * epoch : 3 * epoch + 3] for i in step]
        assert sorted(seen) == [40, 41, 42, 43, 44]


def test_seed_and_iteration_fix_the_order() -> None:
    assert plan() == plan()
    orders = {
        plan(seed=seed, iteration=iteration).mini_batches
        for seed in range(3)
        for iteration in range(3)
    }
    assert len(orders) > 6
    first, second, _ = (plan().mini_batches[i : i + 3] for i in (0, 3, 6))
    assert first != second, "each epoch is shuffled anew"


def test_without_a_size_an_epoch_is_one_step() -> None:
    steps = plan(groups_per_step=None, num_epochs=2).mini_batches
    assert [sorted(step) for step in steps] == [[40, 41, 42, 43, 44]] * 2


def test_a_plan_holds_what_learners_must_agree_on() -> None:
    made = plan(iteration=7)
    assert (made.iteration, made.max_response_tokens) == (7, 96)
    assert all(type(i) is int for step in made.mini_batches for i in step)


def test_groups_are_dealt_by_hand() -> None:
    #        0   1   2   3     largest first: 1 -> A, 3 -> B, 0 -> B (6), 2 -> B (8)
    assert deal_by_tokens([2, 9, 2, 4], 2) == [[1], [0, 2, 3]]
    assert deal_by_tokens([5, 5, 5], 3) == [[0], [1], [2]]
    assert deal_by_tokens([3, 1, 2], 1) == [[0, 1, 2]]


def test_each_mini_batch_is_dealt_evenly_by_hand() -> None:
    # All in one step: 9 -> A, 8 -> B, 2 -> B (10), 1 -> A (10).
    assert deal_by_tokens([9, 8, 2, 1], 2) == [[0, 3], [1, 2]]
    # 9 with 8, 2 with 1: 9 -> A, 8 -> B, 2 -> B (fewer in all), 1 -> A.
    assert deal_by_tokens([9, 8, 2, 1], 2, [[0, 1], [2, 3]]) == [[0, 3], [1, 2]]
    # 9 with 1, 8 with 2: 9 -> A, 8 -> B, 2 -> A (B has 8 beside it), 1 -> B.
    assert deal_by_tokens([9, 8, 2, 1], 2, [[0, 3], [1, 2]]) == [[0, 2], [1, 3]]


def test_bundles_of_groups_stay_on_one_learner() -> None:
    # Bundles of 3 + 1, 2 + 9 and 4 tokens: 11 -> A, 4 and 4 -> B.
    assert deal_by_tokens([3, 1, 2, 9, 4], 2, together=2) == [[2, 3], [0, 1, 4]]


def test_no_learner_is_left_without_a_group() -> None:
    # Both steps' largest would go to the first learner, and nothing to the third.
    shares = deal_by_tokens([5, 5, 5], 3, [[0], [1], [2]])
    assert sorted(shares) == [[0], [1], [2]]


def test_a_group_costs_the_same_however_many_steps_there_are() -> None:
    tracemalloc.start()
    deal_by_tokens([7] * 500, 2, [[i] for i in range(500)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / 500 < 2000, "bytes of a group; a number of each step would be 4,000"


def real_sizes(rng: np.random.Generator, num_groups: int) -> list[int]:
    """Tokens of groups of 8 responses, with lengths as uneven as those of real ones."""
    lens = rng.lognormal(6.0, 0.8, size=(num_groups, 8)).clip(1, 8192)
    return [int(total) for total in lens.sum(axis=1)]


@pytest.mark.parametrize("num_learners", [2, 4, 8])
@pytest.mark.parametrize("groups_per_step", [None, 16])
def test_no_learner_has_far_more_tokens_than_the_mean(
    num_learners: int, groups_per_step: int | None
) -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        tokens = real_sizes(rng, 64)
        steps = plan(
            group_ids=range(64),
            groups_per_step=groups_per_step,
            num_epochs=1,
            seed=seed,
        ).mini_batches
        shares = deal_by_tokens(tokens, num_learners, steps)
        assert sorted(i for share in shares for i in share) == list(range(64))
        loads = [sum(tokens[i] for i in share) for share in shares]
        assert max(loads) <= 1.2 * np.mean(loads)


@pytest.mark.parametrize(
    ("num_learners", "num_epochs", "limit"),
    [(2, 1, 1.02), (4, 1, 1.05), (8, 1, 1.2), (2, 4, 1.1), (4, 4, 1.3)],
)
def test_learners_hardly_wait_for_each_other_in_optimiser_steps(
    num_learners: int, num_epochs: int, limit: float
) -> None:
    rng = np.random.default_rng(0)
    waited, worked, carefree = 0.0, 0.0, 0.0
    for seed in range(20):
        tokens = real_sizes(rng, 64)
        steps = plan(
            group_ids=range(64), groups_per_step=16, num_epochs=num_epochs, seed=seed
        ).mini_batches
        for mini_batches in (steps, ()):
            shares = deal_by_tokens(tokens, num_learners, mini_batches)
            loads = np.array(
                [
                    [sum(tokens[i] for i in {*share} & {*m}) for share in shares]
                    for m in steps
                ]
            )
            if mini_batches:
                waited += loads.max(axis=1).sum()
                worked += loads.mean(axis=1).sum()
            else:
                carefree += loads.max(axis=1).sum()
    # A step lasts as long as its slowest learner.
    assert waited / worked <= limit < carefree / worked


def test_as_many_groups_as_learners_give_each_one() -> None:
    assert all(len(share) == 1 for share in deal_by_tokens([900, 1, 1, 1], 4))
