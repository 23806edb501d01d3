"""Learner connectors: log-probabilities under the policy or its reference.

B responses, T response tokens.
"""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from pure_rllib.models import columns
from pure_rllib.models.batch_logps import batch_logps


class _ModelLogps(ConnectorV2):
    """Adds what a model thinks of each sampled token.

    Reads the columns of `EpisodesToRows`; writes `column` `[B, T]`.

    Args:
        micro_batch_tokens: at most so many tokens, padding included, per forward pass.
    """

    column: ClassVar[str]

    def __init__(self, micro_batch_tokens: int):
        super().__init__()
        self.micro_batch_tokens = micro_batch_tokens

    @abstractmethod
    def _model(self, module: Any) -> AbstractContextManager[Any]:
        """Returns the model of an `LLMRLModule` that is asked."""

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: Sequence[SingleAgentEpisode],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Adds the column to the batch of the default module."""
        rows = batch[DEFAULT_MODULE_ID]
        module = rl_module[DEFAULT_MODULE_ID]
        with self._model(module) as model:
            rows[self.column] = batch_logps(
                module, model, rows, self.micro_batch_tokens
            )
        return batch


class ReferenceLogps(_ModelLogps):
    """Adds `REF_LOGP`: what the reference policy thinks of each sampled token."""

    column = columns.REF_LOGP

    def _model(self, module: Any) -> AbstractContextManager[Any]:
        reference: AbstractContextManager[Any] = module.reference_policy()
        return reference


class OldLogps(_ModelLogps):
    """Adds `OLD_LOGP`: what the learner's policy thinks before the first update.

    Where the generator's own log-probabilities are not trusted to be the same, this is
    what PPO's ratio is taken to; see `credit.rollout_correction`.
    """

    column = columns.OLD_LOGP

    def _model(self, module: Any) -> AbstractContextManager[Any]:
        return nullcontext(module.policy)
