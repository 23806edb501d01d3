import math

import numpy as np
import pytest

from pure_rllib.reporting.intervals import cluster_interval, wilson_interval


def test_wilson_by_hand():
    # 8 of 10, z = 1.96: (.8 + .19207 -+ 1.96 sqrt(.016 + .0096037)) / 1.384146
    interval = wilson_interval(8, 10)
    assert interval == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)


def test_wilson_at_the_ends():
    assert wilson_interval(0, 20) == pytest.approx((0, 0, 0.1611), abs=1e-4)
    assert wilson_interval(20, 20) == pytest.approx((1, 0.8389, 1), abs=1e-4)
    nothing = wilson_interval(0, 0)
    assert math.isnan(nothing.mean) and nothing[1:] == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"`num_successes` \(3\) must lie in 0\.\.2"):
        wilson_interval(3, 2)


def test_one_response_per_problem_is_wilson():
    correct = [[1], [0], [1], [1], [0], [1], [1]]
    assert cluster_interval(correct) == pytest.approx(wilson_interval(5, 7))


def test_identical_responses_add_no_confidence():
    correct = [[1] * 8, [0] * 8, [1] * 8, [1] * 8]
    assert cluster_interval(correct) == pytest.approx(wilson_interval(3, 4))


def test_independent_responses_narrow_the_interval_and_no_further():
    alternating = [[1, 0]] * 50  # no spread at all between problems
    interval = cluster_interval(alternating)
    assert interval == pytest.approx(wilson_interval(50, 100))
    assert all(math.isnan(x) or x in (0, 1) for x in cluster_interval([]))


def test_coverage_on_correlated_samples():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        solve_rate = rng.beta(0.5, 0.5, size=60)  # problems are easy or hard
        samples = rng.random((60, 4)) < solve_rate[:, None]
        interval = cluster_interval(samples.astype(float).tolist())
        hits += interval.low <= 0.5 <= interval.high
    assert 0.92 <= hits / 400 <= 0.98
