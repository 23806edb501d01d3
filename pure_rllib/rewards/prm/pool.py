"""Process reward models in actors of their own, as one step scorer.

With no actors, the default, each env runner holds its PRM itself.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.tune import PlacementGroupFactory
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pure_rllib.models.batching import token_budget_batches
from pure_rllib.rewards.base import ScoringRequest, StepScorer
from pure_rllib.rewards.prm.actor import PRMActor, num_tokens

logger = logging.getLogger(__name__)

_PING_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class PRMPoolSettings:
    """How a pool's actors are made and used.

    Attributes:
        num_cpus: of each actor, >= 0.
        num_gpus: of each actor, >= 0; may be a fraction.
        batch_tokens: tokens of prompts and responses that are sent, and scored,
            together; >= 1. A longer response goes alone.
        max_in_flight: batches that one env runner has with one actor at a time, >= 1;
            the others wait with the env runner, so that no actor's memory fills up.
        max_retries: how often a batch whose actor was lost is tried again, >= 0.
        timeout_s: an actor that takes longer for one batch, or to come up, is stuck:
            it is killed and started again; > 0. Loading the PRM counts, and so do the
            batches of other env runners that wait before this one: allow for
            `max_in_flight` of each env runner.

    Raises:
        ValueError: a setting is out of range.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch_tokens: int = 16_384
    max_in_flight: int = 2
    max_retries: int = 3
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        least = {"num_cpus": 0, "num_gpus": 0, "batch_tokens": 1, "max_in_flight": 1}
        for name, low in {**least, "max_retries": 0}.items():
            if not getattr(self, name) >= low:
                raise ValueError(
                    f"`{name}` ({getattr(self, name)}) of `prm_actor_kwargs` must be "
                    f">= {low}. Leave it out for {PRMPoolSettings.__name__}'s default."
                )
        if not self.timeout_s > 0:
            raise ValueError(
                f"`timeout_s` ({self.timeout_s}) of `prm_actor_kwargs` must be > 0, "
                "because every batch would be late. Set it to 1800."
            )


class PRMActors:
    """The actors of a pool; they live as long as this object, or until `stop`.

    Ray starts an actor again whenever its process is lost. Under Ray Tune each has a
    bundle of the trial's placement group, see `with_prm_bundles`.

    Args:
        scorer: what each actor holds; a deferred one is loaded there.
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
                max_concurrency=1000,
                **place,
            ).remote(self._scorer_ref, settings.batch_tokens)
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
        config: the `PUREConfig`.

    Returns:
        The request with the actors' bundles at its end; none for actors that need
        neither CPUs nor GPUs.
    """
    bundle = _bundle(PRMPoolSettings(**config.prm_actor_kwargs))
    added = [bundle] * config.num_prm_actors if bundle else []
    # A main process that needs nothing is the first bundle, and left out by Ray.
    head: list[dict[str, float]] = [{}] if request.head_bundle_is_empty else []
    return PlacementGroupFactory(
        [*head, *request.bundles, *added], strategy=request.strategy
    )


def _bundle(settings: PRMPoolSettings) -> dict[str, float]:
    wanted = {"CPU": settings.num_cpus, "GPU": settings.num_gpus}
    return {name: amount for name, amount in wanted.items() if amount}


def _places(num_actors: int, settings: PRMPoolSettings) -> list[dict[str, Any]]:
    """Returns the options that give each actor its place.

    An actor that took any free bundle of a trial might leave too little in it for the
    env runner or learner that it was meant for, which would then wait for ever.
    """
    group, bundle = ray.util.get_current_placement_group(), _bundle(settings)
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
        config: the `PUREConfig`; not frozen.
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
            "environment has no step scorer. Set `env_config={'prm': ...}`, or leave "
            "`num_prm_actors` out."
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
class _Batch:
    rows: list[int]
    requests: list[ScoringRequest]
    num_tries: int = 0
    started: float = 0.0
    actor: int = 0


class PRMPool:
    """A step scorer that hands its requests to actors.

    Requests are cut into batches by token budget, the longest first. A batch whose
    actor is lost goes to another one; an actor that was lost gets nothing until it
    answers again. Errors of the scorer itself are raised here as they are.

    Args:
        actors: handles of `PRMActor`s; at least one.
        settings: see `PRMPoolSettings`.

    Attributes:
        counts: what the scorers have counted so far, and `retries`: batches that were
            sent again.
    """

    def __init__(self, actors: Sequence[Any], settings: PRMPoolSettings | None = None):
        self.actors = list(actors)
        self.settings = settings or PRMPoolSettings()
        self.counts: Counter[str] = Counter()
        # Where an actor is down: when it is to be asked again, and since when it is.
        self._down: dict[int, tuple[float, float]] = {}

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """See `StepScorer.score`.

        Raises:
            RuntimeError: a batch lost its actor too often, or no actor comes up.
        """
        lengths = [num_tokens(request) for request in requests]
        # Sorted by length: the last, which is taken first, is the longest.
        todo = [
            _Batch(rows, [requests[i] for i in rows])
            for rows in token_budget_batches(lengths, self.settings.batch_tokens)
        ]
        scores: list[np.ndarray] = [np.zeros(0, np.float32)] * len(requests)
        running: dict[Any, _Batch] = {}
        while todo or running:
            self._ask_after_the_lost()
            self._send(todo, running)
            if not running:
                self._check_that_one_may_come_back()
                continue
            done, _ = ray.wait(list(running), num_returns=1, timeout=_PING_EVERY_S)
            for ref in done:
                batch = running.pop(ref)
                try:
                    scored = ray.get(ref)
                except RayTaskError as error:
                    # The scorer's own: it would fail the same way anywhere.
                    raise error.as_instanceof_cause() from None
                except RayActorError as error:
                    self._lost(batch, error)
                    todo.append(batch)
                    continue
                self.counts += scored.counts
                for row, row_scores in zip(batch.rows, scored.scores, strict=True):
                    scores[row] = row_scores
            self._kill_the_stuck(running.values())
        return scores

    def _send(self, todo: list[_Batch], running: dict[Any, _Batch]) -> None:
        """Hands out batches, each to the actor that has the least to do."""
        loads = {
            i: sum(batch.actor == i for batch in running.values())
            for i in range(len(self.actors))
            if i not in self._down
        }
        while todo and loads:
            actor = min(loads, key=lambda i: loads[i])
            if loads[actor] >= self.settings.max_in_flight:
                return
            batch = todo.pop()
            batch.actor, batch.started = actor, monotonic()
            running[self.actors[actor].score.remote(batch.requests)] = batch
            loads[actor] += 1

    def _lost(self, batch: _Batch, error: RayActorError) -> None:
        """Notes that an actor died with a batch; the batch may be tried again."""
        now = monotonic()
        self._down.setdefault(batch.actor, (now, now))
        batch.num_tries += 1
        self.counts["retries"] += 1
        if batch.num_tries > self.settings.max_retries:
            raise RuntimeError(
                f"{len(batch.requests)} responses could not be scored: their PRM actor "
                f"was lost {batch.num_tries} times ({error}). If it ran out of memory, "
                "lower `batch_tokens` in `prm_actor_kwargs` or `micro_batch_tokens` in "
                "`prm_kwargs`."
            ) from error

    def _ask_after_the_lost(self) -> None:
        """Takes back actors that answer again."""
        for actor, (ask_at, since) in list(self._down.items()):
            if monotonic() < ask_at:
                continue
            try:
                ray.get(self.actors[actor].ping.remote(), timeout=_PING_EVERY_S)
                del self._down[actor]
            except (RayActorError, GetTimeoutError):
                self._down[actor] = (monotonic() + _PING_EVERY_S, since)

    def _check_that_one_may_come_back(self) -> None:
        """Waits a little where all actors are down; raises where it was too long."""
        waited = monotonic() - max(since for _, since in self._down.values())
        if waited > self.settings.timeout_s:
            raise RuntimeError(
                f"None of the {len(self.actors)} PRM actors came up again in "
                f"{waited:.0f} s. Look at their logs in Ray's session folder; "
                "`ray status` shows whether their CPUs and GPUs are there."
            )
        next_at = min(ask_at for ask_at, _ in self._down.values())
        sleep(max(0.0, next_at - monotonic()))

    def _kill_the_stuck(self, running: Any) -> None:
        """Kills actors whose batch is late; Ray starts them again."""
        now = monotonic()
        for batch in running:
            is_late = now - batch.started > self.settings.timeout_s
            if is_late and batch.actor not in self._down:
                self._down[batch.actor] = (now, now)
                ray.kill(self.actors[batch.actor], no_restart=False)
