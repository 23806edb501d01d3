"""Estimators of what a policy can do, as functions of counts; NumPy is all they need.

N problems, n samples of a problem, c of them right, d right in answer and reasoning.
Every metric is a mean over problems, each of which counts once.
"""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

Rule = Literal["any", "majority", "all"]
RULES: tuple[Rule, ...] = get_args(Rule)
"""How several verdicts on one chain of thought become one."""

_MAX_SUBSETS = 5_000
_NUM_RESAMPLES = 10_000


def sample_sizes(num_samples: int) -> list[int]:
    """Returns the k that curves are drawn at: 1, 2, 4, ... and n; none for n = 0."""
    powers = itertools.takewhile(
        lambda k: k < num_samples, (2**i for i in itertools.count())
    )
    return [*powers, num_samples] if num_samples else []


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimates the chance that one of k samples is right, from n >= k samples.

    1 - C(n - c, k) / C(n, k), the share of the k-subsets that hold a right one; without
    bias, which samples drawn with replacement would have. Source: Chen et al. 2021,
    arXiv 2107.03374, equation 1. Of CoT-Pass@K (arXiv 2506.14245) it is the same with d
    in the place of c.

    Args:
        num_samples: n, >= 0.
        num_correct: c, in 0..n.
        k: >= 1.

    Returns:
        In [0, 1]; NaN for k > n, of which nothing is known.

    Raises:
        ValueError: `num_correct` or `k` is out of its range.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(
            f"`num_correct` ({num_correct}) must lie in 0..{num_samples}, because it "
            "counts some of the samples. Set `num_samples` to the number of all."
        )
    if k < 1:
        raise ValueError(f"`k` ({k}) must be >= 1, because samples are drawn. Set 1.")
    if k > num_samples:
        return math.nan
    wrong = num_samples - num_correct
    if wrong < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / j for j in range(wrong + 1, num_samples + 1))


def vote_classes(
    answers: Sequence[str | None], same: Callable[[str, str], bool]
) -> list[int | None]:
    """Puts answers of the same value into classes, in the order of the samples.

    The first member stands for its class.

    Args:
        answers: of n samples; None has no vote.
        same: whether two answers, the older first, have the same value.

    Returns:
        n numbers of classes, from 0 in the order of appearance; None for no answer.
    """
    first: list[str] = []
    by_text: dict[str, int] = {}
    classes: list[int | None] = []
    for answer in answers:
        if answer is not None and answer not in by_text:
            found = (i for i, other in enumerate(first) if same(other, answer))
            by_text[answer] = next(found, len(first))
            if by_text[answer] == len(first):
                first.append(answer)
        classes.append(None if answer is None else by_text[answer])
    return classes


def majority_at_k(
    classes: Sequence[int | None], right: Collection[int], k: int, *, seed: int = 0
) -> float:
    """Estimates how often the most frequent answer of k samples is right.

    The mean over all k-subsets of the samples; beyond 5,000 over as many drawn ones.
    Tied classes share the credit; where nobody answers it is 0.

    Args:
        classes: of n samples, see `vote_classes`.
        right: the classes that are right.
        k: >= 1.
        seed: of the drawn subsets.

    Returns:
        In [0, 1]; NaN for k > n.
    """
    if k > len(classes):
        return math.nan
    known = sorted({c for c in classes if c is not None})
    if not known:
        return 0.0
    votes = np.array([[c == one for one in known] for c in classes], dtype=np.float32)
    counts = _subsets(len(classes), k, seed) @ votes
    most = counts.max(axis=1, keepdims=True)
    won = (counts == most) & (most > 0)
    right_won = won[:, [one in right for one in known]].sum(axis=1)
    return float((right_won / np.maximum(won.sum(axis=1), 1)).mean())


@lru_cache(maxsize=32)
def _subsets(num_samples: int, k: int, seed: int) -> np.ndarray:
    """`[subsets, n]` float32, 1.0 where a sample is in the subset."""
    if math.comb(num_samples, k) <= _MAX_SUBSETS:
        chosen = np.array(list(itertools.combinations(range(num_samples), k)))
    else:
        keys = np.random.default_rng(seed).random((_MAX_SUBSETS, num_samples))
        chosen = np.argpartition(keys, k - 1, axis=1)[:, :k]
    members = np.zeros((len(chosen), num_samples), dtype=np.float32)
    np.put_along_axis(members, chosen, 1.0, axis=1)
    return members


def is_reasoning_right(verdicts: Sequence[bool | None], rule: Rule) -> bool:
    """Makes one verdict of several on a chain of thought.

    Args:
        verdicts: True for right; None, a verdict that cannot be read, is no yes.
        rule: `any` and `all` bound what the judge may mean; `majority` is more than
            half of all verdicts.
    """
    num_yes = sum(verdict is True for verdict in verdicts)
    if rule == "any":
        return num_yes > 0
    if rule == "all":
        return bool(verdicts) and num_yes == len(verdicts)
    return 2 * num_yes > len(verdicts)


def standard_error(problem_means: Sequence[float]) -> float:
    """The standard error of a mean over problems: sd(n - 1) / sqrt(N).

    Samples of one problem are alike, so each problem is one observation.

    Returns:
        NaN for less than two problems.
    """
    if len(problem_means) < 2:
        return math.nan
    return float(np.std(problem_means, ddof=1)) / math.sqrt(len(problem_means))


def bootstrap_intervals(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """95% percentile intervals of means over problems, which are resampled.

    Args:
        values: `[M, N]`, M metrics of N problems. All see the same resamples.
        seed: of the resamples.

    Returns:
        `[M, 2]` low and high ends; NaN where a metric has one.
    """
    num_metrics, num_problems = values.shape
    if num_problems == 0:
        return np.full((num_metrics, 2), math.nan)
    generator = np.random.default_rng(seed)
    means = []
    # In parts: the weights of all resamples at once are large.
    for _ in range(10):
        weights = generator.multinomial(
            num_problems, [1 / num_problems] * num_problems, size=_NUM_RESAMPLES // 10
        )
        means.append(weights @ values.T / num_problems)
    ends: np.ndarray = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0).T
    return ends
