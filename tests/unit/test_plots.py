import math
import subprocess
import sys

import numpy as np
import pytest

from pure_rllib.reporting.metrics import METRICS
from pure_rllib.reporting.plots import learning_curves, run_panels, study_figure

KEYS = ["evaluation/sampled_accuracy", "response/tokens", "response/no_answer_share"]


def make_rows(num_iterations=60, seed=0):
    """Rows with every metric; those of the evaluation stand in every tenth only."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(1, num_iterations + 1):
        numbers = rng.random(len(METRICS)).tolist()
        row = dict(zip(METRICS, numbers, strict=True))
        if i % 10:
            row = {k: v for k, v in row.items() if not k.startswith("evaluation/")}
        rows.append({"training_iteration": i, **row})
    return rows


def is_picture(path):
    from matplotlib.image import imread

    pixels = imread(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    return len(np.unique(pixels[::5, ::5].sum(axis=-1))) > 20


@pytest.mark.slow
def test_learning_curves_of_a_run(tmp_path):
    path = learning_curves(make_rows(), tmp_path / "new" / "curves.png", "A run")
    assert is_picture(path)


def test_learning_curves_with_gaps(tmp_path):
    rows: list[dict[str, float | None]] = [
        {"accuracy": math.nan, "entropy": None},
        {"training_iteration": 7},
    ]
    assert is_picture(learning_curves([*rows, {"accuracy": 0.5}], tmp_path / "c.png"))


@pytest.mark.parametrize(
    ("lacking", "panel"),
    [
        ("reward/process_mean", "_draw_process_reward"),
        ("reward/model", "_draw_model_reward"),
        ("accuracy", "_draw_accuracy"),
    ],
)
def test_a_run_has_panels_of_what_it_measures(tmp_path, lacking, panel):
    rows = make_rows(3)
    names = [found.__name__ for found in run_panels(rows)]
    for row in rows:
        del row[lacking]
    assert [f.__name__ for f in run_panels(rows)] == [n for n in names if n != panel]
    assert is_picture(learning_curves(rows, tmp_path / "c.png"))


def test_study_with_seeds_of_different_length(tmp_path):
    curves = {
        "min": [make_rows(30, seed) for seed in range(3)],
        "sum": [make_rows(20 + seed, seed) for seed in range(3)],
    }
    assert is_picture(study_figure(curves, KEYS, tmp_path / "study.png", "Credit"))


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`rows`"):
        learning_curves([], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"`curves` \(8 arms\) must have 1 to 7"):
        study_figure({str(i): [[]] for i in range(8)}, KEYS, tmp_path / "x.png")
    with pytest.raises(ValueError, match="`keys`"):
        study_figure({"min": [[]]}, [], tmp_path / "x.png")


@pytest.mark.slow
def test_import_loads_no_matplotlib():
    code = "import sys, pure_rllib.reporting.plots; print('matplotlib' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"
