"""Process reward models in actors of their own, as one step scorer.

With no actors, the default, each env runner holds its PRM itself. What an actor was
lost with is Ray's to send again, once it has started the actor again.
"""

import asyncio
import logging
import os
from collections import Counter, deque
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
from ray.tune import PlacementGroupFactory
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pure_rllib.models.batching import token_budget_batches
from pure_rllib.rewards.base import ScoringRequest, StepScorer, counts_of
from pure_rllib.setting_types import (
    Count,
    NaturalNumber,
    NonNegativeFloat,
    PositiveFloat,
    check_fields,
)

logger = logging.getLogger(__name__)


def num_tokens(request: ScoringRequest) -> int:
    """Tokens of a request's prompt and response."""
    return len(request.prompt_ids) + len(request.response_ids)


LEAST_BUNDLE = {"memory": 1.0}
"""What an actor without CPUs and GPUs asks for: Ray makes no empty place."""


@dataclass(frozen=True, slots=True)
class PRMPoolSettings:
    """How a pool's actors are made and used.

    Attributes:
        num_cpus: of each actor.
        num_gpus: of each actor; may be a fraction.
        batch_tokens: tokens of prompts and responses that are sent, and scored,
            together. A longer response goes alone.
        max_in_flight: batches that one env runner has with one actor at a time; the
            others wait with the env runner, so that no actor's memory fills up.
        max_retries: how often a batch whose actor was lost is tried again.
        timeout_s: an actor that takes longer for what it scores together is stuck: it
            ends, and is started again. Loading the PRM counts. One that does not
            even notice, or does not come up, is killed by an env runner that has heard
            of none of its batches for twice as long; allow for those of other env
            runners that wait before them.

    Raises:
        ValueError: a setting is out of range.
    """

    num_cpus: NonNegativeFloat = 1.0
    num_gpus: NonNegativeFloat = 0.0
    batch_tokens: Count = 16_384
    max_in_flight: Count = 2
    max_retries: NaturalNumber = 3
    timeout_s: PositiveFloat = 1800.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def bundle(self) -> dict[str, float]:
        """What one actor takes, as a bundle of a placement group; empty: nothing."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: amount for name, amount in wanted.items() if amount}


class Scored(NamedTuple):
    """What an actor answers.

    Attributes:
        scores: one `[S]` float32 array per request.
        counts: what the scorer has counted since the answer before; of answers that
            were computed together the first has it.
        pid: the process that scored.
    """

    scores: list[np.ndarray]
    counts: Counter[str]
    pid: int


_Call = tuple[Sequence[ScoringRequest], "asyncio.Future[Scored]"]


class PRMActor:
    """Scores what several env runners send, together where it waits together.

    While a batch is being scored, calls wait; the next batch takes as many of them as
    the token budget allows, at least one. To be made a Ray actor.

    Args:
        scorer: a step scorer; a lazy one is loaded here, at the first call.
        settings: of them `batch_tokens` and `timeout_s`.
    """

    def __init__(self, scorer: StepScorer, settings: PRMPoolSettings):
        self._scorer, self._settings = scorer, settings
        self._waiting: deque[_Call] = deque()
        self._turn = asyncio.Lock()
        # The event loop stays free to take calls and to see that scoring is late.
        self._thread = ThreadPoolExecutor(1)
        self._counts: Counter[str] = Counter()

    async def pid(self) -> int:
        """Returns the process id, at once, whatever is being scored."""
        return os.getpid()

    async def score(self, requests: Sequence[ScoringRequest]) -> Scored:
        """Scores requests; errors of the scorer are the caller's."""
        answer: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._waiting.append((requests, answer))
        async with self._turn:
            # Turns come in the order of the calls, and one before may have scored this.
            if not answer.done():
                await self._score_together()
        return await answer

    async def _score_together(self) -> None:
        # Lets in those that have just come.
        await asyncio.sleep(0)
        batch = self._take()
        together = [request for requests, _ in batch for request in requests]
        loop = asyncio.get_running_loop()
        scoring = loop.run_in_executor(self._thread, self._scorer.score, together)
        await asyncio.wait([scoring], timeout=self._settings.timeout_s)
        if not scoring.done():
            logger.error(
                "A PRM actor is stuck with %d responses and ends, because "
                "`timeout_s` (%s) of `prm_actor_kwargs` is over.",
                len(together),
                self._settings.timeout_s,
            )
            # Nothing less ends a thread that hangs. Ray starts the actor again.
            os._exit(1)
        error = scoring.exception()
        if error is not None:
            for _, answer in batch:
                answer.set_exception(error)
            return
        before, self._counts = self._counts, counts_of(self._scorer)
        new, rows = self._counts - before, iter(scoring.result())
        for requests, answer in batch:
            scores = [next(rows) for _ in requests]
            answer.set_result(Scored(scores, new, os.getpid()))
            new = Counter()

    def _take(self) -> list[_Call]:
        batch: list[_Call] = []
        budget = self._settings.batch_tokens
        while self._waiting:
            budget -= sum(map(num_tokens, self._waiting[0][0]))
            if batch and budget < 0:
                break
            batch.append(self._waiting.popleft())
        return batch


class PRMActors:
    """The actors of a pool; they live as long as this object, or until `stop`.

    Ray starts an actor again whenever its process is lost, and sends it what it was
    lost with. Under Ray Tune each has a bundle of the trial's placement group, see
    `with_prm_bundles`.

    Args:
        scorer: what each actor holds; a lazy one is loaded there.
        num_actors: >= 1.
        settings: see `PRMPoolSettings`.
    """

    def __init__(self, scorer: StepScorer, num_actors: int, settings: PRMPoolSettings):
        self.names = [f"prm-{uuid4().hex[:12]}-{i}" for i in range(num_actors)]
        # Held here: an actor that is started again wants it again.
        self._scorer_ref = ray.put(scorer)
        actor_class: Any = ray.remote(PRMActor)
        self.actors = [
            actor_class.options(
                name=name,
                num_cpus=settings.num_cpus,
                num_gpus=settings.num_gpus,
                max_restarts=-1,
                max_task_retries=settings.max_retries,
                max_concurrency=1000,
                **place,
            ).remote(self._scorer_ref, settings)
            for name, place in zip(
                self.names, _places(num_actors, settings), strict=True
            )
        ]

    def stop(self) -> None:
        """Ends the actors."""
        for actor in self.actors:
            ray.kill(actor)


def with_prm_bundles(
    request: PlacementGroupFactory, config: Any
) -> PlacementGroupFactory:
    """Adds a bundle for each PRM actor to what a trial of Tune asks for.

    Args:
        request: RLlib's.
        config: the `LLMConfig`.

    Returns:
        The request with the actors' bundles at its end; none for actors that need
        neither CPUs nor GPUs.
    """
    bundle = PRMPoolSettings(**config.prm_actor_kwargs).bundle
    added = [bundle] * config.num_prm_actors if bundle else []
    # A main process that needs nothing is the first bundle, and left out by Ray.
    head: list[dict[str, float]] = [{}] if request.head_bundle_is_empty else []
    bundles = [bundle or LEAST_BUNDLE for bundle in request.bundles]
    return PlacementGroupFactory([*head, *bundles, *added], strategy=request.strategy)


def _places(num_actors: int, settings: PRMPoolSettings) -> list[dict[str, Any]]:
    """Returns the options that give each actor its place.

    An actor that took any free bundle of a trial might leave too little in it for the
    env runner or learner that it was meant for, which would then wait for ever.
    """
    group, bundle = ray.util.get_current_placement_group(), settings.bundle
    outside: list[dict[str, Any]] = [{"placement_group": None}] * num_actors
    if group is None or not bundle:
        return outside
    first = group.bundle_count - num_actors
    if first < 0 or group.bundle_specs[first:] != [bundle] * num_actors:
        logger.warning(
            "The placement group has no bundles for %d PRM actors of %s each at its "
            "end: they take resources beside it, and the run waits for ever where "
            "there are none. Have Tune ask `PURE.default_resource_request`, or add "
            "these bundles.",
            num_actors,
            bundle,
        )
        return outside
    return [
        {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, first + i)}
        for i in range(num_actors)
    ]


def check_prm_actors(config: Any) -> None:
    """Checks a configuration's settings of the pool.

    Raises:
        ValueError: a setting is unknown, out of range, or has no effect.
    """
    given = dict(config.prm_actor_kwargs)
    if given and not config.num_prm_actors:
        raise ValueError(
            f"`prm_actor_kwargs` ({given}) must be left out with `num_prm_actors` 0, "
            "because there are no actors. Set `.env_runners(num_prm_actors=1)`."
        )
    unknown = set(given) - set(PRMPoolSettings.__dataclass_fields__)
    if unknown:
        raise ValueError(
            f"`prm_actor_kwargs` has unknown keys {sorted(unknown)}; it may hold "
            f"{sorted(PRMPoolSettings.__dataclass_fields__)}."
        )
    PRMPoolSettings(**given)


def start_prm_actors(config: Any, scorer: StepScorer | None) -> PRMActors | None:
    """Starts the actors that a configuration asks for and notes their names in it.

    Args:
        config: the `LLMConfig`; not frozen.
        scorer: the environment's step scorer.

    Returns:
        The actors, or None if there are to be none.

    Raises:
        ValueError: there is nothing for them to hold.
    """
    config.prm_actor_names = None
    if not config.num_prm_actors:
        return None
    if scorer is None:
        raise ValueError(
            f"`num_prm_actors` ({config.num_prm_actors}) must be 0, because the "
            "environment has no step scorer and no reward model. Set "
            "`env_config={'prm': ...}`, or leave `num_prm_actors` out."
        )
    settings = PRMPoolSettings(**config.prm_actor_kwargs)
    actors = PRMActors(scorer, config.num_prm_actors, settings)
    config.prm_actor_names = actors.names
    return actors


def connected_scorer(config: Any, scorer: StepScorer | None) -> StepScorer | None:
    """Returns the pool that a configuration names, or the scorer itself."""
    names = getattr(config, "prm_actor_names", None)
    if not names:
        return scorer
    actors = [ray.get_actor(name) for name in names]
    return PRMPool(actors, PRMPoolSettings(**config.prm_actor_kwargs))


@dataclass(slots=True)
class _Sent:
    rows: list[int]
    actor: int
    pid: Any
    was_killed: bool = False


class PRMPool:
    """A step scorer that hands its requests to actors.

    Requests are cut into batches by token budget, the longest first. A batch whose
    actor is lost waits for Ray to start the actor again; meanwhile the others take what
    is left. Errors of the scorer itself are raised here as they are.

    Args:
        actors: handles of `PRMActor`s; at least one.
        settings: those that the actors were made with.

    Attributes:
        counts: what the scorers have counted so far, and `retries`: batches that were
            scored again because their actor was lost.
    """

    def __init__(self, actors: Sequence[Any], settings: PRMPoolSettings):
        self.actors = list(actors)
        self.settings = settings
        self.counts: Counter[str] = Counter()

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """See `StepScorer.score`.

        Raises:
            RuntimeError: a batch lost its actor too often, or no actor answers.
        """
        lengths = [num_tokens(request) for request in requests]
        # Sorted by length: the last, which is taken first, is the longest.
        todo = list(token_budget_batches(lengths, self.settings.batch_tokens))
        scores: list[np.ndarray] = [np.zeros(0, np.float32)] * len(requests)
        running: dict[Any, _Sent] = {}
        num_silences = 0
        while todo or running:
            self._send(requests, todo, running)
            done, _ = ray.wait(list(running), timeout=2 * self.settings.timeout_s)
            num_silences = 0 if done else num_silences + 1
            if num_silences:
                self._kill_silent(running.values(), num_silences)
            for ref in done:
                sent = running.pop(ref)
                scored = self._get(ref, sent)
                self.counts += scored.counts
                for row, row_scores in zip(sent.rows, scored.scores, strict=True):
                    scores[row] = row_scores
        return scores

    def _send(
        self,
        requests: Sequence[ScoringRequest],
        todo: list[list[int]],
        running: dict[Any, _Sent],
    ) -> None:
        """Hands out batches, each to the actor that has the least to do."""
        loads = [0] * len(self.actors)
        for sent in running.values():
            loads[sent.actor] += 1
        while todo and min(loads) < self.settings.max_in_flight:
            number = loads.index(min(loads))
            actor, rows = self.actors[number], todo.pop()
            pid = actor.pid.remote()
            ref = actor.score.remote([requests[i] for i in rows])
            running[ref] = _Sent(rows, number, pid)
            loads[number] += 1

    def _get(self, ref: Any, sent: _Sent) -> Scored:
        """Returns the answer to a batch."""
        try:
            scored: Scored
            scored, pid = ray.get([ref, sent.pid])
        except RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except RayActorError as error:
            is_gone = isinstance(error, ActorDiedError)
            lost = "for good" if is_gone else f"{self.settings.max_retries + 1} times"
            raise RuntimeError(
                f"{len(sent.rows)} responses could not be scored: their PRM actor was "
                f"lost {lost} ({error}). If it ran out of memory, lower `batch_tokens` "
                "in `prm_actor_kwargs` or `micro_batch_tokens` in `prm_kwargs`."
            ) from error
        # Ray does not tell that it sent a call again; the process that answers does.
        self.counts["retries"] += sent.was_killed or scored.pid != pid
        return scored

    def _kill_silent(self, running: Collection[_Sent], num_silences: int) -> None:
        """Has Ray start silent actors again, or raises where that did not help."""
        max_retries = self.settings.max_retries
        if num_silences > max_retries:
            waited = 2 * self.settings.timeout_s * num_silences
            raise RuntimeError(
                f"None of the {len(self.actors)} PRM actors answered in {waited:.0f} "
                f"s, though killed {max_retries} times to be started again. Look at "
                "their logs in Ray's session folder; `ray status` shows whether their "
                "CPUs and GPUs are there."
            )
        for number in {sent.actor for sent in running}:
            ray.kill(self.actors[number], no_restart=False)
        for sent in running:
            sent.was_killed = True
