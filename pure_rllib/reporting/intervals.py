"""95% intervals of accuracies. N problems, G sampled responses per problem."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z_95 = 1.959963984540054  # two-sided 95% quantile of the normal distribution


class Interval(NamedTuple):
    """An estimate in [0, 1] and its interval."""

    mean: float
    low: float
    high: float


def wilson_interval(num_successes: int, num_trials: int) -> Interval:
    """Estimates a proportion from independent trials, by Wilson's score interval.

    It keeps its coverage at shares near 0 and 1, where the usual mean plus or minus two
    standard errors does not. Source: Wilson 1927, JASA 22:209.

    Args:
        num_successes: in 0..num_trials.
        num_trials: >= 0; 0 gives NaN, 0 and 1.
    """
    if not 0 <= num_successes <= num_trials:
        raise ValueError(
            f"`num_successes` ({num_successes}) must lie in 0..{num_trials}: it counts "
            "some of the trials; set `num_trials` to the number of all of them"
        )
    if num_trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    return _wilson(num_successes / num_trials, num_trials)


def cluster_interval(correct: Sequence[Sequence[float]]) -> Interval:
    """Estimates sampled accuracy from several responses to each problem.

    Responses to one problem are alike, so they do not count as independent trials: the
    standard error is that of the N problems' own means (problems as clusters), and the
    score interval is taken at the number of independent trials that would have that
    error, at most that of all responses. One response per problem gives Wilson's.

    Args:
        correct: N sequences of 0/1, one per problem, each of length >= 1; the lengths
            may differ, each problem counts once.

    Returns:
        The mean over problems of each problem's share, and its 95% interval.
    """
    means = np.asarray([np.mean(c) for c in correct], dtype=np.float64)
    num_problems = means.size
    if num_problems == 0:
        return Interval(math.nan, 0.0, 1.0)
    mean = float(means.mean())
    binomial = mean * (1.0 - mean)
    if binomial <= 0.0:
        # All right or all wrong shows no spread: one trial per problem, no more.
        return _wilson(mean, num_problems)
    num_responses = sum(len(c) for c in correct)
    spread = max(float(means.var()), 1e-12)
    return _wilson(mean, min(num_problems * binomial / spread, num_responses))


def _wilson(share: float, num_trials: float) -> Interval:
    """Wilson's interval; `num_trials` may be an effective, fractional number."""
    z2 = Z_95**2 / num_trials
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(share * (1 - share) * z2 + z2 * z2 / 4) / (1 + z2)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))
