"""Settings of credit assignment, and the sets of them that were published."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pure_rllib.credit.baselines import Baseline
from pure_rllib.credit.kl import KLEstimator
from pure_rllib.credit.normalize import NormalizeStyle
from pure_rllib.credit.policy_loss import LossAggregation
from pure_rllib.credit.returns import CreditAssignment
from pure_rllib.credit.steps import BlankSteps
from pure_rllib.setting_types import (
    NonNegativeFloat,
    PositiveFloat,
    Why,
    check_fields,
)

KLPlacement = Literal["reward", "loss"]
Formulas = Literal["ours", "pure_openrlhf", "pure_verl"]
CreditTemperature = Annotated[
    PositiveFloat,
    Why(
        "because it divides the process rewards; set "
        'credit_assignment="strict_min" for its limit 0'
    ),
]


@dataclass(frozen=True, kw_only=True)
class CreditConfig:
    """How rewards become advantages and advantages a loss. The defaults are ours.

    Attributes:
        credit_assignment: "min" (soft minimum), "strict_min" or "sum".
        credit_temperature: of the soft minimum, > 0, in reward units.
        gamma: discount per step, in [0, 1].
        baseline: "token", "step", "length" or "response".
        process_reward_coeff: weight of the process rewards, >= 0.
        verifiable_reward_coeff: weight of the verifiable reward, >= 0.
        kl_coeff: weight of the KL from the reference policy, >= 0.
        kl_estimator: see `kl.kl_estimate`.
        kl_placement: "reward" or "loss".
        mask_separators: whether the last token of each step has no advantage.
        normalize_advantages: False, True (over all loss tokens) or a style of
            `normalize.normalize_advantages`.
        blank_steps: "merge" or "keep"; see `steps.StepSplitter`.
        loss_aggregation: see `policy_loss.loss_denominator`.
        max_response_tokens: the token budget; needed by the "length" baseline,
            "fixed_length" aggregation and the formulas "pure_verl".
        formulas: whose formulas `pipeline.compute_advantages` applies; the published
            ones read of the settings above only what those variants can set.
    """

    credit_assignment: CreditAssignment = "min"
    credit_temperature: CreditTemperature = 0.1
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    baseline: Baseline = "token"
    process_reward_coeff: NonNegativeFloat = 1.0
    verifiable_reward_coeff: NonNegativeFloat = 1.0
    kl_coeff: NonNegativeFloat = 0.0
    kl_estimator: KLEstimator = "k1"
    kl_placement: KLPlacement = "reward"
    mask_separators: bool = True
    normalize_advantages: bool | NormalizeStyle = False
    blank_steps: BlankSteps = "merge"
    loss_aggregation: LossAggregation = "token_mean"
    max_response_tokens: int | None = None
    formulas: Formulas = "ours"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.process_reward_coeff == 0 and self.verifiable_reward_coeff == 0:
            raise ValueError(
                "`process_reward_coeff` (0) and `verifiable_reward_coeff` (0) must not "
                "both be 0: nothing would be learned. Set one of them to 1.0."
            )
        if self.formulas != "ours" and self.gamma != 1:
            raise ValueError(
                f"`gamma` ({self.gamma}) must be 1.0 with `formulas` "
                f'("{self.formulas}"), which know no discount.'
            )
        if self.formulas == "pure_openrlhf" and (
            self.baseline not in ("token", "step")
            or self.credit_assignment == "strict_min"
        ):
            raise ValueError(
                f"`baseline` ({self.baseline!r}) must be 'token' or 'step' and "
                f"`credit_assignment` ({self.credit_assignment!r}) 'min' or 'sum' with "
                "`formulas` 'pure_openrlhf', which know no other. Set formulas='ours'."
            )
        if self.formulas == "pure_verl" and self.baseline != "response":
            raise ValueError(
                f"`baseline` ({self.baseline!r}) must be 'response' with `formulas` "
                "'pure_verl', which know no other. Set formulas='ours'."
            )


PRESETS: dict[str, CreditConfig] = {
    # PURE, arXiv 2504.15275: equation 6 and nothing beside it.
    "paper": CreditConfig(baseline="length", mask_separators=False, blank_steps="keep"),
    # CJReinforce/PURE, branch main: the variant that users report to work.
    "pure_openrlhf": CreditConfig(
        formulas="pure_openrlhf",
        baseline="token",
        kl_coeff=0.001,
        kl_estimator="k1",
        mask_separators=True,
        normalize_advantages="pure_openrlhf",
        blank_steps="keep",
        loss_aggregation="sequence_mean",
    ),
    # CJReinforce/PURE, branch verl.
    "pure_verl": CreditConfig(
        formulas="pure_verl",
        baseline="response",
        kl_coeff=0.001,
        kl_estimator="low_var_kl",
        mask_separators=False,
        normalize_advantages="pure_verl",
        blank_steps="keep",
        loss_aggregation="token_mean",
    ),
}
