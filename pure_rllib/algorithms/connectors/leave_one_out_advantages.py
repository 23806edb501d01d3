"""Learner connector: returns -> advantages over the other responses of the group.

B responses, T response tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms import columns
from pure_rllib.credit.baselines import (
    Baseline,
    process_baseline,
    verifiable_advantages,
)
from pure_rllib.credit.kl import KLEstimator, kl_estimate
from pure_rllib.credit.returns import reward_to_go, scatter_to_tokens


class LeaveOneOutAdvantages(ConnectorV2):
    """Adds up the reward streams, each after its own leave-one-out baseline.

    The process rewards' return minus its baseline, the verifiable reward minus the mean
    of the group's others, spread over all tokens, and the KL penalty still to come,
    which has no baseline; each with its coefficient.

    Reads the columns of `EpisodesToRows`, `RETURNS`, and `REF_LOGP` for a KL penalty;
    writes `ADVANTAGES` `[B, T]`, 0.0 where the loss mask is False.
    Source: PURE (arXiv 2504.15275), equation 6.

    Args:
        baseline: "token", "step", "length" or "response".
        process_reward_coeff: >= 0.
        verifiable_reward_coeff: >= 0.
        max_response_tokens: the token budget; used by the "length" baseline.
        mask_separators: put 0.0 on the last token of each step.
        gamma: discount per step of the sum form.
        kl_coeff: >= 0; of a KL penalty that is part of the reward.
        kl_estimator: "k1", "k2" or "k3".
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        baseline: Baseline,
        process_reward_coeff: float,
        verifiable_reward_coeff: float,
        max_response_tokens: int,
        mask_separators: bool,
        gamma: float = 1.0,
        kl_coeff: float = 0.0,
        kl_estimator: KLEstimator = "k1",
        **kwargs: Any,
    ):
        super().__init__(input_observation_space, input_action_space, **kwargs)
        self.baseline = baseline
        self.process_reward_coeff = process_reward_coeff
        self.verifiable_reward_coeff = verifiable_reward_coeff
        self.max_response_tokens = max_response_tokens
        self.mask_separators = mask_separators
        self.gamma = gamma
        self.kl_coeff = kl_coeff
        self.kl_estimator = kl_estimator

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
        group_index = torch.unique(rows[columns.GROUP_ID], return_inverse=True)[1]
        advantages = torch.zeros_like(rows[columns.RETURNS])
        if self.process_reward_coeff:
            advantages += self.process_reward_coeff * self._process(rows, group_index)
        if self.verifiable_reward_coeff:
            verifiable = verifiable_advantages(
                rows[columns.VERIFIABLE_REWARDS], group_index
            )
            advantages += self.verifiable_reward_coeff * verifiable[:, None]
        if self.kl_coeff:
            kl = kl_estimate(
                rows[Columns.ACTION_LOGP], rows[columns.REF_LOGP], self.kl_estimator
            )
            mask = rows[Columns.LOSS_MASK]
            advantages -= self.kl_coeff * reward_to_go(kl.masked_fill(~mask, 0.0))
        keep = rows[Columns.LOSS_MASK]
        if self.mask_separators:
            keep = keep & ~_step_end_tokens(rows)
        rows[Columns.ADVANTAGES] = advantages.masked_fill(~keep, 0.0)
        return batch

    def _process(
        self, rows: dict[str, torch.Tensor], group_index: torch.Tensor
    ) -> torch.Tensor:
        baseline = process_baseline(
            self.baseline,
            rows[columns.STEP_CREDITS],
            rows[columns.STEP_MASK],
            rows[columns.STEP_ENDS],
            rows[columns.RETURNS].shape[1],
            group_index,
            gamma=self.gamma,
            max_response_tokens=self.max_response_tokens,
        )
        return rows[columns.RETURNS] - baseline


def _step_end_tokens(rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """`[B, T]` bool: True on the last token of each step."""
    num_tokens = rows[Columns.LOSS_MASK].shape[1]
    ends = rows[columns.STEP_MASK].float()
    return scatter_to_tokens(ends, rows[columns.STEP_ENDS], num_tokens) > 0
