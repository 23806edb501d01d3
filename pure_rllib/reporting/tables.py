"""Plain-text and Markdown tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pure_rllib.reporting.intervals import Interval


def format_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    markdown: bool = False,
) -> str:
    """Lays out a table with aligned columns.

    A column whose cells are all numbers (or "-", or empty) is aligned to the right.

    Args:
        headers: C titles.
        rows: rows of C cells; floats are shown with 3 decimals, None and NaN as "-".
        markdown: Markdown's pipes instead of plain columns.

    Raises:
        ValueError: a row does not have C cells.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(
                f"`rows` has a row of {len(row)} cells {list(row)!r}; it must have "
                f"{len(headers)}, because that is the number of `headers`"
            )
    cells = [[_cell(value) for value in row] for row in rows]
    if markdown:
        cells = [[c.replace("|", "\\|") for c in row] for row in cells]
    columns = list(zip(headers, *cells, strict=True))
    least = 3 if markdown else 1
    widths = [max(least, *map(len, column)) for column in columns]
    right = [len(c) > 1 and all(map(_is_numeric, c[1:])) for c in columns]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(row, widths, right, strict=True)
        ]
        if markdown:
            return "| " + " | ".join(padded) + " |"
        return "  ".join(padded).rstrip()

    if markdown:
        rule = [
            "-" * (w - 1) + ":" if r else "-" * w
            for w, r in zip(widths, right, strict=True)
        ]
    else:
        rule = ["-" * w for w in widths]
    return "\n".join([line(headers), line(rule), *map(line, cells)])


def accuracy_table(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    markdown: bool = False,
) -> str:
    """Compares accuracy on held-out problems before and after training.

    Args:
        before: `evaluation/*` metrics of the policy that training started from.
        after: the same of the trained policy.
        markdown: Markdown's pipes instead of plain columns.

    Returns:
        One line per way of decoding that both were evaluated with; greedy and sampled
        accuracy with 95% intervals, then the other `evaluation/*` metrics.
    """
    rows = []
    for decoding in ("greedy", "sampled"):
        key = f"evaluation/{decoding}_accuracy"
        if not (_known(before, key) and _known(after, key)):
            continue
        first, last = _interval(before, key), _interval(after, key)
        change = f"{last.mean - first.mean:+.3f}"
        label = f"accuracy, {decoding}"
        rows.append([label, format_interval(first), format_interval(last), change])
    for key, label, decimals in (
        ("evaluation/response_tokens", "response tokens", 1),
        ("evaluation/no_answer_share", "no answer, share", 3),
    ):
        if _known(before, key) and _known(after, key):
            change = f"{after[key] - before[key]:+.{decimals}f}"
            values = [f"{m[key]:.{decimals}f}" for m in (before, after)]
            rows.append([label, *values, change])
    headers = ["held-out problems", "before [95% interval]", "after [95% interval]"]
    return format_table([*headers, "change"], rows, markdown=markdown)


def format_interval(interval: Interval) -> str:
    """Writes an interval as `0.620 [0.550, 0.685]`."""
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _interval(metrics: Mapping[str, float], key: str) -> Interval:
    return Interval(metrics[key], metrics[f"{key}_low"], metrics[f"{key}_high"])


def _known(metrics: Mapping[str, float], key: str) -> bool:
    return key in metrics and not math.isnan(metrics[key])


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _is_numeric(cell: str) -> bool:
    text = cell.strip().rstrip("%s")
    if text in ("", "-"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
