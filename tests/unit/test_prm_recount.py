"""What `prm-eval` reports, counted again from the scores that it writes.

Truth is read from the benchmarks' files, and nothing of the package counts here.
"""

import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForTokenClassification

from pure_rllib.cli.main import main
from pure_rllib.testing import byte_tokenizer, tiny_model_config

SUBSETS = ("gsm8k", "math", "omnimath")


def write_prm(folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    settings = tiny_model_config(len(tokenizer), num_labels=2)
    settings.pop("model_type")
    torch.manual_seed(0)
    model = Qwen2ForTokenClassification(Qwen2Config(**settings))
    # Random weights give scores around 0; these spread them.
    model.score.weight.data *= 6
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_benchmarks(folder: Path) -> dict[str, Any]:
    """Writes random solutions in the form of each benchmark; returns them."""
    rng = np.random.default_rng(0)
    texts = [f"{a} {b} {c}" for a, b, c in rng.integers(0, 99, (40, 3)).tolist()]
    written: dict[str, Any] = {}
    (folder / "bench").mkdir()
    for name in SUBSETS:
        written[name] = []
        for i in range(30):
            steps = rng.choice(texts, rng.integers(1, 6)).tolist()
            label = int(rng.integers(-1, len(steps)))
            row = {"id": f"{name}-{i}", "problem": texts[i], "steps": steps}
            written[name].append(row | {"label": label})
        (folder / "bench" / f"{name}.json").write_text(json.dumps(written[name]))
    written["prmbench"], written["steps"] = [], []
    for i in range(40):
        steps = rng.choice(texts, rng.integers(1, 6)).tolist()
        wrong = rng.random(len(steps)) < 0.4
        numbers = (np.flatnonzero(wrong) + 1).tolist()
        row = {"modified_question": texts[i], "modified_process": steps, "idx": str(i)}
        row |= {"error_steps": numbers, "classification": ["circular", "other"][i % 2]}
        written["prmbench"].append(row)
        labels = [None if rng.random() < 0.2 else bool(not w) for w in wrong]
        row = {"prompt": texts[i], "steps": steps, "labels": labels}
        written["steps"].append(row)
    for name in ("prmbench", "steps"):
        lines = [json.dumps(row) + "\n" for row in written[name]]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return written


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory):
    """The benchmarks' rows, what prm-eval reports, and its scores by (set, id)."""
    folder = tmp_path_factory.mktemp("recount")
    written = write_benchmarks(folder)
    words = ["prm-eval", "--prm", str(write_prm(folder / "prm"))]
    words += ["--processbench", str(folder / "bench"), "--out", str(folder / "out")]
    words += ["--prmbench", str(folder / "prmbench.jsonl")]
    assert main([*words, "--steps", str(folder / "steps.jsonl")]) == 0
    report = json.loads((folder / "out" / "prm_eval.json").read_text())
    lines = (folder / "out" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    scores = {(row["set"], row["id"]): row["scores"] for row in rows}
    assert len(scores) == 3 * 30 + 40 + 40
    return written, report, scores


def f1_at(threshold: float, rows: list[Any], scores: Any) -> tuple[Fraction, ...]:
    """Error accuracy, correct accuracy and F1 of one subset, in exact fractions."""
    flawed = [row for row in rows if row["label"] >= 0]
    flawless = [row for row in rows if row["label"] < 0]

    def said(row: Any) -> int:
        given = scores["processbench", row["id"]]
        return next((k for k, s in enumerate(given) if s < threshold), -1)

    error, correct = (
        Fraction(sum(said(row) == row["label"] for row in part), len(part))
        for part in (flawed, flawless)
    )
    if not error * correct:
        return error, correct, Fraction(0)
    return error, correct, 2 / (1 / error + 1 / correct)


def test_processbench(evaluated: Any):
    written, report, scores = evaluated
    subsets = report["processbench"]["subsets"]
    f1s = []
    for name in SUBSETS:
        found = subsets[name]
        counted = f1_at(found["threshold"], written[name], scores)
        assert found["error_accuracy"] == pytest.approx(float(counted[0]))
        assert found["correct_accuracy"] == pytest.approx(float(counted[1]))
        assert found["f1"] == pytest.approx(float(counted[2]))
        f1s.append(counted[2])
        # No threshold is better where it was chosen: neither a score nor between two.
        chosen_on = written[found["threshold_from"]]
        assert found["threshold_from"] == ("math" if name == "gsm8k" else "gsm8k")
        every = sorted(
            {s for row in chosen_on for s in scores["processbench", row["id"]]}
        )
        between = [(low + high) / 2 for low, high in itertools.pairwise(every)]
        best = max(f1_at(t, chosen_on, scores)[2] for t in [-1, *every, *between, 1])
        assert f1_at(found["threshold"], chosen_on, scores)[2] == best > 0
    assert report["processbench"]["average_f1"] == pytest.approx(float(sum(f1s) / 3))


def test_prmbench(evaluated: Any):
    written, report, scores = evaluated
    for name, found in {
        "overall": report["prmbench"]["overall"],
        **report["prmbench"]["subsets"],
    }.items():
        # Rows of truth, columns of what is said: wrong, right.
        table = np.zeros((2, 2), dtype=int)
        for row in written["prmbench"]:
            if name in ("overall", row["classification"]):
                for k, score in enumerate(scores["prmbench", row["idx"]], start=1):
                    table[int(k not in row["error_steps"]), int(score >= 0)] += 1
        assert table.min() > 0
        precision, recall = (
            table.diagonal() / table.sum(0),
            table.diagonal() / table.sum(1),
        )
        negative_f1, f1 = 2 * precision * recall / (precision + recall)
        assert found["f1"] == pytest.approx(f1)
        assert found["negative_f1"] == pytest.approx(negative_f1)
        assert found["prm_score"] == pytest.approx((f1 + negative_f1) / 2)
        assert found["accuracy"] == pytest.approx(np.trace(table) / table.sum())
        assert found["num_steps"] == table.sum()


def test_steps(evaluated: Any):
    written, report, scores = evaluated
    found = report["steps"]
    pairs = [
        (score, label)
        for n, row in enumerate(written["steps"])
        for score, label in zip(scores["steps", str(n)], row["labels"], strict=True)
        if label is not None
    ]
    right = [score for score, label in pairs if label]
    wrong = [score for score, label in pairs if not label]
    hits = sum(score >= 0 for score in right), sum(score < 0 for score in wrong)
    assert found["num_steps"] == len(pairs)
    assert found["share_right"] == pytest.approx(len(right) / len(pairs))
    assert found["accuracy"] == pytest.approx(sum(hits) / len(pairs))
    balanced = (hits[0] / len(right) + hits[1] / len(wrong)) / 2
    assert found["balanced_accuracy"] == pytest.approx(balanced)
    # Every pair of a right and a wrong step.
    wins = [(r > w) + (r == w) / 2 for r in right for w in wrong]
    assert found["auc"] == pytest.approx(sum(wins) / len(wins))
    errors = [((s + 1) / 2 - label) ** 2 for s, label in pairs]
    assert found["brier"] == pytest.approx(sum(errors) / len(errors))
    # The calibration curve: steps by tenths of p(right).
    tenths: dict[int, list[tuple[float, bool]]] = {}
    for score, label in pairs:
        p = (score + 1) / 2
        tenths.setdefault(min(int(10 * p), 9), []).append((p, label))
    bins = [tenths[k] for k in sorted(tenths)]
    assert len(bins) > 3
    means = [[sum(x) / len(part) for x in zip(*part, strict=True)] for part in bins]
    curve = found["calibration"]
    assert curve["counts"] == [len(part) for part in bins]
    assert curve["mean_probability"] == pytest.approx([p for p, _ in means])
    assert curve["share_right"] == pytest.approx([share for _, share in means])
    gaps = [len(b) * abs(p - q) for b, (p, q) in zip(bins, means, strict=True)]
    assert curve["error"] == pytest.approx(sum(gaps) / len(pairs))


def test_first_errors_and_minima_of_steps(evaluated: Any):
    """Both look at solutions; steps without a label are no errors."""
    written, report, scores = evaluated
    sides: dict[bool, list[float]] = {True: [], False: []}
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for n, row in enumerate(written["steps"]):
        given = scores["steps", str(n)]
        truth = next((k for k, x in enumerate(row["labels"]) if x is False), None)
        said = next((k for k, s in enumerate(given) if s < 0), None)
        sides[truth is None].append(min(given))
        hits[truth is None].append(said == truth)
    wins = [(a > b) + (a == b) / 2 for a in sides[True] for b in sides[False]]
    assert report["steps"]["auc_minimum"] == pytest.approx(sum(wins) / len(wins))
    correct, error = (sum(part) / len(part) for part in hits.values())
    f1 = 2 * error * correct / (error + correct) if error + correct else 0.0
    assert report["steps"]["first_error_f1"] == pytest.approx(f1)
