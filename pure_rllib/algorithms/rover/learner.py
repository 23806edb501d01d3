"""The learners of ROVER: a squared error in place of the clipped loss."""

from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.utils.annotations import override
from torch import Tensor

from pure_rllib.credit.rover import rover_loss
from pure_rllib.learners.deepspeed_learner import DeepSpeedLearner
from pure_rllib.learners.torch_learner import LLMTorchLearner
from pure_rllib.models import columns
from pure_rllib.models.logprobs import ENTROPY, LOGP, MEAN_LOGP


class ROVERLearner(LLMTorchLearner):
    """Fits log-ratios to the response's reward plus the next token's value."""

    outputs = (LOGP, ENTROPY, MEAN_LOGP)

    @override(Learner)
    def compute_loss_for_module(
        self,
        *,
        module_id: str,
        config: Any,
        batch: dict[str, Tensor],
        fwd_out: dict[str, Tensor],
    ) -> Tensor:
        """See `credit.rover.rover_loss`; `ADVANTAGES` are the normalised rewards."""
        mask = batch[Columns.LOSS_MASK]
        loss, values = rover_loss(
            fwd_out[LOGP],
            batch[columns.OLD_LOGP],
            fwd_out[MEAN_LOGP],
            batch[columns.OLD_MEAN_LOGP],
            batch[Columns.ADVANTAGES],
            mask,
            log_ratio_coeff=config.log_ratio_coeff,
            next_value_coeff=config.next_value_coeff,
            weights=batch.get(columns.CORRECTION_WEIGHT),
            scale=self.scale,
        )
        self._stats.add_tokens("rover/log_ratio", values["q"], mask)
        self._stats.add_tokens("rover/next_value", values["next_value"], mask)
        self._stats.add_tokens("rover/mean_logp", fwd_out[MEAN_LOGP], mask)
        self._stats.add_tokens("entropy", fwd_out[ENTROPY], mask)
        self.log_loss_terms({"policy": loss})
        return loss


class ROVERDeepSpeedLearner(ROVERLearner, DeepSpeedLearner):
    """The same with DeepSpeed's ZeRO."""
