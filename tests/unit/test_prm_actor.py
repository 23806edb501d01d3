"""What waits together is scored together, by a budget of tokens; without Ray."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from pure_rllib.algorithms import PURE, PUREConfig
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.prm.actors import (
    PRMActor,
    PRMPool,
    PRMPoolSettings,
    _Sent,
)
from pure_rllib.testing import HashScorer


def request(number: int, num_tokens: int = 10) -> ScoringRequest:
    ids = np.full(num_tokens - 1, number)
    spans = np.array([[0, num_tokens - 1]])
    return ScoringRequest(f"p{number}", None, np.array([number]), ids, spans, ("s",))


class CountingScorer(HashScorer):
    """Notes the sizes of its calls; overlong is whatever has more than 50 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.num_overlong = 0

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        self.calls.append(len(requests))
        self.num_overlong += sum(len(r.response_ids) > 50 for r in requests)
        if any(r.prompt == "p13" for r in requests):
            raise ValueError("no thirteen")
        return super().score(requests)


def test_what_waits_together_is_scored_together():
    scorer = CountingScorer()
    actor = PRMActor(scorer, PRMPoolSettings(batch_tokens=45))
    requests = [request(i, 60 if i == 5 else 10) for i in range(7)]

    async def ask_all():
        return await asyncio.gather(*(actor.score([r]) for r in requests))

    answers = asyncio.run(ask_all())
    # All wait when the work begins: four of ten tokens, one more, the long one alone.
    assert scorer.calls == [4, 1, 1, 1]
    expected = HashScorer().score(requests)
    for answer, scores in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer.scores[0], scores)
    assert sum((answer.counts for answer in answers), Counter()) == {"overlong": 1}


def test_an_error_of_the_scorer_reaches_the_caller_and_no_later_one():
    actor = PRMActor(CountingScorer(), PRMPoolSettings(batch_tokens=10))

    async def ask():
        with pytest.raises(ValueError, match="no thirteen"):
            await actor.score([request(13)])
        return await actor.score([request(1)])

    assert len(asyncio.run(ask()).scores) == 1


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_prm_actors": -1}, r"`num_prm_actors` \(-1\)"),
        ({"num_prm_actors": 1.5}, r"`num_prm_actors` \(1.5\)"),
        ({"prm_actor_kwargs": {"num_gpus": 1}}, "must be left out with"),
        (
            {"num_prm_actors": 1, "prm_actor_kwargs": {"num_gpu": 1}},
            r"unknown keys \['num_gpu'\]",
        ),
        (
            {"num_prm_actors": 1, "prm_actor_kwargs": {"batch_tokens": 0}},
            r"`batch_tokens` \(0\)",
        ),
        (
            {"num_prm_actors": 1, "prm_actor_kwargs": {"timeout_s": 0}},
            r"`timeout_s` \(0\)",
        ),
    ],
)
def test_wrong_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        PUREConfig().env_runners(**settings).validate()


class FakeHandle:
    """Stands for an actor's handle: its calls never end."""

    def __init__(self) -> None:
        self.score = self.pid = self
        self.num_batches = 0

    def remote(self, *requests: Sequence[ScoringRequest]) -> object:
        self.num_batches += len(requests)
        return object()


def test_an_actor_has_few_batches_at_a_time_and_the_others_wait():
    handles = [FakeHandle(), FakeHandle()]
    pool = PRMPool(handles, PRMPoolSettings(max_in_flight=2))
    requests, todo = [request(i) for i in range(7)], [[i] for i in range(7)]
    running: dict[object, _Sent] = {}
    pool._send(requests, todo, running)
    assert [handle.num_batches for handle in handles] == [2, 2]
    assert todo == [[0], [1], [2]]
    # One more goes out for each that is done, to the actor that has less to do.
    done = next(ref for ref, sent in running.items() if sent.actor == 1)
    del running[done]
    pool._send(requests, todo, running)
    assert [handle.num_batches for handle in handles] == [2, 3]
    assert len(todo) == 2 and len(running) == 4


@pytest.mark.parametrize(
    ("kwargs", "bundle"),
    [
        ({}, {"CPU": 1.0}),
        ({"num_gpus": 0.5}, {"CPU": 1.0, "GPU": 0.5}),
        ({"num_cpus": 0, "num_gpus": 1}, {"GPU": 1.0}),
        ({"num_cpus": 0}, None),
    ],
)
def test_a_trial_of_tune_asks_for_the_actors_places(kwargs, bundle):
    config = PUREConfig().env_runners(num_env_runners=2, num_cpus_per_env_runner=3)
    config.learners(num_learners=1)
    without = PURE.default_resource_request(config)
    config.env_runners(num_prm_actors=2, prm_actor_kwargs=kwargs)
    request = PURE.default_resource_request(config)
    assert request.bundles == without.bundles + [bundle] * (2 if bundle else 0)
    assert request.strategy == without.strategy == config.placement_strategy
    # As Tune asks: with the settings as a mapping.
    assert PURE.default_resource_request(config.to_dict()) == request


def test_a_main_process_without_resources_stays_so():
    config = PUREConfig().resources(num_cpus_for_main_process=0)
    config.learners(num_learners=1, num_cpus_per_learner=1)
    config.env_runners(num_prm_actors=1, prm_actor_kwargs={"num_cpus": 2})
    request = PURE.default_resource_request(config)
    assert request.head_bundle_is_empty
    assert request.bundles == [{"CPU": 1.0}, {"CPU": 2.0}]
