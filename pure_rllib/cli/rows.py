"""A result of RLlib as a flat row of the registered metrics."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.utils import flatten_dict

from pure_rllib.reporting.metrics import METRICS

Row = dict[str, Any]

BOOKKEEPING = ("training_iteration", "time_total_s", "num_env_steps_sampled_lifetime")
COLUMNS = (*BOOKKEEPING, *METRICS)
"""Every column of a `progress.csv`, whether or not an iteration measures it."""

EVALUATION = "evaluation/"


def row_of(result: Mapping[str, Any]) -> Row:
    """Picks the registered metrics out of a nested result; NaN where there is none."""
    flat = flatten_dict(dict(result), delimiter="/")
    return {name: _number(flat.get(name)) for name in COLUMNS}


def _number(value: Any) -> float | int:
    if value is None:
        return math.nan
    return value if isinstance(value, int) else float(value)


def evaluation_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The evaluation's metrics in a row; empty if it was not evaluated."""
    return {
        name: value
        for name, value in row.items()
        if name.startswith(EVALUATION) and value is not None and not math.isnan(value)
    }


def read_rows(path: Path) -> list[Row]:
    """Reads a `result.json`: one flat or nested object per line, flattened."""
    rows = []
    # A run that was killed while it wrote leaves half a line without an end.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    for line in lines:
        row = flatten_dict(json.loads(line), delimiter="/")
        rows.append({k: math.nan if v is None else v for k, v in row.items()})
    return rows


def is_reached(row: Mapping[str, Any], stop: Mapping[str, float]) -> bool:
    """Whether any stop criterion is met: its metric is at or over its value."""
    flat = flatten_dict(dict(row), delimiter="/")
    return any(
        flat.get(name) is not None and flat[name] >= value
        for name, value in stop.items()
    )
