"""Calling all learners at once, and knowing when one of them is gone."""

from collections.abc import Callable, Collection, Mapping, Sequence
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

from pure_rllib.distributed.collectives import (
    CollectiveBrokenError,
    CollectiveTimeoutError,
)

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
    longer_s: float = 0.0,
    within_s: float = float("inf"),
) -> list[_Result]:
    """Calls a function with every learner.

    Args:
        learners: local or remote.
        function: called with a learner, and with its share if there are any.
        shares: one per learner.
        only: numbers of the remote learners to call; None: all.
        longer_s: how much longer one learner may work than another, beside
            `collective_timeout_s`; infinite where one of them writes files.
        within_s: limit of the whole call, where learners wait for others than learners.

    Returns:
        One result per learner, the first learner's first.

    Raises:
        LearnerLostError: a learner's process died, or its answer was lost before it
            arrived. Learners that still wait for it after `GRACE_S` are stopped.
        CollectiveTimeoutError: a learner waited for another, or let the driver wait,
            for longer than `collective_timeout_s`. All learners are stopped then.
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
    waiting = {
        actor.apply.remote(function, *own): i
        for (i, actor), own in zip(sorted(actors.items()), arguments, strict=True)
    }
    results: dict[int, _Result] = {}
    errors: dict[int, Exception] = {}
    timeout_s = learners.config.collective_timeout_s
    start = monotonic()
    deadline = start + within_s
    while waiting and (left_s := deadline - monotonic()) > 0:
        answered, _ = ray.wait(list(waiting), timeout=min(left_s, _POLL_S))
        for call in answered:
            index, patience_s = waiting.pop(call), timeout_s + longer_s
            try:
                results[index] = ray.get(call)
            except RayError as error:
                errors[index], patience_s = error, _grace_s(error)
            deadline = min(deadline, monotonic() + patience_s)
    # Some may wait for ever for the one that failed, and would answer no more.
    silent = sorted(waiting.values())
    for i in silent:
        ray.kill(actors[i])
    for i, failure in errors.items():
        # What a learner raised is its own, also where something else was lost.
        if isinstance(failure, _LOSSES) and not isinstance(failure, RayTaskError):
            raise _lost(i, len(learners), silent, failure) from failure
    own_errors = [
        e for e in errors.values() if not isinstance(e, CollectiveBrokenError)
    ]
    if own_errors:
        raise own_errors[0]
    late = {i: e for i, e in errors.items() if isinstance(e, CollectiveTimeoutError)}
    if late or (silent and not errors):
        for actor in actors.values():
            ray.kill(actor)
        raise _timed_out(late, silent, monotonic() - start, timeout_s)
    if errors:
        raise next(iter(errors.values()))
    return [results[i] for i in sorted(results)]


def _grace_s(error: Exception) -> float:
    """How long to listen to other learners after this."""
    is_broken = isinstance(error, CollectiveBrokenError)
    has_waited = isinstance(error, CollectiveTimeoutError)
    return LOST_GRACE_S if is_broken and not has_waited else GRACE_S


def _timed_out(
    late: Mapping[int, Any], silent: Sequence[int], seconds: float, timeout_s: float
) -> CollectiveTimeoutError:
    told = [str(error.cause) for _, error in sorted(late.items())]
    told += [f"learner {i} gave no answer for {seconds:.0f} s" for i in silent]
    return CollectiveTimeoutError(
        f"`collective_timeout_s` ({timeout_s:g}) must be longer than one learner waits "
        f"for another, or for env runners that receive weights: {'; '.join(told)}. If "
        "that learner was only slow, raise `.learners(collective_timeout_s=...)`; else "
        "it was stopped, it hangs or its node cannot be reached: look at its log. The "
        "run stops; its last checkpoint is intact: resume from it."
    )


def _lost(
    index: int, num_learners: int, silent: Sequence[int], error: Exception
) -> LearnerLostError:
    reason = " ".join(str(error).split())
    is_alive = isinstance(error, ObjectLostError)
    what = "answered, and the answer was lost" if is_alive else "died"
    others = ""
    if silent:
        others = (
            f"Learners {list(silent)} gave no answer: if one of them hangs, NCCL ended "
            "the other after `collective_timeout_s`, and its log names the operation. "
        )
    return LearnerLostError(
        f"Learner {index} (of 0 to {num_learners - 1}) {what}. The run stops, because "
        "the learners hold the policy and the optimiser's state together. Go on from "
        "the last checkpoint: `pure-rllib train --resume FOLDER`, or "
        "`PURE.from_checkpoint(...)`. If it ran out of memory, lower "
        f"`micro_batch_tokens` first. {others}Ray says: {reason}"
    )
