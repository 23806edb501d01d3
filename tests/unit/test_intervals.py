import math

import numpy as np
import pytest
from scipy.stats import binomtest

from pure_rllib.reporting.intervals import cluster_interval, wilson_interval


@pytest.mark.parametrize("num_successes", [0, 8, 10])
def test_wilson_is_scipys(num_successes):
    expected = binomtest(num_successes, 10).proportion_ci(method="wilson")
    interval = wilson_interval(num_successes, 10)
    assert interval == pytest.approx((num_successes / 10, *expected), abs=1e-12)


def test_wilson_without_trials_or_with_too_few():
    nothing = wilson_interval(0, 0)
    assert math.isnan(nothing.mean) and nothing[1:] == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"`num_successes` \(3\) must lie in 0\.\.2"):
        wilson_interval(3, 2)


@pytest.mark.parametrize(
    ("correct", "num_successes", "num_trials"),
    [
        # One response per problem is Wilson's.
        ([[1], [0], [1], [1], [0], [1], [1]], 5, 7),
        # Identical responses add no confidence.
        ([[1] * 8, [0] * 8, [1] * 8, [1] * 8], 3, 4),
        # No spread at all between problems: as many trials as responses, no more.
        ([[1, 0]] * 50, 50, 100),
    ],
)
def test_problems_are_the_clusters(correct, num_successes, num_trials):
    expected = wilson_interval(num_successes, num_trials)
    assert cluster_interval(correct) == pytest.approx(expected)


def test_no_problem_has_no_estimate():
    nothing = cluster_interval([])
    assert math.isnan(nothing.mean) and nothing[1:] == (0.0, 1.0)


def test_coverage_on_correlated_samples():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        solve_rate = rng.beta(0.5, 0.5, size=60)  # problems are easy or hard
        samples = rng.random((60, 4)) < solve_rate[:, None]
        interval = cluster_interval(samples.astype(float).tolist())
        hits += interval.low <= 0.5 <= interval.high
    assert 0.92 <= hits / 400 <= 0.98
