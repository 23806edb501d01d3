"""Who samples which prompt where env runners go on while weights change."""

from collections import Counter
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from pure_rllib.rollouts.in_flight import FlightPlan


def group(group_id: int) -> Any:
    return SimpleNamespace(group_id=group_id)


def asked(plan: FlightPlan, count: int) -> FlightPlan:
    ticket: Any = None
    plan.ask(dict.fromkeys(range(plan.end, plan.end + count), ticket))
    return plan


def test_an_env_runner_gets_prompts_as_it_finishes_them() -> None:
    plan = asked(FlightPlan(), 4)
    plan.deal([1, 2])
    assert [list(plan.news(i)) for i in (1, 2)] == [[0, 2], [1, 3]]
    assert plan.news(1) == {}, "it is told once"
    # The second one is fast: both new prompts are its own.
    plan.finish(2, group(1))
    plan.finish(2, group(3))
    asked(plan, 2).deal([1, 2])
    assert [list(plan.news(i)) for i in (1, 2)] == [[], [4, 5]]


def test_what_a_lost_env_runner_had_goes_to_others_first() -> None:
    plan = asked(FlightPlan(), 4)
    plan.deal([1, 2])
    plan.finish(1, group(0))
    asked(plan, 1)
    assert plan.lose(1) == 1
    plan.deal([])
    assert sorted(plan.waiting) == [2, 4]
    plan.deal([2])
    assert list(plan.held[2]) == [1, 3, 2, 4]
    assert plan.lose(1) == 0


@pytest.mark.parametrize("lag", [1, 2, 4])
def test_batches_are_whole_in_order_and_at_most_k_versions_old(lag: int) -> None:
    random, plan, num_prompts = Random(lag), FlightPlan(), 3
    begun: dict[int, int] = {}
    learned: list[int] = []
    for version in range(12):
        cursor = len(learned)
        asked(plan, cursor + (lag + 1) * num_prompts - plan.end)
        ids = range(cursor, cursor + num_prompts)
        while not plan.finished.keys() >= {*ids}:
            plan.deal([1, 2])
            for runner in (1, 2):
                begun |= dict.fromkeys(plan.news(runner), version)
            runner = random.choice([i for i in (1, 2) if plan.held[i]])
            if random.random() < 0.1:
                plan.lose(runner)
            elif plan.held[runner]:
                plan.finish(runner, group(random.choice(list(plan.held[runner]))))
        learned += [one.group_id for one in plan.take(ids)]
        # The first token is the oldest.
        assert all(0 <= version - begun[i] <= lag for i in ids)
        assert plan.end - len(learned) <= (lag + 1) * num_prompts
    assert learned == list(range(12 * num_prompts))
    assert max(Counter(learned).values()) == 1
