"""Learner connector: log-probabilities under the reference policy.

B responses, T response tokens.
"""

from collections.abc import Sequence
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms import columns
from pure_rllib.algorithms.pure.batch_logps import batch_logps


class ReferenceLogps(ConnectorV2):
    """Adds what the reference policy thinks of each sampled token.

    Reads the columns of `EpisodesToRows`; writes `REF_LOGP` `[B, T]`.

    Args:
        micro_batch_tokens: at most so many tokens, padding included, per forward pass.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        micro_batch_tokens: int,
        **kwargs: Any,
    ):
        super().__init__(input_observation_space, input_action_space, **kwargs)
        self.micro_batch_tokens = micro_batch_tokens

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
        with module.reference_policy() as reference:
            rows[columns.REF_LOGP] = batch_logps(
                module, reference, rows, self.micro_batch_tokens
            )
        return batch
