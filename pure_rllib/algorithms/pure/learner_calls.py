"""Calling all learners at once, and knowing at once when one of them is gone."""

import math
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.rllib.core.learner.learner_group import LearnerGroup

_Result = TypeVar("_Result")

GRACE_S = 20.0
"""How long to listen to the other learners once one has failed.

A lost process breaks the collectives of the others, whose errors arrive first."""


class LearnerLostError(RuntimeError):
    """A learner's process is gone; the run cannot go on, but it can be resumed."""


def on_learners(
    learners: LearnerGroup,
    function: Callable[..., _Result],
    shares: Sequence[Any] | None = None,
) -> list[_Result]:
    """Calls a function with every learner.

    Args:
        learners: local or remote.
        function: called with a learner, and with its share if there are any.
        shares: one per learner.

    Returns:
        One result per learner, the first learner's first.

    Raises:
        LearnerLostError: a learner's process died. Learners that still wait for it
            after `GRACE_S` are stopped.
        Exception: what a learner raised; it lives, and so do the others.
    """
    # Not by RLlib's `foreach_learner`: it waits for all learners before it looks at
    # any, and drops those that raised something from later calls.
    arguments = [()] if shares is None else [(share,) for share in shares]
    if learners.is_local:
        return [function(learners._learner, *arguments[0])]
    actors = learners._worker_manager.actors()
    if shares is None:
        arguments = arguments * len(actors)
    calls = {
        actor.apply.remote(function, *own): i
        for (i, actor), own in zip(sorted(actors.items()), arguments, strict=True)
    }
    results: dict[int, _Result] = {}
    errors: dict[int, RayTaskError | RayActorError] = {}
    waiting = list(calls)
    deadline = math.inf
    while waiting and monotonic() < deadline:
        left = None if not errors else max(0.0, deadline - monotonic())
        done, waiting = ray.wait(waiting, timeout=left)
        for call in done:
            try:
                results[calls[call]] = ray.get(call)
            except (RayTaskError, RayActorError) as error:
                errors[calls[call]] = error
                deadline = min(deadline, monotonic() + GRACE_S)
    for i, failure in errors.items():
        if isinstance(failure, RayActorError):
            for call in waiting:
                # It may wait for the lost one for ever, and would answer no more.
                ray.kill(actors[calls[call]])
            raise _lost(i, len(actors), failure) from failure
    for failure in errors.values():
        assert isinstance(failure, RayTaskError)
        raise failure.as_instanceof_cause()
    return [results[i] for i in sorted(results)]


def _lost(index: int, num_learners: int, error: Exception) -> LearnerLostError:
    reason = " ".join(str(error).split())
    return LearnerLostError(
        f"Learner {index} (of 0 to {num_learners - 1}) died. The run stops, because "
        "the learners hold the policy and the optimiser's state together. Go on from "
        "the last checkpoint: `pure-rllib train --resume FOLDER`, or "
        "`PURE.from_checkpoint(...)`. If it ran out of memory, lower "
        f"`micro_batch_tokens` first. Ray says: {reason}"
    )
