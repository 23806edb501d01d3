"""Figures of a process reward model's scores. N responses or steps, S steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pure_rllib.arithmetic.prm_quality import area_under_curve, first_error_accuracy
from pure_rllib.prm_training.benchmarks import BenchmarkItem


def best_threshold(scores: Sequence[np.ndarray], first_errors: Sequence[int]) -> float:
    """Finds the threshold with the highest ProcessBench F1; exact, no grid.

    A response with first error e is a hit for thresholds in (scores[e], min before e],
    one without for those up to its minimum. Both shares only fall where such an
    interval ends, so the ends are all that has to be tried. The threshold is put in the
    middle between the best end and the next lower score: nothing changes in between.

    Args:
        scores: `[S]` per response, in [-1, 1].
        first_errors: index of the first wrong step per response; -1 if there is none.

    Returns:
        In [-1, 1]; 0.0 without responses.
    """
    lows, highs, minima = [], [], []
    for given, first in zip(scores, first_errors, strict=True):
        if first < 0:
            minima.append(float(np.min(given)))
            continue
        low = float(given[first])
        high = float(np.min(given[:first])) if first else 1.0
        if low < high:
            lows.append(low)
            highs.append(high)
    ends = np.unique([*highs, *minima])
    if not len(ends):
        return 0.0
    num_errors = max(1, sum(first >= 0 for first in first_errors))
    opened, closed, passed = (
        np.searchsorted(np.sort(sides), ends, side="left")
        for sides in (lows, highs, minima)
    )
    error = (opened - closed) / num_errors
    correct = (len(minima) - passed) / max(1, len(minima))
    f1 = 2 * error * correct / np.maximum(error + correct, 1e-12)
    best = float(ends[f1.argmax()])
    below = np.concatenate([np.asarray(given, np.float64) for given in scores])
    below = below[below < best]
    return (best + float(below.max())) / 2 if len(below) else best


def processbench_figures(
    items: Sequence[BenchmarkItem],
    scores: Sequence[np.ndarray],
    *,
    threshold_subset: str | None = None,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Computes ProcessBench's figures (arXiv 2412.06559) per subset.

    As in the paper the threshold is chosen on one subset and used on the others; that
    subset itself gets the threshold of the next one, so no subset judges itself.

    Args:
        items: the benchmark.
        scores: `[S]` per item.
        threshold_subset: where the threshold is chosen; None: gsm8k if it is there,
            else the first.
        threshold: a fixed one instead, in [-1, 1].

    Returns:
        `subsets`: name -> `error_accuracy`, `correct_accuracy`, `f1`, `threshold`,
        `threshold_from`, `num_error`, `num_correct`; `average_f1` over the subsets.
    """
    names = list(dict.fromkeys(item.subset for item in items))
    if threshold_subset is None:
        threshold_subset = "gsm8k" if "gsm8k" in names else names[0]
    parts = {
        name: (
            [s for i, s in zip(items, scores, strict=True) if i.subset == name],
            [i.first_error for i in items if i.subset == name],
        )
        for name in names
    }
    following = names[(names.index(threshold_subset) + 1) % len(names)]
    subsets = {}
    for name, (given, first_errors) in parts.items():
        source: str | None = following if name == threshold_subset else threshold_subset
        if threshold is not None or source == name:
            # Only one subset: it must not choose for itself.
            chosen, source = threshold or 0.0, None
        else:
            assert source is not None
            chosen = best_threshold(*parts[source])
        found = first_error_accuracy(given, first_errors, chosen)
        subsets[name] = {
            "error_accuracy": found.error,
            "correct_accuracy": found.correct,
            "f1": found.f1,
            "threshold": chosen,
            "threshold_from": source,
            "num_error": sum(first >= 0 for first in first_errors),
            "num_correct": sum(first < 0 for first in first_errors),
        }
    average = float(np.mean([figures["f1"] for figures in subsets.values()]))
    return {"subsets": subsets, "average_f1": average}


def prmbench_figures(
    items: Sequence[BenchmarkItem],
    scores: Sequence[np.ndarray],
    threshold: float = 0.0,
) -> dict[str, Any]:
    """Computes PRMBench's figures (arXiv 2501.03124) over steps.

    PRM-Score is the mean of two F1: that of right steps (a score >= the threshold) and
    that of wrong ones. Its `correct` rows, original solutions, are not added.

    Args:
        items: the benchmark.
        scores: `[S]` per item.
        threshold: a step with a score below it is called wrong.

    Returns:
        `overall` and `subsets` (error class -> the same): `prm_score`, `f1`,
        `negative_f1`, `accuracy`, `num_steps`.
    """

    def figures(chosen: Sequence[int]) -> dict[str, Any]:
        right = np.concatenate([labels[i] for i in chosen])
        said = np.concatenate([np.asarray(scores[i]) >= threshold for i in chosen])
        f1, negative_f1 = f1_score(said, right), f1_score(~said, ~right)
        return {
            "prm_score": (f1 + negative_f1) / 2,
            "f1": f1,
            "negative_f1": negative_f1,
            "accuracy": float((said == right).mean()),
            "num_steps": len(right),
        }

    labels = [~np.isin(np.arange(len(item.steps)), item.errors) for item in items]
    names = list(dict.fromkeys(item.subset for item in items))
    return {
        "overall": figures(range(len(items))),
        "subsets": {
            name: figures([i for i, item in enumerate(items) if item.subset == name])
            for name in names
        },
        "threshold": threshold,
    }


def f1_score(said: np.ndarray, true: np.ndarray) -> float:
    """Computes 2 TP / (2 TP + FP + FN) of two `[N]` bool arrays; 0.0 for 0 / 0."""
    total = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / total if total else 0.0


def calibration(
    scores: np.ndarray, right: np.ndarray, num_bins: int = 10
) -> dict[str, Any]:
    """Says how far probabilities of right steps can be believed, by equal bins.

    Args:
        scores: `[N]` in [-1, 1].
        right: `[N]` bool.
        num_bins: >= 1, of p(right) = (score + 1) / 2.

    Returns:
        Of each bin with steps: `mean_probability`, the mean of p(right), `share_right`,
        the share of steps that are right, and `counts`, how many steps; `error`, the
        expected calibration error: the mean of |share - probability| weighted by counts
        (Guo et al., arXiv 1706.04599, eq. 3).
    """
    probability = (np.asarray(scores, np.float64) + 1) / 2
    bins = np.minimum((probability * num_bins).astype(int), num_bins - 1)
    used = np.unique(bins)
    means = [float(probability[bins == k].mean()) for k in used]
    shares = [float(np.asarray(right)[bins == k].mean()) for k in used]
    counts = [int((bins == k).sum()) for k in used]
    gaps = np.abs(np.subtract(shares, means))
    return {
        "mean_probability": means,
        "share_right": shares,
        "counts": counts,
        "error": float(np.average(gaps, weights=counts)) if counts else float("nan"),
    }


def step_figures(
    scores: Sequence[np.ndarray], labels: Sequence[Sequence[bool | None]]
) -> dict[str, Any]:
    """Computes figures over labelled steps; steps without a label are left out.

    Returns:
        `accuracy` (a score >= 0 says right), `balanced_accuracy` (mean of the accuracy
        on right and on wrong steps: 0.5 is chance whatever their shares), `auc`,
        `first_error_f1` at threshold 0, `auc_minimum` (the chance that the smallest
        score of a solution without a wrong step is above that of one with),
        `share_right` (what always saying right would reach), `brier`, the mean squared
        error of p(right), what `calibration` returns, `num_steps`. NaN where there is
        nothing to divide by.
    """
    pairs = [
        (float(score), bool(label))
        for given, row in zip(scores, labels, strict=True)
        for score, label in zip(given, row, strict=True)
        if label is not None
    ]
    numbers = np.array([score for score, _ in pairs])
    right = np.array([label for _, label in pairs], dtype=bool)
    hits = (numbers >= 0) == right
    first_errors = [row.index(False) if False in row else -1 for row in labels]
    minima = np.array([np.min(given) for given in scores], dtype=np.float64)
    is_flawed = np.array(first_errors) >= 0
    sides = [_mean(hits[right]), _mean(hits[~right])]
    return {
        "accuracy": _mean(hits),
        "balanced_accuracy": float(np.mean(sides)),
        "auc": area_under_curve(numbers[right], numbers[~right]),
        "first_error_f1": first_error_accuracy(scores, first_errors).f1,
        "auc_minimum": area_under_curve(minima[~is_flawed], minima[is_flawed]),
        "share_right": _mean(right),
        "brier": _mean(((numbers + 1) / 2 - right) ** 2),
        "calibration": calibration(numbers, right),
        "num_steps": len(pairs),
    }


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
