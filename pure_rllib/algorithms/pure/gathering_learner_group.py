"""A learner group whose learners hold one part of the state each."""

from collections.abc import Collection
from typing import Any

from ray.rllib.core import COMPONENT_LEARNER
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms.pure.learner_calls import on_learners


class GatheringLearnerGroup(LearnerGroup):
    """Asks all remote learners for their state, and keeps the first one's.

    RLlib asks the first learner alone, which would wait for ever for the parts of the
    others.
    """

    @override(LearnerGroup)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns the state that the learners gather on the first of them."""
        if not self._check_component(COMPONENT_LEARNER, components, not_components):
            return {}
        wanted = self._get_subcomponents(COMPONENT_LEARNER, components)
        unwanted = self._get_subcomponents(COMPONENT_LEARNER, not_components)
        states = on_learners(
            self,
            lambda learner: learner.get_state(
                wanted, not_components=unwanted, **kwargs
            ),
        )
        return {COMPONENT_LEARNER: states[0]}
