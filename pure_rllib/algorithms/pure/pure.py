"""PURE: the return of a token is the minimum of the process rewards still to come."""

from collections.abc import Hashable, Mapping
from dataclasses import fields
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, FiniteFloat
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms.llm_algorithm import LLMAlgorithm
from pure_rllib.algorithms.llm_config import LLMConfig
from pure_rllib.algorithms.response_rewards import ResponseRewardConfig
from pure_rllib.connectors.pure_advantages import PUREAdvantages
from pure_rllib.credit.baselines import Baseline
from pure_rllib.credit.presets import (
    PRESETS,
    CreditConfig,
    Formulas,
    KLPlacement,
)
from pure_rllib.reporting.records import ResponseNumbers

# How blank steps end is the step splitter's matter, not a setting.
_CREDIT_SETTINGS = tuple(
    field.name for field in fields(CreditConfig) if field.name != "blank_steps"
)
# What a preset leaves alone: it belongs to the run and not to the variant.
_NOT_IN_PRESETS = ("gamma", "max_response_tokens")


class PUREConfig(ResponseRewardConfig):
    """Defines a configuration from which a PURE algorithm can be built.

    .. code-block:: python

        from pure_rllib.algorithms import PUREConfig

        config = (
            PUREConfig()
            .environment("pure_rllib/Arithmetic-v0")
            .env_runners(num_prompts=16, group_size=8, max_response_tokens=96)
            .training(credit_assignment="min", credit_temperature=0.1, lr=6.0e-4)
        )
        algo = config.build_algo()
        algo.train()

    The settings that other algorithms have as well are those of `LLMConfig`.
    """

    # A minimum over process rewards and an outcome must be of one scale.
    takes_any_reward = False

    def __init__(self, algo_class: Any = None):
        """Lists every setting of PURE's own with its default."""
        super().__init__(algo_class=algo_class or PURE)
        # .training()
        self.preset: str | None = None
        self.formulas = "ours"
        self.baseline = "token"
        self.process_reward_coeff = 1.0
        self.mask_separators = True
        self.kl_placement = "reward"

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        preset: str | None = NotProvided,
        formulas: Formulas = NotProvided,
        baseline: Baseline = NotProvided,
        mask_separators: bool = NotProvided,
        kl_placement: KLPlacement = NotProvided,
        hack_caps: Mapping[
            str, Annotated[FiniteFloat, Field(ge=-1, le=1)]
        ] = NotProvided,
        hack_limits: Mapping[str, float] = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets credit assignment, and what `ResponseRewardConfig.training` sets.

        Args:
            preset: "paper", "pure_openrlhf" or "pure_verl": sets the settings in which
                PURE's published variants differ; the others of this call win over it.
            formulas: "ours", or "pure_openrlhf" or "pure_verl" for those of PURE's two
                published implementations; presets set it.
            baseline: "token", "step", "length" or "response".
            mask_separators: no advantage for the last token of a step.
            kl_placement: "reward" or "loss".
            hack_caps: flag (see docs/reward_hacking.md) -> largest process reward, in
                [-1, 1], of the steps of a response that bears it; {} changes nothing.
            hack_limits: the fields of `HackLimits`, where flags begin.
            **kwargs: `ResponseRewardConfig`'s, `LLMConfig`'s, and RLlib's own.
        """
        if preset is not NotProvided and preset is not None:
            self._apply_preset(preset)
        super().training(**kwargs)
        return self._set(locals())

    def _apply_preset(self, preset: str) -> None:
        if preset not in PRESETS:
            raise ValueError(
                f'`preset` ("{preset}") must be one of {sorted(PRESETS)}. Or set the '
                "credit settings one by one."
            )
        for name in set(_CREDIT_SETTINGS) - set(_NOT_IN_PRESETS):
            setattr(self, name, getattr(PRESETS[preset], name))

    def credit_config(self) -> CreditConfig:
        """Returns the settings of credit assignment.

        Raises:
            ValueError: a setting cannot work.
        """
        return CreditConfig(**{name: getattr(self, name) for name in _CREDIT_SETTINGS})

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Adds the checks of credit assignment."""
        super().validate()
        self.credit_config()
        if self.gamma != 1.0 and self.credit_assignment != "sum":
            raise ValueError(
                f"`gamma` ({self.gamma}) has no effect with `credit_assignment` "
                f'("{self.credit_assignment}"), which takes a minimum. Set gamma to '
                '1.0 or credit_assignment to "sum".'
            )

    @override(LLMConfig)
    def advantage_connectors(self) -> list[ConnectorV2]:
        """Returns the connector from process and verifiable rewards to advantages."""
        return [PUREAdvantages(self.credit_config())]

    @override(LLMConfig)
    def earned(self, response: ResponseNumbers) -> Hashable:
        """Adds where steps end, unless the baseline is that for whole responses.

        The others take something off for each token or step.
        """
        rewards = super().earned(response)
        if not self.process_reward_coeff or self.baseline == "response":
            return rewards
        return rewards, tuple(np.asarray(response.step_spans)[:, 1].tolist())


class PURE(LLMAlgorithm):
    """Reinforcement learning of a language model from process rewards.

    Every iteration samples `num_prompts` groups of `group_size` responses, turns
    process rewards into per-token advantages by min-form credit assignment with
    leave-one-out baselines, and updates the policy with PPO's clipped loss.
    Source: PURE (arXiv 2504.15275).
    """

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> PUREConfig:
        """Returns the defaults."""
        return PUREConfig()
