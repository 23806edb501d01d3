"""What methods cost in diversity, at the same accuracy: figures and a table.

    python benchmarks/methods.py OUT [SEED ...]

Trains the five `methods_*` examples with each seed (0, 1 and 2) until half of the
held-out answers are right, and asks each policy and the start policy by `eval_methods`;
what OUT holds already is not done again.

methods.png has the entropy and the share of groups with a right response over training
accuracy, medians of the seeds in bands from the lowest to the highest. compared/ has
pass@k and CoT-pass@k of all. The table says of each policy at the end of its run, which
is at an equal pass@1, how many different right responses there were among its samples
to a problem that it solved.
"""

import math
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pure_rllib.cli.loggers import Row, read_rows
from pure_rllib.reporting.plots import PALETTE, save_figure
from pure_rllib.reporting.tables import format_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("pure", "grpo", "rloo", "riskpo", "rover")
PANELS = ("entropy", "pass_at_g")
WINDOW = 5
BIN = 0.05


def smoothed(rows: Sequence[Row], metric: str) -> list[float]:
    """Means of a metric over `WINDOW` iterations."""
    values = [float(row.get(metric, math.nan)) for row in rows]
    return [
        sum(values[i : i + WINDOW]) / WINDOW for i in range(len(values) - WINDOW + 1)
    ]


def distinct_correct(samples: Path) -> float:
    """Different right texts to a problem, mean over the problems that were solved."""
    import pyarrow.parquet

    texts: dict[str, set[str]] = defaultdict(set)
    table = pyarrow.parquet.read_table(
        samples, columns=["problem_id", "decoding", "text", "outcome"]
    )
    for row in table.to_pylist():
        if row["decoding"] == "sampled" and row["outcome"] == "correct":
            texts[row["problem_id"]].add(row["text"])
    return sum(map(len, texts.values())) / len(texts) if texts else math.nan


def command(*words: str) -> None:
    """Runs `pure-rllib` and shows what it writes."""
    subprocess.run([sys.executable, "-m", "pure_rllib.cli", *words], check=True)


def run_all(out: Path, seeds: Sequence[str]) -> None:
    """Trains and evaluates what is missing, and compares the policies."""
    start = out / "evaluations/start"
    if not start.is_dir():
        command("eval", "eval_methods", "--out", str(start))
    for name in (f"{method}_{seed}" for seed in seeds for method in METHODS):
        run, asked = out / "runs" / name, out / "evaluations" / name
        method, seed = name.split("_")
        if not run.is_dir():
            words = ["--seed", seed, "--out", str(run)]
            command("train", f"methods_{method}", *words)
        if not asked.is_dir():
            policy = f"policy.model={run / 'policy'}"
            command("eval", "eval_methods", "--set", policy, "--out", str(asked))
    folders = {
        method: [str(out / "evaluations" / f"{method}_{seed}") for seed in seeds]
        for method in METHODS
    }
    labelled = [f"{method}={','.join(found)}" for method, found in folders.items()]
    compared = str(out / "compared")
    command("eval", "--compare", f"start={start}", *labelled, "--out", compared)


def by_accuracy(rows: Sequence[Row], metric: str) -> dict[float, float]:
    """Means of a metric over the iterations of like accuracy, in bins of `BIN`."""
    found: dict[float, list[float]] = defaultdict(list)
    pairs = zip(smoothed(rows, "accuracy"), smoothed(rows, metric), strict=True)
    for accuracy, value in pairs:
        if math.isnan(accuracy) or math.isnan(value):
            continue
        found[(math.floor(accuracy / BIN) + 0.5) * BIN].append(value)
    return {accuracy: statistics.fmean(found[accuracy]) for accuracy in sorted(found)}


def draw_runs(rows_of: dict[str, list[Row]], path: Path) -> Path:
    """Draws the panels over accuracy: medians of seeds, in bands from min to max."""

    def draw(figure: "Figure") -> None:
        for axis, metric in zip(figure.subplots(1, 2), PANELS, strict=True):
            for method, colour in zip(METHODS, PALETTE, strict=False):
                values: dict[float, list[float]] = defaultdict(list)
                for name, rows in rows_of.items():
                    if name.split("_")[0] == method:
                        for accuracy, value in by_accuracy(rows, metric).items():
                            values[accuracy].append(value)
                x = sorted(values)
                low, high = ([f(values[at]) for at in x] for f in (min, max))
                medians = [statistics.median(values[at]) for at in x]
                axis.plot(x, medians, color=colour, label=method)
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.set_xlabel("accuracy of training samples")
            axis.set_title(metric)
            axis.legend()

    return save_figure(draw, path, (10.0, 4.2))


def main() -> None:
    """Runs what is missing, writes the figures and prints the table."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    out, seeds = Path(sys.argv[1]), sys.argv[2:] or ["0", "1", "2"]
    run_all(out, seeds)
    files = sorted(out.glob("runs/*/result.json"))
    rows_of = {path.parent.name: read_rows(path) for path in files}
    print(draw_runs(rows_of, out / "methods.png"))
    metrics = ("accuracy", *PANELS)
    cells = [
        [
            name,
            len(rows),
            *((smoothed(rows, metric) or [math.nan])[-1] for metric in metrics),
            distinct_correct(out / "evaluations" / name / "samples.parquet"),
        ]
        for name, rows in rows_of.items()
    ]
    print(format_table(["run", "iterations", *metrics, "distinct right"], cells))


if __name__ == "__main__":
    main()
