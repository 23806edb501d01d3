"""Learner connector: advantages -> mean 0 and standard deviation 1.

B responses, T response tokens.
"""

from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from pure_rllib.credit.normalize import (
    NormalizeStyle,
    advantage_moments,
    normalize_advantages,
)
from pure_rllib.distributed.collectives import sum_over_learners


class NormalizeAdvantages(ConnectorV2):
    """Standardises advantages over the whole batch, all learners together.

    Reads `LOSS_MASK` and `ADVANTAGES`; rewrites `ADVANTAGES` `[B, T]`.

    Args:
        style: "tokens" (all loss tokens), "pure_openrlhf" or "pure_verl".
    """

    def __init__(self, style: NormalizeStyle):
        super().__init__()
        self.style = style

    @override(ConnectorV2)
    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Rewrites the column in the batch of the default module."""
        rows = batch[DEFAULT_MODULE_ID]
        advantages, mask = rows[Columns.ADVANTAGES], rows[Columns.LOSS_MASK]
        moments = advantage_moments(advantages, mask, style=self.style)
        sum_over_learners(moments, "normalize advantages")
        rows[Columns.ADVANTAGES] = normalize_advantages(
            advantages, mask, moments, style=self.style
        )
        return batch
