"""Settings of algorithms that reward a whole response with one number."""

from collections.abc import Hashable, Sequence
from typing import Any, Self

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms.llm_config import LLMConfig
from pure_rllib.credit.presets import CreditTemperature
from pure_rllib.credit.returns import CreditAssignment, step_credits
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.models.columns import length_mask
from pure_rllib.reporting.records import ResponseNumbers
from pure_rllib.setting_types import NonNegativeFloat

# Rewards that differ by less are equal: a PRM's last digits hang on the batch.
_DECIMALS = 5


class ResponseRewardConfig(LLMConfig):
    """A response earns its verified reward, its process rewards, or both.

    Process rewards become one number by PURE's credit assignment: in the min form it is
    the worst step's, softly.
    """

    def __init__(self, algo_class: Any = None):
        """Lists the settings with their defaults."""
        super().__init__(algo_class=algo_class)
        # .training()
        self.credit_assignment: CreditAssignment = "min"
        self.credit_temperature = 0.1

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        credit_assignment: CreditAssignment = NotProvided,
        credit_temperature: CreditTemperature = NotProvided,
        process_reward_coeff: NonNegativeFloat = NotProvided,
        verifiable_reward_coeff: NonNegativeFloat = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets what is rewarded, and what `LLMConfig.training` sets.

        Args:
            credit_assignment: "min" (soft minimum), "strict_min" or "sum": what a
                response's process rewards come to.
            credit_temperature: of the soft minimum, > 0, in reward units.
            process_reward_coeff: weight of the PRM's rewards, >= 0.
            verifiable_reward_coeff: weight of the verifier's reward, >= 0.
            **kwargs: `LLMConfig`'s, and RLlib's own.
        """
        super().training(**kwargs)
        return self._set(locals())

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Adds that something must be rewarded."""
        super().validate()
        if self.process_reward_coeff == 0 and self.verifiable_reward_coeff == 0:
            raise ValueError(
                "`process_reward_coeff` (0) and `verifiable_reward_coeff` (0) must not "
                "both be 0: nothing would be learned. Set one of them to 1.0."
            )

    @override(LLMConfig)
    def total_rewards(self, judged: Sequence[JudgedResponse]) -> list[float]:
        """Adds a response's credited process rewards, both with their coefficients."""
        rewards = [torch.from_numpy(j.step_rewards) for j in judged]
        sizes = torch.tensor([len(r) for r in rewards])
        credits = step_credits(
            torch.nn.utils.rnn.pad_sequence(rewards, batch_first=True),
            length_mask(sizes),
            credit_assignment=self.credit_assignment,
            credit_temperature=self.credit_temperature,
        )
        process = (self.process_reward_coeff * credits.sum(dim=1)).tolist()
        verifiable = super().total_rewards(judged)
        return [p + v for p, v in zip(process, verifiable, strict=True)]

    @override(LLMConfig)
    def earned(self, response: ResponseNumbers) -> Hashable:
        """Adds process rewards; a stream whose coefficient is 0 does not count."""
        counts = bool(self.verifiable_reward_coeff)
        verifiable = response.outcome_reward if counts else None
        if not self.process_reward_coeff:
            return verifiable
        rewards = np.round(np.asarray(response.step_rewards), _DECIMALS).tolist()
        return verifiable, tuple(rewards)
