"""From samples to figures. N problems; counts of a problem are n, c and d.

Problems without a gold answer are left out; every other one counts, whatever became of
it. There are no figures before all samples are there: a missing one is not a wrong one.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pure_rllib.data.problems import Problem
from pure_rllib.evaluation.estimators import (
    RULES,
    bootstrap_intervals,
    is_reasoning_right,
    majority_at_k,
    pass_at_k,
    sample_sizes,
    standard_error,
)
from pure_rllib.evaluation.samples import ProblemVerdicts, Sample, place
from pure_rllib.reporting.intervals import cluster_interval, wilson_interval

_MANY_TRUNCATED = 0.05
_MANY_IDENTICAL = 0.5
_FEW_PROBLEMS, _FEW_SAMPLES = 100, 8

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """All that was found out about one problem.

    Attributes:
        problem: what was asked.
        greedy: its greedy responses; the first one counts.
        sampled: its n samples.
        verdicts: what needs all of them.
    """

    problem: Problem
    greedy: Sequence[Sample]
    sampled: Sequence[Sample]
    verdicts: ProblemVerdicts

    @property
    def num_correct(self) -> int:
        """c, of the samples."""
        return sum(sample.correct for sample in self.sampled)

    def reasoning_of(self, sample: Sample) -> str | None:
        """What the majority of verdicts says of a right answer's reasoning."""
        where = place(sample)
        if where in self.verdicts.not_judged:
            return "not judged"
        given = self.verdicts.reasoning.get(where)
        if given is None:
            return None
        return "right" if is_reasoning_right(given, "majority") else "wrong"

    def num_both(self, rule: Any, samples: Sequence[Sample] | None = None) -> int:
        """d: samples with a right answer and right reasoning."""
        chosen = self.sampled if samples is None else samples
        given = [self.verdicts.reasoning.get(place(sample)) for sample in chosen]
        return sum(v is not None and is_reasoning_right(v, rule) for v in given)


def measure(
    results: Sequence[ProblemResult], *, judge: str | None, seed: int
) -> Figures:
    """Computes a benchmark's figures.

    Args:
        results: of the problems with a gold answer, N >= 1.
        judge: the judge's name; None without one.
        seed: of bootstrap and drawn subsets.

    Returns:
        `num_problems`, and what was asked for of `greedy`, `sampled` and `cot`; NaN
        where there is nothing to measure.
    """
    figures: Figures = {"num_problems": len(results)}
    if results[0].greedy:
        figures["greedy"] = _greedy(results)
    if results[0].sampled:
        figures["sampled"] = _sampled(results, seed)
    if judge is not None:
        figures["cot"] = _reasoning(results, judge, seed)
    return figures


def _greedy(results: Sequence[ProblemResult]) -> Figures:
    first = [result.greedy[0] for result in results]
    mean, low, high = wilson_interval(sum(s.correct for s in first), len(first))
    figures = {
        "accuracy": mean,
        "low": low,
        "high": high,
        "se": standard_error([float(s.correct) for s in first]),
        **_texts(first),
    }
    if len(results[0].greedy) > 1:
        figures["differed"] = sum(
            list(r.greedy[0].token_ids) != list(r.greedy[1].token_ids) for r in results
        )
    return figures


def _sampled(results: Sequence[ProblemResult], seed: int) -> Figures:
    correct = [[float(s.correct) for s in result.sampled] for result in results]
    num_samples = len(results[0].sampled)
    mean, low, high = cluster_interval(correct)
    sizes = sample_sizes(num_samples)
    counts = [result.num_correct for result in results]
    rights = [_right_classes(result) for result in results]
    majorities = [
        [
            majority_at_k(r.verdicts.classes, right, k, seed=seed)
            for r, right in zip(results, rights, strict=True)
        ]
        for k in sizes
    ]
    identical = sum(len(r.sampled) - len({s.text for s in r.sampled}) for r in results)
    return {
        "num_samples": num_samples,
        "avg": mean,
        "low": low,
        "high": high,
        "se": standard_error([float(np.mean(c)) for c in correct]),
        "pass_at_k": _curve(sizes, _passes(num_samples, counts, sizes), seed),
        "maj_at_k": _curve(sizes, majorities, seed),
        "identical_share": identical / (len(results) * num_samples),
        **_texts([sample for result in results for sample in result.sampled]),
    }


def _right_classes(result: ProblemResult) -> set[int]:
    """The classes of answers whose first member, which stands for them, is right."""
    pairs = list(zip(result.verdicts.classes, result.sampled, strict=True))
    first = dict(reversed(pairs))
    return {c for c, sample in first.items() if c is not None and sample.correct}


def _reasoning(results: Sequence[ProblemResult], judge: str, seed: int) -> Figures:
    samples = [s for r in results for s in (r.sampled or r.greedy)]
    num_samples = len(results[0].sampled or results[0].greedy[:1])
    num_right = sum(s.correct for r in results for s in (r.sampled or r.greedy[:1]))
    sizes = sample_sizes(num_samples)
    by_rule = {
        rule: [r.num_both(rule, r.sampled or r.greedy[:1]) for r in results]
        for rule in RULES
    }
    return {
        "judge": judge,
        "name": f"cot_pass@{num_samples}[{judge}]",
        "answer_correct": num_right / (len(results) * num_samples),
        "reasoning_given_answer": {
            rule: sum(counts) / num_right if num_right else math.nan
            for rule, counts in by_rule.items()
        },
        "cot_pass_at_k": {
            rule: _curve(sizes, _passes(num_samples, counts, sizes), seed)
            for rule, counts in by_rule.items()
        },
        "num_judged": sum(s.correct for s in samples),
        "num_not_judged": sum(len(r.verdicts.not_judged) for r in results),
        "num_unreadable": sum(
            verdict is None
            for r in results
            for where, given in r.verdicts.reasoning.items()
            if where not in r.verdicts.not_judged
            for verdict in given
        ),
    }


def _passes(
    num_samples: int, counts: Sequence[int], sizes: Sequence[int]
) -> list[list[float]]:
    return [[pass_at_k(num_samples, c, k) for c in counts] for k in sizes]


def _curve(
    sizes: Sequence[int], values: Sequence[Sequence[float]], seed: int
) -> dict[str, dict[str, float]]:
    """Means over problems with bootstrap intervals; `values` is `[K, N]`."""
    ends = bootstrap_intervals(np.array(values), seed=seed)
    return {
        str(k): {"mean": float(np.mean(row)), "low": float(low), "high": float(high)}
        for k, row, (low, high) in zip(sizes, values, ends, strict=True)
    }


def _texts(samples: Sequence[Sample]) -> Figures:
    """What stands beside an accuracy, so that it is read as what it is."""
    finished = [sample for sample in samples if sample.terminated]
    outcomes = Counter(sample.outcome for sample in samples)
    return {
        "no_answer_share": outcomes["no_answer"] / len(samples),
        "truncated_share": 1.0 - len(finished) / len(samples),
        "accuracy_finished": (
            sum(s.correct for s in finished) / len(finished) if finished else math.nan
        ),
        "mean_tokens": float(np.mean([len(s.token_ids) for s in samples])),
        # The verifier failed twice; the response may be right.
        "not_verified": {o: outcomes[o] for o in ("timeout", "error") if outcomes[o]},
    }


def warnings_of(name: str, figures: Figures) -> list[str]:
    """Says what must be known before a benchmark's figures are believed."""
    found = []
    num_problems = figures["num_problems"]
    sampled, greedy = figures.get("sampled", {}), figures.get("greedy", {})
    for kind, part in (("greedy", greedy), ("sampled", sampled)):
        share = part.get("truncated_share", 0.0)
        if share > _MANY_TRUNCATED:
            finished = (
                f"of the finished ones {part['accuracy_finished']:.1%} are right"
                if share < 1.0
                else "none was finished"
            )
            found.append(
                f"{name}: {share:.1%} of the {kind} responses were cut by the budget; "
                f"{finished}"
            )
        if part.get("not_verified"):
            found.append(
                f"{name}: the verifier failed on {kind} responses, which count as "
                f"wrong: {part['not_verified']}"
            )
    if num_problems < _FEW_PROBLEMS and sampled.get("num_samples", 0) < _FEW_SAMPLES:
        found.append(
            f"{name}: {num_problems} problems with less than {_FEW_SAMPLES} samples "
            "each say little; use avg@32 (--samples 32)"
        )
    if sampled.get("identical_share", 0.0) > _MANY_IDENTICAL:
        found.append(
            f"{name}: {sampled['identical_share']:.1%} of the samples repeat another "
            "one of their problem word by word"
        )
    if greedy.get("differed"):
        found.append(
            f"{name}: {greedy['differed']} greedy responses differed when asked again"
        )
    cot = figures.get("cot", {})
    if cot.get("num_not_judged"):
        found.append(
            f"{name}: {cot['num_not_judged']} of {cot['num_judged']} chains were too "
            "long for the judge and count as not right"
        )
    if cot.get("num_unreadable"):
        found.append(
            f"{name}: {cot['num_unreadable']} verdicts of the judge could not be read "
            "and count as no yes; raise judge.max_verdict_tokens, or take another judge"
        )
    return found


def average(by_benchmark: Mapping[str, Figures]) -> Figures:
    """The unweighted mean over B >= 2 benchmarks, with SE = sqrt(sum SE^2) / B."""
    averaged: Figures = {}
    for part, key in (("greedy", "accuracy"), ("sampled", "avg")):
        rows = [f[part] for f in by_benchmark.values() if part in f]
        if len(rows) == len(by_benchmark):
            averaged[part] = {
                key: float(np.mean([row[key] for row in rows])),
                "se": math.hypot(*(row["se"] for row in rows)) / len(rows),
            }
    return averaged
