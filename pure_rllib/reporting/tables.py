"""Plain-text and Markdown tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


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


def accuracy_table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Compares accuracy on held-out problems before and after training.

    Args:
        before: `evaluation/*` metrics of the policy that training started from.
        after: the same of the trained policy.

    Returns:
        One line per way of decoding that both were evaluated with; greedy and sampled
        accuracy with 95% intervals, then the other `evaluation/*` metrics.
    """
    rows = []
    for key, label, decimals in (
        ("greedy_accuracy", "accuracy, greedy", 3),
        ("sampled_accuracy", "accuracy, sampled", 3),
        ("greedy_model_reward", "reward model, greedy", 3),
        ("sampled_model_reward", "reward model, sampled", 3),
        ("response_tokens", "response tokens", 1),
        ("no_answer_share", "no answer, share", 3),
    ):
        values = [m.get(f"evaluation/{key}", math.nan) for m in (before, after)]
        if any(math.isnan(value) for value in values):
            continue
        cells = [f"{value:.{decimals}f}" for value in values]
        for i, metrics in enumerate((before, after)):
            if f"evaluation/{key}_low" in metrics:
                low, high = (metrics[f"evaluation/{key}_{e}"] for e in ("low", "high"))
                cells[i] += f" [{low:.3f}, {high:.3f}]"
        rows.append([label, *cells, f"{values[1] - values[0]:+.{decimals}f}"])
    headers = ["held-out problems", "before [95% interval]", "after [95% interval]"]
    return format_table([*headers, "change"], rows)


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
