"""Env runners that go on from turn to turn, as real actors that sample nothing."""

import os
import random
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pure_rllib.algorithms import PUREConfig
from pure_rllib.data.order import ProblemOrder
from pure_rllib.reporting.records import ResponseNumbers
from pure_rllib.rollouts.group import Group
from pure_rllib.rollouts.in_flight import InFlightSampler
from pure_rllib.rollouts.runner_sample import RunnerSample

LAG, NUM_PROMPTS, NUM_PROBLEMS = 2, 3, 7


@ray.remote(num_cpus=0, max_restarts=1)
class Runner:
    """Finishes one of its prompts a turn, whichever."""

    def __init__(self, number: int):
        self.random = random.Random(number)
        self.under_way: dict[int, tuple[Any, int]] = {}

    def advance_apart(
        self, *, tickets: Any, group_ids: Any, weights: Any, anew: bool
    ) -> tuple[RunnerSample, list[Any]]:
        if anew:
            self.under_way = {}
        for ticket, i in zip(tickets, group_ids, strict=True):
            self.under_way[i] = (ticket.index, weights.version)
        done = self.random.choice(list(self.under_way))
        problem, version = self.under_way.pop(done)
        numbers: Any = SimpleNamespace(
            metadata={"problem_id": problem, "weights_version": version}
        )
        group = Group(done, [], 2, [numbers])
        return RunnerSample([group], {"total": 0.1}, logp_gap=0.0), [done]

    def stop(self) -> None:
        os._exit(1)


class Runners:
    """What the sampler asks of RLlib's group of env runners."""

    def __init__(self) -> None:
        runner: Any = Runner
        self.made = {i: runner.remote(i) for i in (1, 2)}
        self.healthy = {1, 2}
        self._worker_manager = self
        self._remote_config = SimpleNamespace(sample_timeout_s=60.0)

    def actors(self) -> dict[int, Any]:
        return self.made

    def healthy_env_runner_ids(self) -> list[int]:
        return sorted(self.healthy)

    def set_actor_state(self, i: int, healthy: bool) -> None:
        self.healthy -= {i}


@pytest.mark.slow
def test_batches_are_whole_whatever_is_lost_or_dropped(ray_cluster: None) -> None:
    runners: Any = Runners()
    sync: Any = None
    config = PUREConfig().env_runners(num_prompts=NUM_PROMPTS)
    config.training(max_weight_lag=LAG)
    order = ProblemOrder(NUM_PROBLEMS, 0)
    sampler = InFlightSampler(runners, sync, order, config)
    tickets = order.take(0, 12 * NUM_PROMPTS)
    lags = []
    for version in range(12):
        if version == 5:
            runners.made[1].stop.remote()
        if version == 8:
            sampler.drop()
        cursor = version * NUM_PROMPTS
        weights: Any = SimpleNamespace(version=version)
        batch = sampler.next_batch(cursor, weights)
        assert [g.group_id for g in batch.groups] == [*range(cursor, cursor + 3)]
        for group in batch.groups:
            numbers: ResponseNumbers = group.records[0]
            assert numbers.metadata["problem_id"] == tickets[group.group_id].index
            assert ray.get(group.episodes) == [group.group_id]
            lags.append(version - numbers.metadata["weights_version"])
        assert sampler._plan.end == cursor + (LAG + 1) * NUM_PROMPTS
    assert 0 <= min(lags) <= max(lags) <= LAG
    assert max(lags) > 0, "later prompts were not asked ahead"
    assert runners.healthy == {2}
    assert sampler.wait(10.0) == []
    sampler.close()
    assert not sampler._thread.is_alive()


@pytest.mark.slow
def test_what_an_env_runner_raises_is_raised(ray_cluster: None) -> None:
    runners: Any = Runners()
    sync: Any = None
    config = PUREConfig().env_runners(num_prompts=1).training(max_weight_lag=1)
    sampler = InFlightSampler(runners, sync, ProblemOrder(1, 0), config)
    # The fake's own error: weights have a version.
    with pytest.raises(AttributeError, match="version"):
        sampler.next_batch(0, None)  # type: ignore[arg-type]
    sampler.close()
