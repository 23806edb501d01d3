"""RLOO: a response's reward less the mean of the others' to its prompt."""

from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms.llm_algorithm import LLMAlgorithm
from pure_rllib.algorithms.llm_config import LLMConfig
from pure_rllib.connectors.group_advantages import GroupAdvantages


class RLOOConfig(LLMConfig):
    """Defines a configuration from which an RLOO algorithm can be built.

    It has the settings of `LLMConfig` and no others.
    """

    def __init__(self, algo_class: Any = None):
        """Takes the defaults over."""
        super().__init__(algo_class=algo_class or RLOO)

    @override(LLMConfig)
    def advantage_connectors(self) -> list[ConnectorV2]:
        """Returns the leave-one-out baseline over whole responses."""
        return [GroupAdvantages(baseline="leave_one_out")]


class RLOO(LLMAlgorithm):
    """REINFORCE with a leave-one-out baseline, on verifiable rewards.

    Source: arXiv 2402.14740; here with PPO's clip, which does nothing as long as an
    iteration is one optimiser step.
    """

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> RLOOConfig:
        """Returns the defaults."""
        return RLOOConfig()
