"""Which groups are learned from together, and by which learner."""

import numpy as np
import pytest

from pure_rllib.algorithms.pure.train_batch import (
    GroupedTrainingData,
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


@pytest.mark.parametrize("num_learners", [2, 4, 8])
def test_no_learner_has_far_more_tokens_than_the_mean(num_learners: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        # 64 groups of 8 responses, with lengths as uneven as those of real ones.
        lens = rng.lognormal(6.0, 0.8, size=(64, 8)).clip(1, 8192)
        tokens = [int(total) for total in lens.sum(axis=1)]
        shares = deal_by_tokens(tokens, num_learners)
        assert sorted(i for share in shares for i in share) == list(range(64))
        loads = [sum(tokens[i] for i in share) for share in shares]
        assert max(loads) <= 1.2 * np.mean(loads)


def test_as_many_groups_as_learners_give_each_one() -> None:
    assert all(len(share) == 1 for share in deal_by_tokens([900, 1, 1, 1], 4))


def test_shards_hold_whole_groups() -> None:
    # References stand for groups: none of them is ever opened to be split.
    data = GroupedTrainingData(episodes_refs=list("abcd"), num_tokens=[2, 9, 2, 4])
    data.validate()
    shards = data.shard(2, minibatch_size=1)
    assert [shard.episodes_refs for shard, _ in shards] == [["b"], ["a", "c", "d"]]
    assert [extra for _, extra in shards] == [{}, {}]
