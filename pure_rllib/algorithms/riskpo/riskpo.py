"""RiskPO: what is raised is the lower tail of what bundles of questions earn."""

from dataclasses import fields
from typing import Any, Literal, Self

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms.llm_algorithm import LLMAlgorithm
from pure_rllib.algorithms.llm_config import LLMConfig
from pure_rllib.algorithms.response_rewards import ResponseRewardConfig
from pure_rllib.connectors.risk_advantages import RiskAdvantages
from pure_rllib.credit.risk import (
    RISK_PRESETS,
    BundleCredit,
    RiskConfig,
    RiskQuantiles,
    RiskTail,
    StdOver,
)
from pure_rllib.setting_types import Count, NonNegativeFloat, PositiveFloat, Share

_RISK_SETTINGS = tuple(field.name for field in fields(RiskConfig))


class RiskPOConfig(ResponseRewardConfig):
    """Defines a configuration from which a RiskPO algorithm can be built.

    The defaults differ from the published scripts: quantiles are tracked over the run
    and used, sums are divided by their deviation over all bundles of an iteration, all
    responses of a sheet get its advantage, and advantages have both signs. The presets
    are the scripts' forms.
    """

    def __init__(self, algo_class: Any = None):
        """Lists where the defaults differ from those of `ResponseRewardConfig`."""
        super().__init__(algo_class=algo_class or RiskPO)
        # .env_runners()
        self.num_prompts = 20
        # .training()
        self.preset: str | None = None
        self.bundle_size = 5
        for name in _RISK_SETTINGS:
            setattr(self, name, getattr(RiskConfig(), name))
        self.dual_clip = 3.0

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        preset: str | None = NotProvided,
        bundle_size: Count = NotProvided,
        lower_level: Share = NotProvided,
        upper_level: Share = NotProvided,
        risk_tail: RiskTail = NotProvided,
        tail_weight: NonNegativeFloat = NotProvided,
        zero_at: Literal["lower", "upper"] = NotProvided,
        mean_baseline: bool = NotProvided,
        quantiles: RiskQuantiles = NotProvided,
        quantile_lr: PositiveFloat = NotProvided,
        std_over: StdOver | None = NotProvided,
        bundle_credit: BundleCredit = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets bundles and risk, and what `ResponseRewardConfig.training` sets.

        Args:
            preset: "published_math", "published_dapo" or "risk_seeking": sets the
                settings of `credit.risk.RiskConfig` as the published scripts have
                them; the others of this call win over it.
            bundle_size: consecutive prompts whose rewards are added up, >= 1.
            lower_level: see `credit.risk.RiskConfig` for this and all that follow.
            upper_level: likewise.
            risk_tail: "lower" or "upper".
            tail_weight: >= 0.
            zero_at: "lower" or "upper".
            mean_baseline: likewise.
            quantiles: "track", "batch" or "mix".
            quantile_lr: > 0, in reward.
            std_over: "iteration", "bundle" or None.
            bundle_credit: "uniform", "score", "std" or "sum-mean".
            **kwargs: `ResponseRewardConfig`'s, `LLMConfig`'s, and RLlib's own.
        """
        if preset is not NotProvided and preset is not None:
            self._apply_preset(preset)
        super().training(**kwargs)
        return self._set(locals())

    def _apply_preset(self, preset: str) -> None:
        if preset not in RISK_PRESETS:
            raise ValueError(
                f'`preset` ("{preset}") must be one of {sorted(RISK_PRESETS)}. Or set '
                "the settings of risk one by one."
            )
        for name in _RISK_SETTINGS:
            setattr(self, name, getattr(RISK_PRESETS[preset], name))

    def risk_config(self) -> RiskConfig:
        """Returns the settings of risk.

        Raises:
            ValueError: a setting cannot work.
        """
        return RiskConfig(**{name: getattr(self, name) for name in _RISK_SETTINGS})

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Adds the checks of risk."""
        super().validate()
        risk, size = self.risk_config(), self.bundle_size
        rest = self.num_prompts % size
        if rest and (risk.is_tracked or risk.std_over == "iteration"):
            raise ValueError(
                f"`num_prompts` ({self.num_prompts}) must be a multiple of "
                f"`bundle_size` ({size}), because a last bundle of {rest} would be "
                "compared with sums over more questions. Set "
                f"`.env_runners(num_prompts={self.num_prompts + size - rest})`."
            )
        if risk.is_tracked and self.no_signal_groups != "keep":
            raise ValueError(
                f'`no_signal_groups` ("{self.no_signal_groups}") must be "keep" with '
                "tracked quantiles, because groups whose rewards are all equal are "
                "compared with those of the run as well. Leave it out, or set "
                '`quantiles` to "batch".'
            )
        if risk.bundle_credit == "score" and self.process_reward_coeff:
            raise ValueError(
                '`bundle_credit` ("score") must be another one with a '
                f"`process_reward_coeff` ({self.process_reward_coeff}), because it "
                "tells right from wrong responses by a reward above 0, which good "
                'steps earn as well. Set it to "uniform".'
            )

    @override(LLMConfig)
    def advantage_connectors(self) -> list[ConnectorV2]:
        """Returns the comparison of bundles."""
        return [RiskAdvantages(self.risk_config(), self.bundle_size)]

    @override(LLMConfig)
    def groups_together(self) -> int:
        """Returns the size of a bundle."""
        return self.bundle_size


class RiskPO(LLMAlgorithm):
    """Risk-based policy optimisation, on verifiable or process rewards.

    Every iteration adds up the rewards of bundles of `bundle_size` prompts and raises
    the Mixed Value-at-Risk of these sums, by PPO's loss with a dual clip.
    Source: RiskPO (arXiv 2510.00911), and its code for what that leaves open.
    """

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> RiskPOConfig:
        """Returns the defaults."""
        return RiskPOConfig()
