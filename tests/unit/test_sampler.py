"""Which prompts a batch asks, with what weights, while one is ahead."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pure_rllib.algorithms import PUREConfig
from pure_rllib.data.order import ProblemOrder
from pure_rllib.reporting.records import ResponseRecord
from pure_rllib.rollouts.group import Group
from pure_rllib.rollouts.runner_sample import RunnerSample
from pure_rllib.rollouts.sampler import Sampler, mark_lags

NUM_PROBLEMS = 5


class FakeEnvRunner:
    """Answers every prompt; only problem 0 teaches anything."""

    def sample(
        self, *, tickets: Any, group_ids: Any, weights: Any, **kwargs: Any
    ) -> RunnerSample:
        groups = [
            Group(i, [], 2, [record(ticket, i, weights, n) for n in (0, 1)])
            for ticket, i in zip(tickets, group_ids, strict=True)
        ]
        return RunnerSample(groups, {"sample": 1.0, "total": 1.0})


def record(ticket: Any, group_id: int, weights: Any, number: int) -> ResponseRecord:
    return ResponseRecord(
        group_id=str(group_id),
        prompt="",
        answer="1",
        response_text="",
        response_tokens=None,
        token_ids=[0],
        step_spans=[(0, 1)],
        step_rewards=np.zeros(1),
        verifiable_reward=float(number == 1 and ticket.index == 0),
        metadata={
            "problem_id": str(ticket.index),
            "epoch": ticket.epoch,
            "weights_version": weights.version,
        },
    )


class Run:
    """What the algorithm does with a sampler, and a checkpoint of it."""

    def __init__(self, cursor: int = 0, version: int = 0, **settings: Any):
        # The local env runner begins a batch when it is collected, which changes when
        # it is sampled but not with which prompts and weights.
        group: Any = SimpleNamespace(
            local_env_runner=FakeEnvRunner(), num_remote_env_runners=lambda: 0
        )
        config = PUREConfig().env_runners(num_prompts=2).training(**settings)
        sync: Any = None  # asked before remote env runners begin
        order = ProblemOrder(NUM_PROBLEMS, 0)
        self.sampler = Sampler(group, sync, order, config)
        self.cursor, self.version = cursor, version
        self.asked: list[tuple[int, str]] = []
        self.lags: list[set[int]] = []

    def iterate(self) -> None:
        weights: Any = SimpleNamespace(version=self.version)
        batch = self.sampler.next_batch(self.cursor, weights)
        assert [g.group_id for g in batch.groups] == list(
            range(self.cursor, self.cursor + len(batch.groups))
        )
        mark_lags(batch.groups, self.version)
        first = [g.records[0].metadata for g in batch.groups]
        self.asked += [(m["epoch"], m["problem_id"]) for m in first]
        self.lags.append({m["weights_lag"] for m in first})
        self.cursor += len(batch.groups)
        self.version += 1


@pytest.mark.parametrize("lag", [1, 2, 4])
def test_k_batches_ahead_are_k_versions_old(lag: int) -> None:
    run = Run(max_weight_lag=lag)
    for _ in range(7):
        run.iterate()
    # The first batch is sampled alone, and k more with its weights.
    assert run.lags == [{min(i, lag)} for i in range(7)]
    assert len(run.sampler._pending) == lag
    strict = Run()
    for _ in range(7):
        strict.iterate()
    assert strict.lags == [{0}] * 7
    assert strict.asked == run.asked


def test_a_refill_comes_with_the_newest_weights_and_before_the_next_batch() -> None:
    run = Run(
        max_weight_lag=1,
        no_signal_groups="refill",
        max_refill_rounds=1,
        process_reward_coeff=0.0,
    )
    for _ in range(3):
        run.iterate()
    assert run.lags[0] == {0}
    # Every batch begins with prompts that were asked ahead; some need a refill.
    assert all(1 in lags for lags in run.lags[1:])
    assert {0, 1} in run.lags[1:]
    assert len(set(run.asked)) == len(run.asked)


@given(
    st.lists(st.sampled_from(["go on", "restore", "rewind"]), max_size=12),
    st.sampled_from([0, 1, 2, 4]),
)
def test_no_prompt_is_lost_or_doubled_whatever_is_restored(
    events: list[str], lag: int
) -> None:
    run = Run(max_weight_lag=lag)
    for event in events:
        if event == "restore":  # in another process
            other = Run(run.cursor, run.version, max_weight_lag=lag)
            other.asked, run = run.asked, other
        elif event == "rewind":  # in place: back before the iteration that follows
            cursor, version, asked = run.cursor, run.version, list(run.asked)
            run.iterate()
            run.sampler.drop()
            run.cursor, run.version, run.asked = cursor, version, asked
        run.iterate()
    tickets = ProblemOrder(NUM_PROBLEMS, 0).take(0, run.cursor)
    assert run.asked == [(t.epoch, str(t.index)) for t in tickets]
    for start in range(0, len(run.asked) - NUM_PROBLEMS + 1, NUM_PROBLEMS):
        assert len(set(run.asked[start : start + NUM_PROBLEMS])) == NUM_PROBLEMS


def test_what_is_not_under_way_need_not_be_waited_for() -> None:
    run = Run()
    run.iterate()
    assert run.sampler.wait() == []


def test_lost_groups_are_asked_under_their_own_numbers() -> None:
    run = Run()
    weights: Any = SimpleNamespace(version=3)
    again = run.sampler.sample_again([1, 6], weights)
    tickets = ProblemOrder(NUM_PROBLEMS, 0).take(0, 7)
    assert [g.group_id for g in again] == [1, 6]
    assert [g.records[0].metadata["problem_id"] for g in again] == [
        str(tickets[1].index),
        str(tickets[6].index),
    ]
