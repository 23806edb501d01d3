"""A learner group that raises what its learners raise, also for their state."""

from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.rllib.core import COMPONENT_LEARNER
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.utils.actor_manager import (
    FaultTolerantActorManager,
    RemoteCallResults,
    ResultOrError,
)
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms.pure.collectives import rank
from pure_rllib.algorithms.pure.learner_calls import on_learners


class PURELearnerGroup(LearnerGroup):
    """Reads, writes, saves and restores its learners' state, or raises.

    RLlib drops what remote learners raise while they save or restore: a checkpoint
    would lack the policy, or a run go on from fresh weights, without a word. It also
    asks the first learner alone for the state, which with DeepSpeed would wait for ever
    for the parts of the others.
    """

    @override(LearnerGroup)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns the first learner's state, to which all give their parts."""
        if not self._check_component(COMPONENT_LEARNER, components, not_components):
            return {}
        wanted = self._get_subcomponents(COMPONENT_LEARNER, components)
        unwanted = self._get_subcomponents(COMPONENT_LEARNER, not_components)
        has_parts = self.config.deepspeed is not None

        def state_of(learner: Any) -> dict[str, Any]:
            if not has_parts and rank() != 0:
                return {}
            state: dict[str, Any] = learner.get_state(
                wanted, not_components=unwanted, **kwargs
            )
            return state

        states = on_learners(self, state_of)
        return {COMPONENT_LEARNER: next(state for state in states if state)}

    @override(LearnerGroup)
    def set_state(self, state: dict[str, Any]) -> None:
        """Gives all learners the same state."""
        if COMPONENT_LEARNER not in state:
            return
        given = state[COMPONENT_LEARNER]
        # Ray replaces the reference by what it stands for.
        shares = [given] if self.is_local else [ray.put(given)] * len(self)
        on_learners(self, lambda learner, share: learner.set_state(share), shares)

    @override(LearnerGroup)
    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """Returns the learners."""
        learners = self._learner if self.is_local else _RemoteLearners(self)
        return [(COMPONENT_LEARNER, learners)]


class _RemoteLearners(FaultTolerantActorManager):
    """What RLlib's `Checkpointable` uses of an actor manager; calls raise.

    Args:
        group: of remote learners, whose manager this stands for.
    """

    def __init__(self, group: PURELearnerGroup):
        # Not the base's, which would count the actors' restarts and health.
        self._group = group

    @override(FaultTolerantActorManager)
    def healthy_actor_ids(self) -> list[int]:
        return sorted(self._group._worker_manager.actors())

    @override(FaultTolerantActorManager)
    def foreach_actor(
        self,
        func: Callable[[Any], Any],
        *,
        remote_actor_ids: list[int] | None = None,
        **kwargs: Any,
    ) -> RemoteCallResults:
        results = RemoteCallResults()
        indices = self.healthy_actor_ids()
        if remote_actor_ids is not None:
            indices = sorted(remote_actor_ids)
        answers = on_learners(self._group, func, only=indices)
        for index, answer in zip(indices, answers, strict=True):
            results.add_result(index, ResultOrError(result=answer), None)
        return results
