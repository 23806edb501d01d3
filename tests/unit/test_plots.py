import math
import subprocess
import sys

import numpy as np
import pytest

from pure_rllib.reporting.metrics import METRICS
from pure_rllib.reporting.plots import learning_curves, study_figure

KEYS = ["evaluation/sampled_accuracy", "response/tokens", "response/no_answer_share"]


def make_rows(num_iterations=60, seed=0, slope=1.0):
    """Rows as a run would write them; evaluated every tenth iteration."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(1, num_iterations + 1):
        learnt = 1 / (1 + math.exp(-slope * (i - 20) / 8))

        def noisy(value, scale):
            return float(value + scale * rng.standard_normal())

        row = {
            "accuracy": min(1.0, max(0.0, noisy(0.27 + 0.62 * learnt, 0.03))),
            "reward/process_mean": noisy(0.3 + 0.55 * learnt, 0.03),
            "reward/process_min": noisy(-0.4 + 1.1 * learnt, 0.05),
            "response/tokens": noisy(52 - 8 * learnt, 1.0),
            "response/steps": noisy(4.6 - 0.6 * learnt, 0.1),
            "response/no_answer_share": max(0.0, noisy(0.2 - 0.2 * learnt, 0.01)),
            "kl/reference": abs(noisy(0.08 * learnt, 0.003)),
            "entropy": noisy(0.9 - 0.7 * learnt, 0.02),
            "clip/low_share": abs(noisy(0.004, 0.001)),
            "clip/high_share": abs(noisy(0.006, 0.001)),
            "gradient_norm": abs(noisy(0.8 - 0.4 * learnt, 0.1)),
            "seconds/iteration": 2.6,
            "seconds/sample": abs(noisy(1.0, 0.05)),
            "seconds/score": abs(noisy(0.2, 0.02)),
            "seconds/verify": abs(noisy(0.15, 0.02)),
            "seconds/learn": abs(noisy(1.1, 0.05)),
            "seconds/sync": 0.02,
            "seconds/other": 0.1,
        }
        if i == 1 or i % 10 == 0:
            for decoding, value in (
                ("greedy", 0.62 + 0.35 * learnt),
                ("sampled", 0.27 + 0.62 * learnt),
            ):
                key = f"evaluation/{decoding}_accuracy"
                row |= {key: value, f"{key}_low": value - 0.04}
                row[f"{key}_high"] = min(1.0, value + 0.035)
        assert row.keys() <= METRICS.keys()
        rows.append({"training_iteration": i, **row})
    return rows


def is_picture(path):
    from matplotlib.image import imread

    pixels = imread(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    return len(np.unique(pixels[::5, ::5].sum(axis=-1))) > 20


def test_learning_curves_of_a_run(tmp_path):
    path = learning_curves(make_rows(), tmp_path / "new" / "curves.png", "A run")
    assert is_picture(path)


def test_learning_curves_with_gaps(tmp_path):
    rows: list[dict[str, float | None]] = [
        {"accuracy": math.nan, "entropy": None},
        {"training_iteration": 7},
    ]
    assert is_picture(learning_curves([*rows, {"accuracy": 0.5}], tmp_path / "c.png"))


def test_study_with_seeds_of_different_length(tmp_path):
    curves = {
        "min": [make_rows(30, seed) for seed in range(3)],
        "sum": [make_rows(20 + seed, seed, slope=-1.0) for seed in range(3)],
    }
    assert is_picture(study_figure(curves, KEYS, tmp_path / "study.png", "Credit"))


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`rows`"):
        learning_curves([], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"`curves` \(8 arms\) must have 1 to 7"):
        study_figure({str(i): [[]] for i in range(8)}, KEYS, tmp_path / "x.png")
    with pytest.raises(ValueError, match="`keys`"):
        study_figure({"min": [[]]}, [], tmp_path / "x.png")


def test_import_loads_no_matplotlib():
    code = "import sys, pure_rllib.reporting.plots; print('matplotlib' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"
