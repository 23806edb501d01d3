"""Learner connector: process rewards -> returns by min-form credit assignment.

B responses, T response tokens.
"""

from collections.abc import Sequence
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from pure_rllib.credit.returns import CreditAssignment, process_returns
from pure_rllib.models import columns


class ProcessReturns(ConnectorV2):
    """Computes each token's return from the process rewards still to come.

    Reads `STEP_REWARDS`, `STEP_MASK`, `STEP_ENDS` and the width of `ACTIONS`; writes
    `RETURNS` `[B, T]`, before any baseline and coefficient, for metrics and reports.
    Source: PURE (arXiv 2504.15275), equations 3 and 4.

    Args:
        credit_assignment: "min", "strict_min" or "sum".
        credit_temperature: > 0, in reward units.
        gamma: discount per step of the sum form.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        credit_assignment: CreditAssignment,
        credit_temperature: float,
        gamma: float,
        **kwargs: Any,
    ):
        super().__init__(input_observation_space, input_action_space, **kwargs)
        self.credit_assignment = credit_assignment
        self.credit_temperature = credit_temperature
        self.gamma = gamma

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
        rows[columns.RETURNS] = process_returns(
            rows[columns.STEP_REWARDS],
            rows[columns.STEP_MASK],
            rows[columns.STEP_ENDS],
            rows[Columns.ACTIONS].shape[1],
            credit_assignment=self.credit_assignment,
            credit_temperature=self.credit_temperature,
            gamma=self.gamma,
        )
        return batch
