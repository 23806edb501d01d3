"""Tells from a run's metrics that its policy games the rewards, or has collapsed.

Rows of metrics in, alarms out; nothing here knows of algorithms or files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

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

    window: int = 5
    memory: int = 30
    noise: float = 4.0
    least_groups: int = 5
    accuracy_fall: float = 0.25
    length_fall: float = 0.5
    accuracy_collapse: float = 0.4
    least_accuracy: float = 0.1
    jump: float = 8.0
    least_kl_jump: float = 0.05
    least_loss_jump: float = 0.3
    one_step_rise: float = 0.2
    no_answer_rise: float = 0.15
    repetition_rise: float = 0.1
    agreement_fall: float = 0.2
    pseudo_positive_rise: float = 0.25

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not (
                isinstance(value, int | float) and 0 < value < math.inf
            ):
                raise ValueError(
                    f"`{field.name}` ({value!r}) must be a number > 0, because an "
                    "alarm is a change by more than that."
                )
        if not (isinstance(self.window, int) and self.window >= 2):
            raise ValueError(
                f"`window` ({self.window}) must be an integer >= 2, because one "
                "iteration shows no noise. Set it to 5."
            )
        if not (isinstance(self.memory, int) and self.memory >= 2 * self.window):
            raise ValueError(
                f"`memory` ({self.memory}) must be an integer >= 2 * window "
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
    found = [
        *_under_rising_reward(recent, limits),
        *_collapses(recent, limits),
        *_jumps(recent, limits),
        *_shares(recent, limits),
    ]
    return sorted(found, key=lambda alarm: SIGNALS.index(alarm.signal))


def _under_rising_reward(rows: Sequence[Row], limits: HackingThresholds) -> list[Alarm]:
    reward = _Series.of(rows, "reward/total", limits)
    accuracy = _Series.of(rows, "accuracy", limits)
    tokens = _Series.of(rows, "response/tokens", limits)
    if reward is None:
        return []
    alarms = []
    if accuracy is not None and accuracy.best >= limits.least_accuracy:
        rise = reward.now - reward.means[accuracy.best_at]
        if (
            rise > limits.noise * reward.error
            and accuracy.now < (1.0 - limits.accuracy_fall) * accuracy.best
            and accuracy.best - accuracy.now > limits.noise * accuracy.error
        ):
            alarms.append(Alarm("accuracy_falls", accuracy.best, accuracy.now))
    if tokens is not None:
        rise = reward.now - reward.means[tokens.best_at]
        is_better = (
            accuracy is not None
            and accuracy.now - accuracy.means[tokens.best_at] > accuracy.error
        )
        if (
            rise > limits.noise * reward.error
            and tokens.now < (1.0 - limits.length_fall) * tokens.best
            and not is_better
        ):
            alarms.append(Alarm("length_falls", tokens.best, tokens.now))
    return alarms


def _collapses(rows: Sequence[Row], limits: HackingThresholds) -> list[Alarm]:
    alarms = []
    accuracy = _Series.of(rows, "accuracy", limits)
    if (
        accuracy is not None
        and accuracy.best >= limits.least_accuracy
        and accuracy.now < (1.0 - limits.accuracy_collapse) * accuracy.best
        and accuracy.best - accuracy.now > limits.noise * accuracy.error
    ):
        alarms.append(Alarm("accuracy_collapse", accuracy.best, accuracy.now))
    reward = _Series.of(rows, "reward/total", limits, lowest=True)
    if reward is not None and reward.best - reward.now > limits.noise * reward.error:
        alarms.append(Alarm("reward_collapse", reward.best, reward.now))
    return alarms


def _jumps(rows: Sequence[Row], limits: HackingThresholds) -> list[Alarm]:
    """Looks for KL and loss that leave the band they moved in.

    One iteration is enough here: it is the sudden jump that PURE's authors name as the
    alarm.
    """
    alarms = []
    for signal, name, least in (
        ("kl_jump", "kl/reference", limits.least_kl_jump),
        ("loss_jump", "loss/policy", limits.least_loss_jump),
    ):
        values = np.array([_value(row, name) for row in rows])
        before = values[-2 * limits.window - 1 : -1]
        if len(before) < 2 * limits.window or np.isnan([*before, values[-1]]).any():
            continue
        now = values[-1]
        median = float(np.median(before))
        spread = 1.4826 * float(np.median(np.abs(before - median)))
        if abs(now - median) > max(limits.jump * spread, least):
            alarms.append(Alarm(signal, median, float(now)))
    return alarms


def _shares(rows: Sequence[Row], limits: HackingThresholds) -> list[Alarm]:
    alarms = []
    for signal, name, rise, falls in (
        ("one_step", "response/one_step_share", limits.one_step_rise, False),
        ("no_answer", "response/no_answer_share", limits.no_answer_rise, False),
        ("repetition", "response/repetition", limits.repetition_rise, False),
        ("disagreement", "prm/verifier_agreement", limits.agreement_fall, True),
        (
            "pseudo_positives",
            "hacking/pseudo_positive_share",
            limits.pseudo_positive_rise,
            False,
        ),
    ):
        if name.startswith("prm/") and not any(
            _value(row, "reward/process_min") for row in rows
        ):
            # Without a step scorer all process rewards are 0.0.
            continue
        series = _Series.of(rows, name, limits, lowest=not falls)
        if series is None:
            continue
        change = abs(series.now - series.best)
        if change > max(rise, limits.noise * series.error):
            alarms.append(Alarm(signal, series.best, series.now))
    return alarms


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
        errors *= _student(limits.noise, len(steps)) / limits.noise
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


def _student(z: float, degrees: int) -> float:
    """Returns the quantile of Student's t that is as improbable as a normal z.

    Few iterations tell little of the noise itself. Source: Abramowitz and Stegun,
    26.7.5, up to the second power of 1 / degrees.
    """
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2


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
