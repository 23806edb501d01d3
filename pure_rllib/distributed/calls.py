"""Calling all learners at once, and knowing at once when one of them is gone."""

from collections.abc import Callable, Collection, Iterable, Sequence
from time import monotonic
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.rllib.core.learner.learner_group import LearnerGroup

from pure_rllib.distributed.collectives import CollectiveBrokenError
from pure_rllib.distributed.watchdog import last_beats, timeout_error

_Result = TypeVar("_Result")

GRACE_S = 5.0
"""How long to listen to the other learners once one has failed."""

LOST_GRACE_S = 20.0
"""The same, once a collective broke: the loss of another learner that did it may be
noticed later than its effect."""

_POLL_S = 1.0
_LOSSES = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)


class LearnerLostError(RuntimeError):
    """A learner or its answer is gone; the run cannot go on, but it can be resumed."""


def on_learners(
    learners: LearnerGroup,
    function: Callable[..., _Result],
    shares: Sequence[Any] | None = None,
    *,
    only: Collection[int] | None = None,
) -> list[_Result]:
    """Calls a function with every learner.

    Args:
        learners: local or remote.
        function: called with a learner, and with its share if there are any.
        shares: one per learner.
        only: numbers of the remote learners to call; None: all.

    Returns:
        One result per learner, the first learner's first.

    Raises:
        LearnerLostError: a learner's process died, or its answer was lost before it
            arrived. Learners that still wait for it after `GRACE_S` are stopped.
        CollectiveTimeoutError: a learner waited for another for longer than
            `collective_timeout_s`. All learners are stopped then.
        Exception: what a learner raised, or another error of Ray's. The learner lives;
            learners that still wait for it after `GRACE_S` are stopped.
    """
    # Not by RLlib's `foreach_learner`: it waits for all learners before it looks at
    # any, and drops those that raised something from later calls.
    arguments = [()] if shares is None else [(share,) for share in shares]
    if learners.is_local:
        return [function(learners._learner, *arguments[0])]
    actors = learners._worker_manager.actors()
    if only is not None:
        actors = {i: actors[i] for i in only}
    if shares is None:
        arguments = arguments * len(actors)
    calls = {
        actor.apply.remote(function, *own): i
        for (i, actor), own in zip(sorted(actors.items()), arguments, strict=True)
    }
    results: dict[int, _Result] = {}
    errors: dict[int, Exception] = {}
    timeout_s = learners.config.collective_timeout_s
    waiting, deadline = dict(calls), float("inf")
    while waiting and monotonic() < deadline:
        for call in ray.wait(list(waiting), timeout=_POLL_S)[0]:
            index = waiting.pop(call)
            try:
                results[index] = ray.get(call)
            except RayError as error:
                errors[index] = error
                broken = _is_broken_collective(error)
                grace_s = LOST_GRACE_S if broken else GRACE_S
                deadline = min(deadline, monotonic() + grace_s)
        beats = last_beats({i: actors[i] for i in waiting.values()})
        if not errors and any(beat.timed_out for beat in beats.values()):
            _stop(actors.values())
            raise timeout_error(beats, len(actors), timeout_s)
    # Some may wait for ever for the one that failed, and would answer no more.
    _stop(actors[i] for i in waiting.values())
    for i, failure in errors.items():
        if _is_loss(failure):
            raise _lost(i, len(learners), failure) from failure
    if errors:
        # The first that was raised for a reason of its own.
        raise min(errors.values(), key=_is_broken_collective)
    return [results[i] for i in sorted(results)]


def _is_loss(error: Exception) -> bool:
    # What a learner raised is its own, also where a loss of something else caused it.
    return isinstance(error, _LOSSES) and not isinstance(error, RayTaskError)


def _is_broken_collective(error: Exception) -> bool:
    return isinstance(error, CollectiveBrokenError)


def _stop(actors: Iterable[Any]) -> None:
    for actor in actors:
        ray.kill(actor)


def _lost(index: int, num_learners: int, error: Exception) -> LearnerLostError:
    reason = " ".join(str(error).split())
    is_alive = isinstance(error, ObjectLostError)
    what = "answered, and the answer was lost" if is_alive else "died"
    return LearnerLostError(
        f"Learner {index} (of 0 to {num_learners - 1}) {what}. The run stops, because "
        "the learners hold the policy and the optimiser's state together. Go on from "
        "the last checkpoint: `pure-rllib train --resume FOLDER`, or "
        "`PURE.from_checkpoint(...)`. If it ran out of memory, lower "
        f"`micro_batch_tokens` first. Ray says: {reason}"
    )
