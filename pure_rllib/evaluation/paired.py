"""Two policies on the same problems: the difference, and whether it may be chance.

N problems; b is compared with a, so a difference is b - a.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pure_rllib.evaluation.estimators import bootstrap_intervals, standard_error

_MAX_ENUMERATED = 16
_NUM_FLIPS = 100_000


@dataclass(frozen=True, slots=True)
class GreedyDifference:
    """What one response per problem says.

    Attributes:
        only_a: problems that only a solves.
        only_b: problems that only b solves.
        difference: of the accuracies.
        p: of McNemar's exact test, two-sided.
    """

    only_a: int
    only_b: int
    difference: float
    p: float


@dataclass(frozen=True, slots=True)
class SampledDifference:
    """What several samples per problem say.

    Attributes:
        difference: of avg@n.
        se: its standard error, with the problem as cluster; NaN for one problem.
        low: of the 95% paired bootstrap interval over problems.
        high: likewise.
        p: of the sign-flip test, two-sided.
    """

    difference: float
    se: float
    low: float
    high: float
    p: float


def compare_greedy(a: Sequence[bool], b: Sequence[bool]) -> GreedyDifference:
    """Compares one response per problem by McNemar's exact test.

    Args:
        a: whether each of the N problems is solved, N >= 1.
        b: likewise, of the same problems.

    Raises:
        ValueError: the lengths differ.
    """
    pairs = list(zip(a, b, strict=True))
    only_a = sum(bool(x) and not y for x, y in pairs)
    only_b = sum(bool(y) and not x for x, y in pairs)
    return GreedyDifference(
        only_a, only_b, (only_b - only_a) / len(pairs), mcnemar_p(only_a, only_b)
    )


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test: binomial(min; sum, 1/2), 1.0 for none."""
    total = only_a + only_b
    tail = sum(math.comb(total, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**total)


def compare_sampled(
    a: Sequence[float], b: Sequence[float], *, seed: int = 0
) -> SampledDifference:
    """Compares the problems' own means.

    Args:
        a: N shares of right samples, N >= 1.
        b: likewise, of the same problems.
        seed: of the bootstrap and of drawn sign flips.

    Raises:
        ValueError: the lengths differ.
    """
    differences = [y - x for x, y in zip(a, b, strict=True)]
    ((low, high),) = bootstrap_intervals(np.array([differences]), seed=seed)
    return SampledDifference(
        difference=float(np.mean(differences)),
        se=standard_error(differences),
        low=float(low),
        high=float(high),
        p=sign_flip_p(differences, seed=seed),
    )


def sign_flip_p(differences: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p of the sign-flip test that the mean difference is 0.

    Without a difference between the policies each problem's sign could as well be the
    other one. All flips are looked at for N <= 16, else 100,000 drawn ones.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0.0]  # whose flips change nothing
    observed = abs(values.sum())
    # What rounding makes of an equal sum is still as extreme.
    limit = observed - 1e-9 * max(1.0, observed)
    if len(values) <= _MAX_ENUMERATED:
        signs = np.array(list(itertools.product([1.0, -1.0], repeat=len(values))))
        return float((abs(signs @ values) >= limit).mean())
    generator = np.random.default_rng(seed)
    num_extreme = 0
    for _ in range(10):
        flips = generator.integers(0, 2, (_NUM_FLIPS // 10, len(values)), dtype=np.int8)
        num_extreme += int((abs((1.0 - 2.0 * flips) @ values) >= limit).sum())
    # The flip that was observed is one of them.
    return (num_extreme + 1) / (_NUM_FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p of several tests so that they hold together (Holm 1979).

    Args:
        p_values: M of them, one per benchmark.

    Returns:
        M adjusted ones, each at least the raw one, at most 1.0.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
