"""PURE: the return of a token is the minimum of the process rewards still to come."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field, FiniteFloat
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms.llm_algorithm import LLMAlgorithm
from pure_rllib.algorithms.llm_config import LLMConfig
from pure_rllib.connectors.pure_advantages import PUREAdvantages
from pure_rllib.credit.baselines import Baseline
from pure_rllib.credit.presets import (
    PRESETS,
    CreditConfig,
    CreditTemperature,
    Formulas,
    KLPlacement,
)
from pure_rllib.credit.returns import CreditAssignment, step_credits
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.models.columns import length_mask
from pure_rllib.reporting.records import ResponseNumbers
from pure_rllib.setting_types import NonNegativeFloat

# How blank steps end is the step splitter's matter, not a setting.
_CREDIT_SETTINGS = tuple(
    field.name for field in fields(CreditConfig) if field.name != "blank_steps"
)
# What a preset leaves alone: it belongs to the run and not to the variant.
_NOT_IN_PRESETS = ("gamma", "max_response_tokens")
# Rewards that differ by less are equal: a PRM's last digits hang on the batch.
_DECIMALS = 5


class PUREConfig(LLMConfig):
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

    def __init__(self, algo_class: Any = None):
        """Lists every setting of PURE's own with its default."""
        super().__init__(algo_class=algo_class or PURE)
        # .training()
        self.preset: str | None = None
        self.formulas = "ours"
        self.credit_assignment: CreditAssignment = "min"
        self.credit_temperature = 0.1
        self.baseline = "token"
        self.process_reward_coeff = 1.0
        self.verifiable_reward_coeff = 1.0
        self.mask_separators = True
        self.kl_placement = "reward"

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        preset: str | None = NotProvided,
        formulas: Formulas = NotProvided,
        credit_assignment: CreditAssignment = NotProvided,
        credit_temperature: CreditTemperature = NotProvided,
        baseline: Baseline = NotProvided,
        process_reward_coeff: NonNegativeFloat = NotProvided,
        verifiable_reward_coeff: NonNegativeFloat = NotProvided,
        mask_separators: bool = NotProvided,
        kl_placement: KLPlacement = NotProvided,
        hack_caps: Mapping[
            str, Annotated[FiniteFloat, Field(ge=-1, le=1)]
        ] = NotProvided,
        hack_limits: Mapping[str, float] = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets credit assignment, and what `LLMConfig.training` sets.

        Args:
            preset: "paper", "pure_openrlhf" or "pure_verl": sets the settings in which
                PURE's published variants differ; the others of this call win over it.
            formulas: "ours", or "pure_openrlhf" or "pure_verl" for those of PURE's two
                published implementations; presets set it.
            credit_assignment: "min" (soft minimum), "strict_min" or "sum".
            credit_temperature: of the soft minimum, > 0, in reward units.
            baseline: "token", "step", "length" or "response".
            process_reward_coeff: weight of the PRM's rewards, >= 0.
            verifiable_reward_coeff: weight of the verifier's reward, >= 0.
            mask_separators: no advantage for the last token of a step.
            kl_placement: "reward" or "loss".
            hack_caps: flag (see docs/reward_hacking.md) -> largest process reward, in
                [-1, 1], of the steps of a response that bears it; {} changes nothing.
            hack_limits: the fields of `HackLimits`, where flags begin.
            **kwargs: `LLMConfig`'s, and RLlib's own.
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
        """Adds process rewards; a stream whose coefficient is 0 does not count.

        Where steps end does, unless the baseline is that for whole responses: the
        others take something off for each token or step.
        """
        counts = bool(self.verifiable_reward_coeff)
        verifiable = response.verifiable_reward if counts else None
        if not self.process_reward_coeff:
            return verifiable
        rewards = np.round(np.asarray(response.step_rewards), _DECIMALS).tolist()
        ends = np.asarray(response.step_spans)[:, 1].tolist()
        return (
            verifiable,
            tuple(rewards),
            tuple(ends) if self.baseline != "response" else None,
        )


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
