"""GRPO: a response's reward in standard deviations from its group's mean."""

from typing import Any, Self

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms.llm_algorithm import LLMAlgorithm
from pure_rllib.algorithms.llm_config import LLMConfig
from pure_rllib.connectors.group_advantages import GroupAdvantages
from pure_rllib.setting_types import PositiveFloat


class GRPOConfig(LLMConfig):
    """Defines a configuration from which a GRPO algorithm can be built.

    The defaults are the publication's: a KL term (k3) in the loss, and the mean over a
    response's tokens before that over responses. Variants are settings:

    - Dr. GRPO: `scale_by_std=False, loss_aggregation="fixed_length", kl_coeff=0.0`.
    - DAPO's loss: `clip_param_high=0.28, loss_aggregation="token_mean", kl_coeff=0.0,
      no_signal_groups="refill"`.
    - GSPO: `ratio_level="sequence", clip_param=3.0e-4, clip_param_high=4.0e-4,
      kl_coeff=0.0`.
    """

    def __init__(self, algo_class: Any = None):
        """Lists where the defaults differ from those of `LLMConfig`."""
        super().__init__(algo_class=algo_class or GRPO)
        # .training()
        self.scale_by_std = True
        self.std_epsilon = 1.0e-6
        self.loss_aggregation = "sequence_mean"
        self.kl_coeff = 0.04
        self.kl_estimator = "k3"

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        scale_by_std: bool = NotProvided,
        std_epsilon: PositiveFloat = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets how a group is compared, and what `LLMConfig.training` sets.

        Args:
            scale_by_std: divide by the standard deviation of the group's rewards.
            std_epsilon: added to that deviation, > 0; TRL's is 1.0e-4.
            **kwargs: `LLMConfig`'s, and RLlib's own.
        """
        super().training(**kwargs)
        return self._set(locals())

    @override(LLMConfig)
    def advantage_connectors(self) -> list[ConnectorV2]:
        """Returns the comparison with the group's mean."""
        return [
            GroupAdvantages(
                "mean",
                scale="std" if self.scale_by_std else None,
                epsilon=self.std_epsilon,
            )
        ]


class GRPO(LLMAlgorithm):
    """Group relative policy optimisation, on verifiable rewards.

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.
    """

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> GRPOConfig:
        """Returns the defaults."""
        return GRPOConfig()
