"""Alarms from made-up series; tests/unit/test_hacking_runs.py has recorded ones."""

import math

import numpy as np
import pytest

from pure_rllib.hacking.detector import SIGNALS, HackingThresholds, find_alarms
from pure_rllib.reporting.metrics import METRICS

Series = dict[str, np.ndarray]
NUM = 30
ONES = np.ones(NUM)
RAMP = np.clip((np.arange(NUM) - 15) / 10, 0.0, 1.0)  # 0 until 15, 1 from 25 on
UP = np.arange(NUM) / NUM


def healthy(seed: int = 0) -> Series:
    """Reward and accuracy rise, the rest stays; all of it noisy."""
    rng = np.random.default_rng(seed)
    return {
        "accuracy": 0.3 + 0.5 * UP + rng.normal(0.0, 0.04, NUM),
        "reward/total": UP + rng.normal(0.0, 0.08, NUM),
        "reward/process_min": UP - 0.5,
        "response/tokens": 30.0 - 5.0 * UP + rng.normal(0.0, 1.0, NUM),
        "response/one_step_share": rng.uniform(0.0, 0.02, NUM),
        "response/no_answer_share": rng.uniform(0.0, 0.03, NUM),
        "response/repetition": 0.05 + rng.normal(0.0, 0.005, NUM),
        "prm/verifier_agreement": 0.92 + rng.normal(0.0, 0.03, NUM),
        "hacking/pseudo_positive_share": 0.1 + rng.normal(0.0, 0.03, NUM),
        "loss/policy": rng.normal(0.0, 0.04, NUM),
        "groups/verified": 16.0 * ONES,
        "pass_at_g": ONES,
        "kl/reference": 0.02 * UP + rng.normal(0.0, 0.002, NUM),
    }


def rows_of(series: Series, last: int = NUM) -> list[dict[str, float]]:
    return [{k: float(v[i]) for k, v in series.items()} for i in range(last)]


def signals(series: Series, last: int = NUM) -> set[str]:
    return {alarm.signal for alarm in find_alarms(rows_of(series, last))}


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_series_raises_no_alarm(seed: int) -> None:
    series = healthy(seed)
    assert [i for i in range(1, NUM + 1) if signals(series, i)] == []


def jump(at: int, size: float) -> np.ndarray:
    return np.where(np.arange(NUM) >= at, size, 0.0)


CHANGES: dict[str, dict[str, np.ndarray]] = {
    "accuracy_falls": {"accuracy": 0.6 - 0.2 * RAMP},
    "length_falls": {"accuracy": 0.6 * ONES, "response/tokens": 30 - 20 * RAMP},
    "accuracy_collapse": {"accuracy": 0.6 - 0.5 * RAMP, "reward/total": 0 * UP},
    "reward_collapse": {"reward/total": 1.0 + UP - 5.0 * RAMP},
    "kl_jump": {"kl/reference": healthy()["kl/reference"] + jump(NUM - 1, 0.5)},
    "loss_jump": {"loss/policy": healthy()["loss/policy"] + jump(NUM - 1, 1.0)},
    "one_step": {"response/one_step_share": 0.6 * RAMP},
    "no_answer": {"response/no_answer_share": 0.5 * RAMP},
    "repetition": {"response/repetition": 0.05 + 0.4 * RAMP},
    "disagreement": {"prm/verifier_agreement": 0.9 - 0.5 * RAMP},
    "pseudo_positives": {"hacking/pseudo_positive_share": 0.1 + 0.6 * RAMP},
}


@pytest.mark.parametrize("signal", SIGNALS)
def test_each_signal_alone_and_not_before_the_change(signal: str) -> None:
    series = {**healthy(), **CHANGES[signal]}
    assert signals(series) == {signal}
    assert signals(series, 15) == set()


def test_an_alarm_says_from_what_to_what() -> None:
    series = {**healthy(), "response/one_step_share": jump(NUM - 5, 0.8)}
    (alarm,) = find_alarms(rows_of(series))
    assert (alarm.before, alarm.now) == pytest.approx((0.0, 0.8))
    assert str(alarm) == "more responses are a single step (0 -> 0.8)"


def test_noise_of_few_answers_raises_no_alarm() -> None:
    """Ten answers an iteration at .5: windows differ by up to .4 by chance alone."""
    rng = np.random.default_rng(1)
    series = {**healthy(), "accuracy": rng.binomial(10, 0.5, NUM) / 10}
    assert [i for i in range(NUM) if signals(series, i)] == []


def test_what_is_not_measured_raises_no_alarm() -> None:
    nothing = {name: np.full(NUM, math.nan) for name in healthy()}
    assert find_alarms(rows_of(nothing)) == []
    assert find_alarms([{}] * NUM) == []
    assert find_alarms([]) == []


def test_gaps_do_not_hide_a_change() -> None:
    series = {**healthy(), "accuracy": 0.6 - 0.5 * RAMP}
    series["accuracy"] = np.where(np.arange(NUM) % 3 == 1, math.nan, series["accuracy"])
    assert "accuracy_falls" in signals(series)


@pytest.mark.parametrize(
    "change",
    [
        # Shorter responses are welcome with rising accuracy.
        {"response/tokens": 30 - 20 * RAMP},
        # Without a step scorer agreement means nothing.
        {**CHANGES["disagreement"], "reward/process_min": 0 * UP},
    ],
)
def test_a_change_that_is_harmless(change: Series) -> None:
    assert signals({**healthy(), **change}) == set()


def test_thresholds_are_used() -> None:
    series = {**healthy(), **CHANGES["one_step"]}
    rows = rows_of(series)
    assert find_alarms(rows, HackingThresholds(one_step_rise=0.9)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1}, r"`window` \(1\) must be >= 2, because"),
        ({"memory": 9}, r"`memory` \(9\) must be >= 2 \* window \(10\)"),
        ({"jump": 0.0}, r"`jump` \(0.0\) must be > 0"),
        ({"noise": math.nan}, r"`noise` \(nan\) must be a finite number"),
        ({"noise": True}, r"`noise` \(True\) must be a number"),
    ],
)
def test_wrong_thresholds_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HackingThresholds(**settings)


def test_every_signal_is_a_metric() -> None:
    registered = {n for n in METRICS if n.startswith("hacking/signal/")}
    assert registered == {f"hacking/signal/{name}" for name in SIGNALS}


def test_a_window_is_a_mean_over_groups() -> None:
    accuracy = np.array([0.9, 0.8] * 5 + [0.0, 0.5])
    groups = np.array([10.0] * 10 + [9.0, 1.0])
    rows = [
        {"accuracy": a, "groups/verified": n}
        for a, n in zip(accuracy, groups, strict=True)
    ]
    limits = HackingThresholds(window=2, memory=12, noise=0.5)
    (alarm,) = find_alarms(rows, limits)
    assert alarm.signal == "accuracy_collapse"
    # (0.9 + 0.8) / 2; (9 * 0.0 + 1 * 0.5) / 10
    assert (alarm.before, alarm.now) == pytest.approx((0.85, 0.05))


@pytest.mark.parametrize(("num_groups", "is_seen"), [(1.0, True), (0.8, False)])
def test_windows_of_few_groups_are_not_looked_at(
    num_groups: float, is_seen: bool
) -> None:
    """Windows of five iterations; of four groups an alarm would know too little."""
    series = {**healthy(), **CHANGES["accuracy_collapse"]}
    series["groups/verified"] = num_groups * ONES
    assert ("accuracy_collapse" in signals(series)) == is_seen


def test_groups_that_hang_together_raise_no_alarm() -> None:
    """Eight responses to a prompt are right or wrong together; 1.6 groups a turn."""
    noisy = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        num = rng.binomial(16, 0.1, 90).astype(float)
        series = {
            "accuracy": [rng.binomial(int(n), 0.7) / n if n else math.nan for n in num],
            "groups/verified": num,
        }
        rows = [
            dict(zip(series, row, strict=True))
            for row in zip(*series.values(), strict=True)
        ]
        noisy += any(find_alarms(rows[:i]) for i in range(1, 91))
    assert noisy == 0
