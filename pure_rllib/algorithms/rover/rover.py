"""ROVER: the policy's change as the values of the uniformly random policy."""

import math
from collections.abc import Sequence
from typing import Any, Self

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms.llm_algorithm import LLMAlgorithm
from pure_rllib.algorithms.llm_config import LLMConfig
from pure_rllib.algorithms.response_rewards import ResponseRewardConfig
from pure_rllib.connectors.group_advantages import GroupAdvantages
from pure_rllib.models import columns
from pure_rllib.models.logprobs import LOGP, MEAN_LOGP
from pure_rllib.setting_types import NonNegativeFloat, PositiveFloat

# What the squared error does without.
_OF_CLIPPED_LOSS = (
    "clip_param",
    "clip_param_high",
    "dual_clip",
    "ratio_level",
    "kl_coeff",
    "entropy_coeff",
)


class ROVERConfig(ResponseRewardConfig):
    """Defines a configuration from which a ROVER algorithm can be built.

    The defaults are the paper's: mean-centred rewards and several optimiser steps to an
    iteration (`minibatch_size`). The published script for mathematics divides by the
    group's standard deviation: `scale_by_std=True`, with a temperature of 0.6.
    """

    def __init__(self, algo_class: Any = None):
        """Lists where the defaults differ from those of `ResponseRewardConfig`."""
        super().__init__(algo_class=algo_class or ROVER)
        # .training()
        self.scale_by_std = False
        self.log_ratio_coeff = 1.0
        self.next_value_coeff = 1.0
        self.minibatch_size = 32

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        scale_by_std: bool = NotProvided,
        log_ratio_coeff: PositiveFloat = NotProvided,
        next_value_coeff: NonNegativeFloat = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the target, and what `ResponseRewardConfig.training` sets.

        Args:
            scale_by_std: divide rewards by the group's standard deviation.
            log_ratio_coeff: factor of all log-ratios, > 0.
            next_value_coeff: factor of the next value in the target, >= 0; 0.0 fits
                log-ratios to the rewards alone.
            **kwargs: `ResponseRewardConfig`'s, `LLMConfig`'s, and RLlib's own.
        """
        super().training(**kwargs)
        return self._set(locals())

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Adds that the target must act, and that settings of the clip do not."""
        super().validate()
        steps = math.ceil(self.num_prompts / (self.groups_per_step or self.num_prompts))
        if steps * self.num_epochs < 2:
            raise ValueError(
                f"`minibatch_size` ({self.minibatch_size}) must make at least 2 "
                f"optimiser steps of `num_prompts` ({self.num_prompts}) groups of "
                f"`group_size` ({self.group_size}), because at the first one every "
                "value is 0 and ROVER is plain REINFORCE. Set it to "
                f"{self.group_size * max(1, self.num_prompts // 4)}, or "
                "`num_epochs` to 2."
            )
        defaults = LLMConfig()
        for name in _OF_CLIPPED_LOSS:
            if getattr(self, name) != getattr(defaults, name):
                raise ValueError(
                    f"`{name}` ({getattr(self, name)!r}) has no effect with ROVER, "
                    "whose loss is a squared error. Leave it out."
                )

    @override(LLMConfig)
    def advantage_connectors(self) -> list[ConnectorV2]:
        """Returns the comparison with the group's mean."""
        return [
            GroupAdvantages(
                "mean",
                scale="std" if self.scale_by_std else None,
                rewards=columns.TOTAL_REWARDS,
            )
        ]

    @override(LLMConfig)
    def old_outputs(self) -> Sequence[str]:
        """Returns both: values are changes since the iteration began."""
        return LOGP, MEAN_LOGP

    @override(LLMConfig)
    def get_default_learner_class(self) -> Any:
        """Returns ROVER's learner, with DeepSpeed if it is set."""
        from pure_rllib.algorithms.rover.learner import (
            ROVERDeepSpeedLearner,
            ROVERLearner,
        )

        return ROVERLearner if self.deepspeed is None else ROVERDeepSpeedLearner


class ROVER(LLMAlgorithm):
    """Random policy valuation for diverse reasoning, on verifiable or process rewards.

    There is no critic, no reference policy and no clip. Responses are sampled from the
    policy as ever; uniformly random is the policy that is *valued*.
    Source: ROVER (arXiv 2509.24981), and its code for what that leaves open.
    """

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ROVERConfig:
        """Returns the defaults."""
        return ROVERConfig()
