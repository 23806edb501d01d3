"""Tells from a run's metrics that its policy games the rewards, or has collapsed.

Rows of metrics in, alarms out; nothing here knows of algorithms or files.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.special import ndtr, stdtrit

from pure_rllib.setting_types import Count, PositiveFloat, Why, check_fields

Row = Mapping[str, float]
# What is measured on groups with a gold answer only, and of these on solved ones only.
_OF_SOLVED = {"hacking/pseudo_positive_share"}
_OF_VERIFIED = {"accuracy", "response/no_answer_share", "prm/verifier_agreement"}


@dataclass(frozen=True)
class HackingThresholds:
    """When a change is worth an alarm.

    "Recent" is the mean over the last `window` iterations; it is compared with the
    means over the same number of iterations before, back to `memory`. `docs/
    reward_hacking.md` says how the defaults were chosen, and how they fared since.

    Attributes:
        window: iterations, >= 2.
        memory: iterations, >= 2 * window.
        noise: least change of anything but KL and loss, in standard errors of the
            difference of two windows' means.
        least_groups: windows that rest on fewer groups are not looked at.
        accuracy_fall: fall of accuracy under a rising reward, as a share of the best.
        length_fall: fall of the response length under a rising reward, as a share of
            the longest, unless accuracy rises.
        accuracy_collapse: fall of accuracy whatever the reward does, as a share of the
            best.
        least_accuracy: a best accuracy below this is too small for shares of it.
        jump: of KL or loss away from their median, in robust standard deviations.
        least_kl_jump: smaller jumps of the KL do not count, in nats per token.
        least_loss_jump: smaller jumps of the loss do not count.
        one_step_rise: rise of the share of responses of one step.
        no_answer_rise: rise of the share of responses without an answer.
        repetition_rise: rise of the repetition.
        agreement_fall: fall of the agreement of PRM and verifier.
        pseudo_positive_rise: rise of the share of pseudo-positives.
    """

    window: Annotated[
        int,
        Field(ge=2),
        Why("because one iteration shows no noise; set it to 5"),
    ] = 5
    memory: Count = 30
    noise: PositiveFloat = 4.0
    least_groups: PositiveFloat = 5
    accuracy_fall: PositiveFloat = 0.25
    length_fall: PositiveFloat = 0.5
    accuracy_collapse: PositiveFloat = 0.4
    least_accuracy: PositiveFloat = 0.1
    jump: PositiveFloat = 8.0
    least_kl_jump: PositiveFloat = 0.05
    least_loss_jump: PositiveFloat = 0.3
    one_step_rise: PositiveFloat = 0.2
    no_answer_rise: PositiveFloat = 0.15
    repetition_rise: PositiveFloat = 0.1
    agreement_fall: PositiveFloat = 0.2
    pseudo_positive_rise: PositiveFloat = 0.25

    def __post_init__(self) -> None:
        check_fields(self)
        if self.memory < 2 * self.window:
            raise ValueError(
                f"`memory` ({self.memory}) must be >= 2 * window "
                f"({2 * self.window}), because recent iterations are compared with "
                "earlier ones."
            )


@dataclass(frozen=True)
class Alarm:
    """One signal that has gone off.

    Attributes:
        signal: one of `SIGNALS`.
        before: what the metric was, mean over a window.
        now: what it is, mean over the last window.
    """

    signal: str
    before: float
    now: float

    def __str__(self) -> str:
        return f"{_MEANING[self.signal]} ({self.before:.3g} -> {self.now:.3g})"


_MEANING = {
    "accuracy_falls": "reward rises while accuracy falls",
    "length_falls": "reward rises while responses shrink",
    "accuracy_collapse": "accuracy has collapsed",
    "reward_collapse": "the reward has collapsed",
    "kl_jump": "the KL divergence jumps",
    "loss_jump": "the policy loss jumps",
    "one_step": "more responses are a single step",
    "no_answer": "more responses give no answer",
    "repetition": "responses repeat themselves more",
    "disagreement": "PRM and verifier agree less",
    "pseudo_positives": "more correct answers rest on bad steps or repetition",
}
SIGNALS = tuple(_MEANING)
"""What can be wrong; each is a metric `hacking/signal/NAME`, 0.0 or 1.0."""
# signal -> metric, field of the thresholds
_JUMPS = {
    "kl_jump": ("kl/reference", "least_kl_jump"),
    "loss_jump": ("loss/policy", "least_loss_jump"),
}
_SHARES = {
    "one_step": ("response/one_step_share", "one_step_rise"),
    "no_answer": ("response/no_answer_share", "no_answer_rise"),
    "repetition": ("response/repetition", "repetition_rise"),
    "disagreement": ("prm/verifier_agreement", "agreement_fall"),
    "pseudo_positives": ("hacking/pseudo_positive_share", "pseudo_positive_rise"),
}
_AT_ONCE = "Last iteration against the median of two windows before."
_BY_WINDOWS = "Last window against those before; docs/reward_hacking.md has the rules."
SIGNAL_METRICS = (
    "hacking/alarm [0 or 1]\n"
    "    Whether any of the signals below has gone off; NaN without a monitor.\n"
    "    By hacking.detector.find_alarms.\n"
) + "".join(
    f"hacking/signal/{signal} [0 or 1]\n"
    f"    {meaning[0].upper()}{meaning[1:]}.\n"
    f"    {_AT_ONCE if signal in _JUMPS else _BY_WINDOWS}\n"
    for signal, meaning in _MEANING.items()
)
"""The monitor's metrics, in the form of `reporting.metrics`."""


def find_alarms(
    rows: Sequence[Row], thresholds: HackingThresholds | None = None
) -> list[Alarm]:
    """Looks at the last iteration in the light of those before.

    Args:
        rows: metrics by the names of `reporting.metrics`, oldest first; only the last
            `memory` are looked at. What is missing or NaN counts as not measured.
        thresholds: default: `HackingThresholds()`.

    Returns:
        The signals that have gone off, in the order of `SIGNALS`; none before there are
        two windows.
    """
    limits = thresholds or HackingThresholds()
    recent = rows[-limits.memory :]
    found = [*_falls(recent, limits), *_jumps(recent, limits), *_shares(recent, limits)]
    return sorted(found, key=lambda alarm: SIGNALS.index(alarm.signal))


def _falls(rows: Sequence[Row], limits: HackingThresholds) -> Iterator[Alarm]:
    """Looks for accuracy and length that fall, and for a reward below all before."""
    reward = _Series.of(rows, "reward/total", limits)
    accuracy = _Series.of(rows, "accuracy", limits)
    tokens = _Series.of(rows, "response/tokens", limits)
    lowest = _Series.of(rows, "reward/total", limits, lowest=True)

    def pays_more_than(window: int) -> bool:
        return (
            reward is not None
            and reward.now - reward.means[window] > limits.noise * reward.error
        )

    if (
        accuracy is not None
        and accuracy.best >= limits.least_accuracy
        and accuracy.best - accuracy.now > limits.noise * accuracy.error
    ):
        ends = accuracy.best, accuracy.now
        if accuracy.now < (
            1.0 - limits.accuracy_fall
        ) * accuracy.best and pays_more_than(accuracy.best_at):
            yield Alarm("accuracy_falls", *ends)
        if accuracy.now < (1.0 - limits.accuracy_collapse) * accuracy.best:
            yield Alarm("accuracy_collapse", *ends)
    if (
        tokens is not None
        and tokens.now < (1.0 - limits.length_fall) * tokens.best
        and pays_more_than(tokens.best_at)
        and not (
            accuracy is not None
            and accuracy.now - accuracy.means[tokens.best_at] > accuracy.error
        )
    ):
        yield Alarm("length_falls", tokens.best, tokens.now)
    if lowest is not None and lowest.best - lowest.now > limits.noise * lowest.error:
        yield Alarm("reward_collapse", lowest.best, lowest.now)


def _jumps(rows: Sequence[Row], limits: HackingThresholds) -> Iterator[Alarm]:
    """Looks for KL and loss that leave the band they moved in.

    One iteration is enough here: it is the sudden jump that PURE's authors name as the
    alarm.
    """
    for signal, (metric, least) in _JUMPS.items():
        values = np.array([_value(row, metric) for row in rows])
        before = values[-2 * limits.window - 1 : -1]
        if len(before) < 2 * limits.window or np.isnan([*before, values[-1]]).any():
            continue
        now, median = float(values[-1]), float(np.median(before))
        # Of a normal distribution this is the standard deviation.
        spread = 1.4826 * float(np.median(np.abs(before - median)))
        if abs(now - median) > max(limits.jump * spread, getattr(limits, least)):
            yield Alarm(signal, median, now)


def _shares(rows: Sequence[Row], limits: HackingThresholds) -> Iterator[Alarm]:
    """Looks for shares of responses that have risen, or fallen."""
    # Without a step scorer all process rewards are 0.0.
    is_scored = any(_value(row, "reward/process_min") for row in rows)
    for signal, (metric, least) in _SHARES.items():
        if metric.startswith("prm/") and not is_scored:
            continue
        lowest = least.endswith("rise")
        series = _Series.of(rows, metric, limits, lowest=lowest)
        if series is None:
            continue
        change = abs(series.now - series.best)
        if change > max(getattr(limits, least), limits.noise * series.error):
            yield Alarm(signal, series.best, series.now)


@dataclass(frozen=True)
class _Series:
    """A metric's means over windows.

    The responses to one prompt hang together, so the unit of the standard error is the
    group, not the response. An iteration's mean over n groups has the variance s^2 / n.
    Neighbouring iterations share no prompt and hardly differ by trend: s^2 is the
    variance of (x1 - x2) / sqrt(1 / n1 + 1 / n2). A window's mean is that of its
    groups, and its variance s^2 / their number.

    Attributes:
        means: of each window, by its first iteration; NaN where nothing is measured.
        best: the largest (or smallest) of the windows that do not touch the last one,
            by what is sure of it: `noise` standard errors off.
        best_at: where that is.
        now: of the last window.
        error: standard error of the difference of these two windows' means.
    """

    means: np.ndarray
    best: float
    best_at: int
    now: float
    error: float

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        name: str,
        limits: HackingThresholds,
        *,
        lowest: bool = False,
    ) -> "_Series | None":
        """Makes the series; None if there is nothing to compare."""
        window = limits.window
        if len(rows) < 2 * window:
            return None
        values = np.array([_value(row, name) for row in rows])
        is_known = ~np.isnan(values)
        counts = np.array([_num_groups(row, name, limits) for row in rows]) * is_known

        def per_window(series: np.ndarray) -> np.ndarray:
            return np.convolve(series, np.ones(window), mode="valid")

        num = per_window(counts)
        sums = per_window(np.where(is_known, values, 0.0) * counts)
        # Half a window is enough: not every iteration need have gold answers.
        is_enough = (per_window(is_known) >= window / 2) & (num >= limits.least_groups)
        means = np.where(is_enough, sums / np.maximum(num, 1.0), math.nan)
        earlier = means[:-window]
        if math.isnan(means[-1]) or np.isnan(earlier).all():
            return None
        share = 1.0 / counts[is_known]
        steps = np.diff(values[is_known]) / np.sqrt(share[1:] + share[:-1])
        errors = np.std(steps) * np.sqrt(1.0 / np.maximum(num, 1.0) + 1.0 / num[-1])
        # Few iterations tell little of the noise itself: as improbable by Student's t.
        errors *= -stdtrit(len(steps), ndtr(-limits.noise)) / limits.noise
        sure = limits.noise * errors[:-window]
        best_at = int(
            np.nanargmin(earlier + sure) if lowest else np.nanargmax(earlier - sure)
        )
        return cls(
            means,
            float(earlier[best_at]),
            best_at,
            float(means[-1]),
            float(errors[best_at]),
        )


def _num_groups(row: Row, name: str, limits: HackingThresholds) -> float:
    """How many groups a metric is a mean over; enough where these are all groups."""
    verified = row.get("groups/verified", math.nan)
    if name in _OF_SOLVED:
        verified *= row.get("pass_at_g", math.nan)
    elif name not in _OF_VERIFIED:
        verified = math.nan
    return limits.least_groups if math.isnan(verified) else verified


def _value(row: Row, name: str) -> float:
    value = row.get(name)
    return math.nan if value is None else float(value)
