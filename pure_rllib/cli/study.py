"""What comes out of a sweep: one table, one figure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pure_rllib.cli.experiment import Experiment
from pure_rllib.cli.loggers import Row
from pure_rllib.reporting.plots import PALETTE, study_figure
from pure_rllib.reporting.tables import format_table

_FIGURE = ("accuracy", "evaluation/greedy_accuracy", "response/tokens")
# Column of the table -> metric, as it was last measured.
_FINAL = {
    "greedy": "evaluation/greedy_accuracy",
    "sampled": "evaluation/sampled_accuracy",
    "accuracy": "accuracy",
    "reward": "reward/total",
    "tokens": "response/tokens",
    "no answer": "response/no_answer_share",
}
_NOTE = (
    "greedy, sampled: accuracy on held-out problems; the others are of training "
    "samples. fewest tokens: lowest mean length of any iteration."
)


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    Attributes:
        settings: what distinguishes it: arm or swept settings, and seed.
        rows: one per iteration.
        error: what stopped it, or None.
        folder: its files.
    """

    settings: dict[str, Any]
    rows: list[Row]
    error: str | None
    folder: str

    @property
    def label(self) -> str:
        """Names the arm: everything but the seed."""
        parts = {k: v for k, v in self.settings.items() if k != "seed"}
        if set(parts) == {"arm"}:
            return str(parts["arm"])
        return ", ".join(f"{key}={shown(value)}" for key, value in parts.items())

    def last(self, metric: str) -> float:
        """The metric where it was last measured; NaN if never."""
        values = (row.get(metric, math.nan) for row in reversed(self.rows))
        return next((value for value in values if not math.isnan(value)), math.nan)


def reached(
    rows: Sequence[Mapping[str, Any]], metric: str, level: float, window: int
) -> int | None:
    """The first iteration at which the mean of `window` iterations is at `level`.

    Args:
        rows: one per iteration, from the first on.
        metric: whose mean is taken.
        level: to be reached.
        window: iterations in the mean, this one and those before.

    Returns:
        The iteration, or None if it is never reached.
    """
    values = [row.get(metric, math.nan) for row in rows]
    for end in range(window, len(values) + 1):
        if sum(values[end - window : end]) / window >= level:
            return int(rows[end - 1].get("training_iteration", end))
    return None


def results_of(trial: Trial, reach: Mapping[str, Any] | None) -> dict[str, Any]:
    """The numbers of a trial that stand in the table."""
    results: dict[str, Any] = {"iterations": len(trial.rows)}
    results |= {name: trial.last(metric) for name, metric in _FINAL.items()}
    tokens = [row.get("response/tokens", math.nan) for row in trial.rows]
    results["fewest tokens"] = min(tokens, default=math.nan)
    if reach:
        metric, window = reach.get("metric", "accuracy"), reach.get("window", 5)
        for level in reach["levels"]:
            results[f"to {level:g}"] = reached(trial.rows, metric, level, window)
    return results


def study_table(
    trials: Sequence[Trial],
    reach: Mapping[str, Any] | None = None,
    *,
    markdown: bool = False,
) -> str:
    """Writes one row per trial; with seeds also the median of each arm.

    Args:
        trials: of a sweep.
        reach: `levels`, `metric` and `window` of further columns: the iterations that a
            trial took to each level.
        markdown: Markdown's pipes instead of plain columns.
    """
    names = list(dict.fromkeys(name for t in trials for name in t.settings))
    results = [results_of(trial, reach) for trial in trials]
    columns = [
        key
        for key in dict.fromkeys(key for r in results for key in r)
        if not all(_is_missing(r.get(key)) for r in results) or key.startswith("to ")
    ]

    def line(settings: Mapping[str, Any], numbers: Mapping[str, Any]) -> list[Any]:
        named = [shown(settings.get(name)) for name in names]
        return named + [_cell(key, numbers.get(key)) for key in columns]

    lines = [line(t.settings, r) for t, r in zip(trials, results, strict=True)]
    labels = dict.fromkeys(trial.label for trial in trials)
    if "seed" in names and len(labels) < len(trials):
        for label in labels:
            of_arm = [i for i, t in enumerate(trials) if t.label == label]
            settings = {**trials[of_arm[0]].settings, "seed": "median"}
            medians = {k: _median([results[i].get(k) for i in of_arm]) for k in columns}
            lines.append(line(settings, medians))
    table = format_table([*names, *columns], lines, markdown=markdown)
    notes = _NOTE
    if reach:
        notes += (
            f" to x: first iteration at which the mean of {reach.get('window', 5)} "
            f"iterations of {reach.get('metric', 'accuracy')} is at x; - never."
        )
    return f"{table}\n\n{notes}"


def draw_study(
    experiment: Experiment, trials: Sequence[Trial], path: Path
) -> Path | None:
    """Draws the arms of a sweep; None if there are none to compare, or too many."""
    curves: dict[str, list[list[Row]]] = {}
    for trial in trials:
        if trial.rows:
            curves.setdefault(trial.label or experiment.name, []).append(trial.rows)
    if not 1 <= len(curves) <= len(PALETTE):
        return None
    keys = experiment.option("report", "figure") or _FIGURE
    known = [k for k in keys if any(not math.isnan(t.last(k)) for t in trials)]
    if not known:
        return None
    return study_figure(curves, known, path, title=experiment.name)


def shown(value: Any) -> Any:
    """A setting as a cell: short for numbers of any size."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(column: str, value: Any) -> Any:
    if _is_missing(value):
        return "-"
    if column == "iterations" or column.startswith("to "):
        return f"{value:g}"
    return f"{value:.1f}" if "tokens" in column else float(value)


def _median(values: Sequence[Any]) -> float | None:
    """The median; a level that was never reached counts as later than any other."""
    ranked = [math.inf if _is_missing(value) else float(value) for value in values]
    middle = median(ranked)
    return None if math.isinf(middle) else middle


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
