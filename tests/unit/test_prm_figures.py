"""Figures of process reward models, against independent counts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pure_rllib.prm_training.benchmarks import (
    BenchmarkItem,
    read_prmbench,
    read_processbench,
)
from pure_rllib.prm_training.gate import gate_checks, gate_summary
from pure_rllib.prm_training.quality import (
    best_threshold,
    calibration,
    prmbench_figures,
    processbench_figures,
    step_figures,
)
from pure_rllib.prm_training.quality_figure import draw_quality


def counted(scores: list[Any], first_errors: list[int], threshold: float):
    """ProcessBench's figures, counted one by one."""
    hits, totals = {"error": 0, "correct": 0}, {"error": 0, "correct": 0}
    for row, truth in zip(scores, first_errors, strict=True):
        said = -1
        for index, score in enumerate(row):
            if score < threshold:
                said = index
                break
        kind = "correct" if truth == -1 else "error"
        totals[kind] += 1
        hits[kind] += said == truth
    error, correct = (hits[k] / max(1, totals[k]) for k in ("error", "correct"))
    f1 = 0.0 if error + correct == 0 else 2 * error * correct / (error + correct)
    return error, correct, f1


def made_up(rng: np.random.Generator, number: int):
    """Scores on a coarse grid, so that ties are common; lower at the first error."""
    scores, first_errors = [], []
    for _ in range(number):
        row = rng.integers(-10, 11, size=rng.integers(1, 7)) / 10
        first = int(rng.integers(-1, len(row)))
        if first >= 0 and rng.random() < 0.6:
            row[first] = -1.0
        scores.append(row.astype(np.float32))
        first_errors.append(first)
    return scores, first_errors


@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_beats_the_chosen_one(seed: int):
    scores, first_errors = made_up(np.random.default_rng(seed), 40)
    chosen = best_threshold(scores, first_errors)
    grid = np.arange(-1.05, 1.06, 0.05).tolist()
    best = max(counted(scores, first_errors, t)[2] for t in grid)
    assert counted(scores, first_errors, chosen)[2] == pytest.approx(best)
    assert best > 0


def test_the_real_benchmarks_are_read(shared_dir: Path):
    folder = shared_dir / "data/process"
    items = read_processbench(str(folder / "processbench"))
    rng = np.random.default_rng(0)
    scores = [np.tanh(rng.normal(1.5, 1.2, len(i.steps))) for i in items]
    figures = processbench_figures(items, scores)["subsets"]
    sizes = {"gsm8k": 400, "math": 1000, "olympiadbench": 1000, "omnimath": 1000}
    assert list(figures) == list(sizes)
    rest = iter(zip(items, scores, strict=True))
    for name, size in sizes.items():
        rows = json.loads((folder / "processbench" / f"{name}.json").read_text())
        assert len(rows) == size
        given = [next(rest) for _ in rows]
        assert [list(item.steps) for item, _ in given] == [r["steps"] for r in rows]
        found, labels = figures[name], [row["label"] for row in rows]
        assert found["num_correct"] == labels.count(-1)
        ours = found["error_accuracy"], found["correct_accuracy"], found["f1"]
        expected = counted([s for _, s in given], labels, found["threshold"])
        assert ours == pytest.approx(expected, abs=1e-12)
    file = folder / "subset400_target_data.jsonl"
    if not file.is_file():
        file = folder / "prmbench/subset400_target_data.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    prmbench = read_prmbench(str(file))
    assert len(prmbench) == len(rows) == 394
    figures = prmbench_figures(prmbench, [np.ones(len(i.steps)) for i in prmbench])
    # Right is said of every step.
    num_steps = sum(len(item.steps) for item in prmbench)
    num_wrong = sum(
        number in row["error_steps"]
        for item, row in zip(prmbench, rows, strict=True)
        for number, _ in enumerate(item.steps, start=1)
    )
    assert figures["overall"]["accuracy"] == pytest.approx(1 - num_wrong / num_steps)
    assert sum(f["num_steps"] for f in figures["subsets"].values()) == num_steps


def test_a_single_subset_does_not_choose_for_itself():
    items = [BenchmarkItem("1", "math", "p", ("a", "b"), (1,))]
    scores = [np.array([0.9, 0.5])]
    [figures] = processbench_figures(items, scores)["subsets"].values()
    assert (figures["threshold"], figures["threshold_from"]) == (0.0, None)
    assert figures["error_accuracy"] == 0.0
    fixed = processbench_figures(items, scores, threshold=0.6)["subsets"]["math"]
    assert (fixed["threshold"], fixed["error_accuracy"]) == (0.6, 1.0)


def test_calibration_by_hand():
    # p(right):        0.1   0.15    0.95  0.9     bins of a fifth: 0, 0, 4, 4
    scores = np.array([-0.8, -0.7, 0.9, 0.8])
    curve = calibration(scores, np.array([False, True, True, True]), num_bins=5)
    assert curve["mean_probability"] == pytest.approx([0.125, 0.925])
    assert curve["share_right"] == [0.5, 1.0]
    assert curve["counts"] == [2, 2]
    # (2 * 0.375 + 2 * 0.075) / 4
    assert curve["error"] == pytest.approx(0.225)


def test_step_figures_by_hand():
    scores = [np.array([0.5, -0.5, 0.2]), np.array([-0.1])]
    figures = step_figures(scores, [(True, False, None), (True,)])
    # Right steps 0.5 (hit) and -0.1 (miss), a wrong one at -0.5 (hit); one unknown.
    assert figures["num_steps"] == 3
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["balanced_accuracy"] == pytest.approx((0.5 + 1.0) / 2)
    assert figures["auc"] == 1.0
    # The error is found, at 1; the flawless solution is not left alone.
    assert figures["first_error_f1"] == 0.0
    # Minima: -0.5 of the flawed solution, -0.1 of the other.
    assert figures["auc_minimum"] == 1.0
    assert figures["share_right"] == pytest.approx(2 / 3)
    # (0.25^2 + 0.25^2 + 0.55^2) / 3
    assert figures["brier"] == pytest.approx((0.0625 + 0.0625 + 0.3025) / 3)


def test_the_gate_opens_only_if_each_figure_is_reached():
    labels = [(True, True), (True, False)] * 10
    right = [np.array([0.9, 0.9 if row[1] else -0.9]) for row in labels]
    open_gate = gate_checks({"steps": step_figures(right, labels)})
    assert [check.passed for check in open_gate] == [True] * 3
    assert "gate: open" in gate_summary(open_gate)
    # One error of ten is overlooked: F1 is 2 * 0.9 / 1.9.
    hacked = [*right[:1], np.array([0.9, 0.8]), *right[2:]]
    checks = gate_checks({"steps": step_figures(hacked, labels)})
    assert checks[1].value == pytest.approx(1.8 / 1.9)
    assert not checks[1].passed
    assert "MISSED" in gate_summary(checks)
    # Without a wrong step nothing is known.
    unknown = gate_checks({"steps": step_figures(right[:1], labels[:1])})
    assert not any(check.passed for check in unknown)
    arithmetic = {"auc": {"result": 0.99, "skipped": 0.9}}
    arithmetic |= {"first_error_f1": 0.96, "auc_minimum": 0.995}  # type: ignore[dict-item]
    checks = gate_checks({"arithmetic": arithmetic})
    assert [check.name for check in checks if not check.passed] == [
        "arithmetic: AUC of skipped"
    ]


def test_the_figure_has_a_panel_per_benchmark(tmp_path: Path):
    rng = np.random.default_rng(0)
    items = [
        BenchmarkItem(str(i), ["gsm8k", "math"][i % 2], "p", ("a", "b"), errors)
        for i, errors in enumerate([(), (0,), (1,), ()])
    ]
    scores = [rng.uniform(-1, 1, 2) for _ in items]
    figures = {
        "processbench": processbench_figures(items, scores),
        "prmbench": prmbench_figures(items, scores),
        "steps": step_figures(scores, [(True, False)] * 4),
    }
    assert draw_quality(figures, tmp_path / "all.png").stat().st_size > 10_000
    one = draw_quality({"steps": figures["steps"]}, tmp_path / "one.png")
    assert 0 < one.stat().st_size < (tmp_path / "all.png").stat().st_size
    by_kind = {"auc": {"result": 0.9, "after_box": 0.5}, "auc_all": 0.8}
    alone = draw_quality({"arithmetic": by_kind}, tmp_path / "arithmetic.png")
    assert alone.stat().st_size > 5_000


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "p", "steps": ["a"], "label": 1},
        {"problem": "p", "steps": [], "label": -1},
        {"problem": "p", "steps": ["a"]},
    ],
)
def test_bad_benchmark_rows(row: dict[str, Any], tmp_path: Path):
    file = tmp_path / "gsm8k.json"
    file.write_text(json.dumps([row]))
    with pytest.raises(ValueError, match="Row 0"):
        read_processbench(str(file))
    with pytest.raises(ValueError, match="Row 0"):
        read_prmbench(str(file))
    with pytest.raises(FileNotFoundError, match="--processbench"):
        read_processbench(str(tmp_path / "absent.json"))
