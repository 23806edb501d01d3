"""Risk-sensitive advantages over bundles of questions: RiskPO (arXiv 2510.00911).

N responses, Q questions in a bundle, M answer sheets of a bundle. Sheet j takes the
j-th response to each of the bundle's questions, and S is the sum of their rewards. What
the policy is to raise is not the mean of S but a functional of its distribution in
which the lower tail counts most and the top nothing. What the paper leaves open is as
in its code, RTkenny/RiskPO.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pure_rllib.credit.tensors import at_least_float32
from pure_rllib.setting_types import (
    NonNegativeFloat,
    PositiveFloat,
    Share,
    check_fields,
)

RiskTail = Literal["lower", "upper"]
RiskQuantiles = Literal["track", "batch", "mix"]
BundleCredit = Literal["uniform", "score", "std", "sum-mean"]
StdOver = Literal["iteration", "bundle"]

LEVELS = tuple(i / 20 for i in range(1, 20))
"""Levels of the quantiles that are tracked: .05, .10, ... .95."""

_EPSILON = 1.0e-6
# Of sums of rewards over a bundle: about what one sheet makes that differs by 1 from a
# hundred equal ones. Below, the noise of a single answer would be blown up.
_LEAST_STD = 0.1
_LEAST_STD_OF_QUESTION = 1.0e-3


@dataclass(frozen=True, kw_only=True)
class RiskConfig:
    """How the sums S of bundles become advantages. The defaults are ours.

    Attributes:
        lower_level: a: the tail that counts most is what lies below this quantile.
        upper_level: b > a: what lies above this quantile counts as the quantile does.
        risk_tail: "lower", or "upper" to seek risk: what lies above b counts more.
        tail_weight: w >= 0 of the tail beside the part between the quantiles; 0.0
            leaves the tail out.
        zero_at: the part between the quantiles is 0 at the "lower" or at the "upper"
            one. At the upper one no advantage of a risk-averse policy is above 0.
        mean_baseline: take off what the tracked distribution gives on average.
        quantiles: "track" (over the run), "batch" (of the bundle's own sheets), or
            "mix" (the mean of both).
        quantile_lr: by how much of a missed share tracked quantiles move, in reward.
        std_over: divide by the standard deviation of S over all sheets of the
            "iteration", at least 0.1, or over those of the "bundle"; None does not.
        bundle_credit: what a sheet's advantage is multiplied by for each of its
            responses: "uniform" 1; "score" 0.5 for a rewarded response and 1.5 for
            others; "std" one over the standard deviation of the question's rewards;
            "sum-mean" the response's share of what the sheet's rewards are above their
            questions' means. The last inverts signs where a good sheet is below them.
    """

    lower_level: Share = 0.2
    upper_level: Share = 0.8
    risk_tail: RiskTail = "lower"
    tail_weight: NonNegativeFloat = 1.5
    zero_at: Literal["lower", "upper"] = "lower"
    mean_baseline: bool = False
    quantiles: RiskQuantiles = "track"
    quantile_lr: PositiveFloat = 0.1
    std_over: StdOver | None = "iteration"
    bundle_credit: BundleCredit = "uniform"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0.0 < self.lower_level < self.upper_level < 1.0:
            raise ValueError(
                f"`lower_level` ({self.lower_level}) and `upper_level` "
                f"({self.upper_level}) must be 0 < lower_level < upper_level < 1, "
                "because they cut a distribution into three parts. Set them to 0.2 and "
                "0.8."
            )
        for name in ("lower_level", "upper_level"):
            level = getattr(self, name)
            if self.is_tracked and abs(level - LEVELS[_index(level)]) > _EPSILON:
                raise ValueError(
                    f"`{name}` ({level}) must be a multiple of 0.05 with tracked "
                    f"quantiles, because these are tracked. Set it to "
                    f'{LEVELS[_index(level)]}, or `quantiles` to "batch".'
                )

    @property
    def is_tracked(self) -> bool:
        """Whether an advantage hangs on earlier iterations."""
        return self.quantiles != "batch" or self.mean_baseline

    def middle(self, sums: Tensor, low: float, high: float) -> Tensor:
        """The part of S between the quantiles, not yet divided by its width."""
        zero = low if self.zero_at == "lower" else high
        return sums.clamp(low, high) - zero

    def tail(self, sums: Tensor, low: float, high: float) -> Tensor:
        """The part of S in the tail, not yet divided by its width."""
        if self.risk_tail == "lower":
            return -(low - sums).clamp(min=0.0)
        return (sums - high).clamp(min=0.0)

    @property
    def tail_width(self) -> float:
        """Probability of the tail."""
        is_lower = self.risk_tail == "lower"
        return self.lower_level if is_lower else 1.0 - self.upper_level


RISK_PRESETS: dict[str, RiskConfig] = {
    # The scripts of RTkenny/RiskPO. They ask for tracked quantiles, which their code
    # never hands to the advantages: a bundle is held against its own quantiles.
    "published_math": RiskConfig(
        upper_level=0.9,
        zero_at="upper",
        quantiles="batch",
        std_over="bundle",
        bundle_credit="std",
    ),
    "published_dapo": RiskConfig(
        quantiles="batch", std_over="bundle", bundle_credit="sum-mean"
    ),
    "risk_seeking": RiskConfig(
        risk_tail="upper",
        zero_at="upper",
        quantiles="batch",
        std_over="bundle",
        bundle_credit="std",
    ),
}


class QuantileTracker:
    """Follows the quantiles of S over a run.

    The first iteration sets them to the empirical ones; then each moves up by
    `lr * level` and down by `lr` times the share of sheets below it, so that it rests
    where this share is its level.

    Args:
        lr: see `RiskConfig.quantile_lr`.

    Attributes:
        values: `[19]` float64, of `LEVELS`; None before the first iteration.
    """

    def __init__(self, lr: float):
        self.lr = lr
        self.values: Tensor | None = None

    def update(self, sums: Tensor) -> None:
        """Takes in an iteration.

        Args:
            sums: `[n]`, n >= 1: S of all its sheets, in any order.
        """
        levels = torch.tensor(LEVELS, dtype=torch.float64)
        if self.values is None:
            self.values = torch.quantile(sums.double(), levels)
            return
        shares = (sums.double()[:, None] < self.values).double().mean(dim=0)
        self.values = self.values + self.lr * (levels - shares)

    def at(self, level: float) -> float:
        """Returns the quantile of the level that is nearest to this one."""
        assert self.values is not None, "`update` comes first"
        return float(self.values[_index(level)])

    def averages(self, config: RiskConfig) -> tuple[float, float]:
        """Returns what middle and tail are on average over the tracked levels."""
        assert self.values is not None, "`update` comes first"
        low, high = self.at(config.lower_level), self.at(config.upper_level)
        levels = torch.tensor(LEVELS, dtype=torch.float64)
        middle = torch.trapezoid(config.middle(self.values, low, high), levels)
        tail = torch.trapezoid(config.tail(self.values, low, high), levels)
        return float(middle), float(tail) if config.tail_weight else 0.0


@dataclass(frozen=True, slots=True)
class Bundle:
    """The rows of some questions' responses, dealt out to answer sheets.

    Attributes:
        questions: row numbers of each question's responses.
        sheets: `[Q, M]` row numbers; M is the smallest number of responses to a
            question. Further responses are on no sheet.
    """

    questions: list[Tensor]
    sheets: Tensor

    def sums(self, rewards: Tensor) -> Tensor:
        """Returns S, `[M]` float64; a reward of NaN (there is none) adds 0."""
        return rewards.double().nan_to_num(nan=0.0)[self.sheets].sum(dim=0)


def bundles_of(group_index: Tensor, bundle_index: Tensor) -> list[Bundle]:
    """Finds the bundles of N responses, in any order.

    Args:
        group_index: `[N]` integers, equal for responses to one question.
        bundle_index: `[N]` integers, equal for responses of one bundle.
    """
    bundles = []
    for bundle in bundle_index.unique():
        groups = group_index[bundle_index == bundle].unique()
        rows = [(group_index == group).nonzero().flatten() for group in groups]
        num_sheets = min(map(len, rows))
        bundles.append(Bundle(rows, torch.stack([one[:num_sheets] for one in rows])))
    return bundles


def risk_advantages(
    rewards: Tensor,
    bundles: Sequence[Bundle],
    config: RiskConfig,
    *,
    tracker: QuantileTracker | None = None,
    std: float | None = None,
) -> Tensor:
    """The advantage of each response.

    Args:
        rewards: `[N]`, NaN where there is none.
        bundles: of these N responses.
        config: the settings.
        tracker: has seen this iteration; read if quantiles are tracked.
        std: see `iteration_std`; read with `std_over` "iteration".

    Returns:
        `[N]`; 0.0 for a response that is on no sheet or has no reward.
    """
    values = rewards.double().nan_to_num(nan=0.0)
    advantages = torch.zeros_like(values)
    averages = (0.0, 0.0)
    if config.mean_baseline:
        assert tracker is not None, "the averages are of what was tracked"
        averages = tracker.averages(config)
    for bundle in bundles:
        sums = bundle.sums(rewards)
        quantiles = _quantiles(sums, config, tracker)
        of_sheets = _advantages_of_sheets(sums, quantiles, averages, config)
        of_sheets = of_sheets / _deviation(sums, config, std)
        credit = _credit(values, bundle, config.bundle_credit)
        advantages[bundle.sheets] = of_sheets * credit
    advantages = advantages.masked_fill(rewards.isnan(), 0.0)
    return advantages.to(at_least_float32(rewards).dtype)


def iteration_std(sums: Tensor) -> float:
    """Returns the standard deviation of S over an iteration, at least 0.1.

    Args:
        sums: `[n]`, n >= 1: S of all its sheets.
    """
    return float(_std(sums.double()).clamp(min=_LEAST_STD))


def risk_means(sums: Tensor, low: float, high: float) -> tuple[float, float]:
    """Returns the means of S between two quantiles and below the lower one.

    Args:
        sums: `[n]`, n >= 1.
        low: the lower quantile.
        high: the upper one. Where no sheet is in a part, its mean is that of all.
    """
    parts = ((sums >= low) & (sums <= high), sums <= low)
    middle, tail = (
        float((sums[part] if part.any() else sums).double().mean()) for part in parts
    )
    return middle, tail


def _index(level: float) -> int:
    return min(range(len(LEVELS)), key=lambda i: abs(LEVELS[i] - level))


def _quantiles(
    sums: Tensor, config: RiskConfig, tracker: QuantileTracker | None
) -> tuple[float, float]:
    levels = (config.lower_level, config.upper_level)
    own = torch.quantile(sums, sums.new_tensor(levels)).tolist()
    if config.quantiles == "batch":
        return own[0], own[1]
    assert tracker is not None, "tracked quantiles need a tracker"
    tracked = [tracker.at(level) for level in levels]
    if config.quantiles == "mix":
        tracked = [(x + y) / 2 for x, y in zip(tracked, own, strict=True)]
    return tracked[0], tracked[1]


def _advantages_of_sheets(
    sums: Tensor,
    quantiles: tuple[float, float],
    averages: tuple[float, float],
    config: RiskConfig,
) -> Tensor:
    """`[M]` weighted mean of middle and tail, each over its width."""
    width = config.upper_level - config.lower_level
    middle = (config.middle(sums, *quantiles) - averages[0]) / (width + _EPSILON)
    tail = config.tail(sums, *quantiles) - averages[1]
    tail = tail / (config.tail_width + _EPSILON)
    return (config.tail_weight * tail + middle) / (config.tail_weight + 1.0)


def _deviation(sums: Tensor, config: RiskConfig, std: float | None) -> Tensor | float:
    if config.std_over == "bundle":
        return _std(sums) + _EPSILON
    if config.std_over is None:
        return 1.0
    assert std is not None, "the deviation is that of the iteration"
    return std


def _credit(rewards: Tensor, bundle: Bundle, form: BundleCredit) -> Tensor:
    """`[Q, M]` factors of the responses' advantages."""
    of_sheets = rewards[bundle.sheets]
    if form == "uniform":
        return torch.ones_like(of_sheets)
    if form == "score":
        return torch.where(of_sheets > 0.0, 0.5, 1.5).to(rewards.dtype)
    if form == "std":
        stds = torch.stack([_std(rewards[rows]) for rows in bundle.questions])
        stds = stds.masked_fill(stds <= _LEAST_STD_OF_QUESTION, 1.0)
        return (1.0 / (stds + _EPSILON))[:, None].expand_as(of_sheets)
    means = torch.stack([rewards[rows].mean() for rows in bundle.questions])
    excess = of_sheets - means[:, None]
    total = excess.sum(dim=0)
    is_small = total.abs() <= _EPSILON
    return torch.where(
        is_small, 1.0 / len(excess), excess / total.masked_fill(is_small, 1.0)
    )


def _std(values: Tensor) -> Tensor:
    """The unbiased standard deviation; 1.0 of a single value."""
    return values.std() if len(values) > 1 else values.new_ones(())
