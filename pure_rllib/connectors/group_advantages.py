"""Learner connector: one reward per response -> its advantage over its group.

B responses, T response tokens.
"""

from typing import Any, Literal

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from pure_rllib.credit.baselines import GroupBaseline, group_advantages
from pure_rllib.models import columns
from pure_rllib.setting_types import check_setting


class GroupAdvantages(ConnectorV2):
    """Compares a response's reward with its group's, for all its tokens.

    Reads `rewards`, `GROUP_ID` and `LOSS_MASK`; writes `RETURNS` `[B, T]`,
    the reward, and `ADVANTAGES` `[B, T]`, not yet normalised, 0.0 off the loss mask and
    for responses without a gold answer.

    Args:
        baseline: see `credit.baselines.group_advantages`.
        scale: likewise.
        rewards: name of the column that is compared, `[B]`.
        epsilon: see `group_advantages`.
    """

    def __init__(
        self,
        baseline: GroupBaseline,
        scale: Literal["std"] | None = None,
        rewards: str = columns.VERIFIABLE_REWARDS,
        epsilon: float = 1e-6,
    ):
        super().__init__()
        check_setting("baseline", baseline, GroupBaseline)
        check_setting("scale", scale, Literal["std"] | None)
        self.baseline = baseline
        self.scale = scale
        self.rewards = rewards
        self.epsilon = epsilon

    @override(ConnectorV2)
    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds the columns to the batch of the default module."""
        rows = batch[DEFAULT_MODULE_ID]
        rewards = rows[self.rewards]
        advantages = group_advantages(
            rewards,
            rows[columns.GROUP_ID],
            baseline=self.baseline,
            scale=self.scale,
            epsilon=self.epsilon,
        )
        mask = columns.response_mask(rows)
        rows[columns.RETURNS] = rewards.nan_to_num(nan=0.0)[:, None] * mask
        rows[Columns.ADVANTAGES] = advantages[:, None] * rows[Columns.LOSS_MASK]
        return batch
