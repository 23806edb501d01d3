"""Learner connector: process and verifiable rewards -> returns and advantages.

B responses, T response tokens.
"""

from dataclasses import replace
from typing import Any

import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from pure_rllib.credit.pipeline import CreditBatch, assign_credit
from pure_rllib.credit.presets import CreditConfig
from pure_rllib.models import columns


class PUREAdvantages(ConnectorV2):
    """Adds up the reward streams, each after its own leave-one-out baseline.

    The process rewards' return minus its baseline, the verifiable reward minus the mean
    of the group's others, spread over all tokens, and the KL penalty still to come,
    which has no baseline; each with its coefficient.

    Reads the columns of `EpisodesToRows`, and `REF_LOGP` for a KL penalty; writes
    `RETURNS` `[B, T]`, of the process rewards before any baseline and coefficient, and
    `ADVANTAGES` `[B, T]`, not yet normalised, 0.0 where the loss mask is False.
    Source: PURE (arXiv 2504.15275), equations 3, 4 and 6.

    Args:
        credit: the settings; its normalisation is left to `NormalizeAdvantages`.
    """

    def __init__(self, credit: CreditConfig):
        super().__init__()
        self.credit = replace(credit, normalize_advantages=False)

    @override(ConnectorV2)
    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds the columns to the batch of the default module."""
        rows = batch[DEFAULT_MODULE_ID]
        groups = torch.unique(rows[columns.GROUP_ID], return_inverse=True)[1]
        settings = self.credit
        if columns.REF_LOGP not in rows:
            # There is a reference policy in learners only; reports do without the KL.
            settings = replace(settings, kl_coeff=0.0)
        credit = assign_credit(
            CreditBatch(
                step_rewards=rows[columns.STEP_REWARDS],
                step_mask=rows[columns.STEP_MASK],
                step_ends=rows[columns.STEP_ENDS],
                # Not the loss mask: a response that is left out of the loss still
                # counts for the baseline of the others.
                response_mask=columns.response_mask(rows),
                group_index=groups,
                verifiable_rewards=rows[columns.VERIFIABLE_REWARDS],
                logp=rows[Columns.ACTION_LOGP],
                ref_logp=rows.get(columns.REF_LOGP),
            ),
            settings,
        )
        rows[columns.RETURNS] = credit.returns
        rows[Columns.ADVANTAGES] = credit.advantages.masked_fill(
            ~rows[Columns.LOSS_MASK], 0.0
        )
        return batch
