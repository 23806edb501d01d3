"""Learner connector: rewards of bundles of questions -> risk-sensitive advantages.

B responses, T response tokens.
"""

from typing import Any

import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from pure_rllib.credit.risk import (
    QuantileTracker,
    RiskConfig,
    bundles_of,
    iteration_std,
    risk_advantages,
    risk_means,
)
from pure_rllib.distributed.collectives import gather_over_learners
from pure_rllib.learners.stats import STATS, LearnerStats
from pure_rllib.models import columns


class RiskAdvantages(ConnectorV2):
    """Compares the sums of bundles with their distribution over the run.

    Reads `TOTAL_REWARDS`, `GROUP_ID` and `LOSS_MASK`; writes `RETURNS` `[B, T]`, the
    reward, and `ADVANTAGES` `[B, T]`, 0.0 off the loss mask. Reports `risk/...`.

    Consecutive groups are a bundle, the last ones perhaps of fewer: whole bundles are
    on one learner (`LLMConfig.groups_together`). The distribution is that of all
    learners' sheets, so that their number changes nothing. What it remembers of it is
    part of the learner's state. A report, which has no module, reads it as it is.

    Args:
        config: the settings.
        bundle_size: questions of a bundle, >= 1.
    """

    def __init__(self, config: RiskConfig, bundle_size: int):
        super().__init__()
        self.config, self.bundle_size = config, bundle_size
        self.tracker = QuantileTracker(config.quantile_lr)
        self.std = 1.0

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        shared_data: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Adds the columns to the batch of the default module."""
        rows = batch[DEFAULT_MODULE_ID]
        rewards = rows[columns.TOTAL_REWARDS]
        groups = torch.unique_consecutive(rows[columns.GROUP_ID], return_inverse=True)
        bundles = bundles_of(groups[1], groups[1] // self.bundle_size)
        if rl_module is not None or self.tracker.values is None:
            own = torch.cat([bundle.sums(rewards) for bundle in bundles])
            sums = gather_over_learners(own, "risk quantiles")
            self.tracker.update(sums)
            self.std = iteration_std(sums)
            if shared_data and STATS in shared_data:
                self._report(sums, shared_data[STATS])
        advantages = risk_advantages(
            rewards, bundles, self.config, tracker=self.tracker, std=self.std
        )
        rows[columns.RETURNS] = rewards[:, None] * columns.response_mask(rows)
        rows[Columns.ADVANTAGES] = advantages[:, None] * rows[Columns.LOSS_MASK]
        return batch

    def _report(self, sums: torch.Tensor, stats: LearnerStats) -> None:
        low = self.tracker.at(self.config.lower_level)
        high = self.tracker.at(self.config.upper_level)
        middle, tail = risk_means(sums, low, high)
        weight = self.config.tail_weight
        for name, value in {
            "lower_quantile": low,
            "upper_quantile": high,
            "middle_mean": middle,
            "tail_mean": tail,
            "mixed": (weight * tail + middle) / (weight + 1.0),
        }.items():
            stats.mean(f"risk/{name}", value)

    @override(ConnectorV2)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the tracked quantiles and the last iteration's deviation."""
        values = self.tracker.values
        quantiles = None if values is None else values.tolist()
        return {"quantiles": quantiles, "std": self.std}

    @override(ConnectorV2)
    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_state` returned."""
        values = state["quantiles"]
        self.tracker.values = (
            None if values is None else torch.tensor(values, dtype=torch.float64)
        )
        self.std = state["std"]
