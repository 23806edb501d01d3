"""Learner connector: rewards -> advantages over the other responses of the group.

B responses, T response tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from pure_rllib.credit.pipeline import CreditBatch, compute_advantages
from pure_rllib.credit.presets import CreditConfig
from pure_rllib.models import columns


class LeaveOneOutAdvantages(ConnectorV2):
    """Adds up the reward streams, each after its own leave-one-out baseline.

    The process rewards' return minus its baseline, the verifiable reward minus the mean
    of the group's others, spread over all tokens, and the KL penalty still to come,
    which has no baseline; each with its coefficient.

    Reads the columns of `EpisodesToRows`, and `REF_LOGP` for a KL penalty; writes
    `ADVANTAGES` `[B, T]`, not yet normalised, 0.0 where the loss mask is False.
    Source: PURE (arXiv 2504.15275), equation 6.

    Args:
        credit: the settings; its normalisation is left to `NormalizeAdvantages`.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        credit: CreditConfig,
        **kwargs: Any,
    ):
        super().__init__(input_observation_space, input_action_space, **kwargs)
        self.credit = credit

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
        num_tokens = rows[Columns.ACTIONS].shape[1]
        # Not the loss mask: a response that is left out of the loss still counts for
        # the baseline of the others.
        response_mask = (
            torch.arange(num_tokens)[None] < rows[columns.RESPONSE_LENS][:, None]
        )
        credit = compute_advantages(
            CreditBatch(
                step_rewards=rows[columns.STEP_REWARDS],
                step_mask=rows[columns.STEP_MASK],
                step_ends=rows[columns.STEP_ENDS],
                response_mask=response_mask,
                group_index=torch.unique(rows[columns.GROUP_ID], return_inverse=True)[
                    1
                ],
                verifiable_rewards=rows[columns.VERIFIABLE_REWARDS],
                logp=rows[Columns.ACTION_LOGP],
                ref_logp=rows.get(columns.REF_LOGP),
            ),
            replace(self.credit, normalize_advantages=False),
        )
        rows[Columns.ADVANTAGES] = credit.raw_advantages.masked_fill(
            ~rows[Columns.LOSS_MASK], 0.0
        )
        return batch
