"""Evaluations side by side: paired differences, and one figure."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pure_rllib.evaluation.figure import Curve, curves_of, pass_at_k_figure
from pure_rllib.evaluation.paired import compare_greedy, compare_sampled, holm
from pure_rllib.evaluation.record import differences
from pure_rllib.evaluation.report import PROBLEMS_FILE, Report, read_report
from pure_rllib.reporting.tables import format_table
from pure_rllib.whole_folder import write_text

COMPARISON_FILE = "comparison.json"
_OF_THE_POLICY = ("policy.", "hashes.", "pure_rllib")


def compare(
    policies: Mapping[str, Sequence[str | Path]],
    out: str | Path,
    *,
    force: bool = False,
) -> tuple[dict[str, Any], str]:
    """Compares every policy with the first one, and draws all of them.

    Args:
        policies: label -> folders of its evaluations, of which several are of other
            training seeds; at least two labels.
        out: folder of `comparison.json` and `pass_at_k.png`.
        force: compare what was asked differently all the same.

    Returns:
        What the file holds, and tables for a console.

    Raises:
        ValueError: the evaluations were asked different problems, or (without `force`)
            asked differently.
    """
    if len(policies) < 2:
        raise ValueError(
            f"`--compare` ({list(policies)}) must name at least two evaluations, "
            "because they are compared. Add another folder."
        )
    reports = {label: [read_report(f) for f in fs] for label, fs in policies.items()}
    all_reports = [report for of_label in reports.values() for report in of_label]
    unequal = _unequal_settings(all_reports)
    if unequal and not force:
        listed = "\n".join(f"  {line}" for line in unequal)
        raise ValueError(
            "the evaluations must have been asked alike, because a difference could "
            f"be that of the settings:\n{listed}\nAdd --force to compare them all the "
            "same."
        )
    (base, base_reports), *others = reports.items()
    # First, as they refuse what is of other problems.
    comparisons = {f"{label} - {base}": _pair(base_reports, rs) for label, rs in others}
    found: dict[str, Any] = {
        "unequal_settings": unequal,
        "policies": {label: _curves(rs) for label, rs in reports.items()},
        "comparisons": comparisons,
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / COMPARISON_FILE, json.dumps(found, indent=1) + "\n")
    drawn = {label: [r.figures for r in rs] for label, rs in reports.items()}
    pass_at_k_figure(drawn, out / "pass_at_k.png")
    return found, _tables(found)


def _curves(reports: Sequence[Report]) -> dict[str, dict[str, Curve]]:
    """By benchmark: pass@k and CoT-Pass@K of one policy."""
    first, *_ = metrics = [report.metrics for report in reports]
    return {name: curves_of([m[name] for m in metrics]) for name in first}


def _unequal_settings(reports: Sequence[Report]) -> list[str]:
    """What was set otherwise, beside the policy itself."""
    first, *rest = [report.figures["settings"] for report in reports]
    found = []
    for report, record in zip(reports[1:], rest, strict=True):
        found += [
            f"{report.folder}: {change}"
            for change in differences(first, record)
            # Another tokenizer has other prompts: it belongs to the policy.
            if not change.startswith(_OF_THE_POLICY)
            and ".first_prompt." not in change
            and ".prompts_sha256" not in change
        ]
    return found


def _pair(a: Sequence[Report], b: Sequence[Report]) -> dict[str, Any]:
    """The differences b - a by benchmark, with Holm's p over the benchmarks."""
    rows_a, rows_b = ([_problems(r) for r in reports] for reports in (a, b))
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for rows in [*rows_a, *rows_b] for name in rows):
        of_a, of_b = (
            [rows.get(name, {}) for rows in side] for side in (rows_a, rows_b)
        )
        prompts = list(of_a[0])
        for rows in [*of_a, *of_b]:
            if set(rows) != set(prompts):
                raise ValueError(
                    f"the evaluations must have the same problems of {name}, because "
                    f"they are compared problem by problem; {len(prompts)} and "
                    f"{len(rows)}, of which {len(set(prompts) & set(rows))} are the "
                    "same. Evaluate both with the same --benchmarks and --limit."
                )
        found[name] = _differences(prompts, of_a, of_b)
    for kind in ("greedy", "sampled"):
        named = [name for name in found if kind in found[name]]
        adjusted = holm([found[name][kind]["p"] for name in named])
        for name, p in zip(named, adjusted, strict=True):
            found[name][kind]["p_holm"] = p
    return found


_Rows = dict[tuple[str, int], tuple[float | None, float | None]]


def _differences(
    prompts: Sequence[tuple[str, int]], a: Sequence[_Rows], b: Sequence[_Rows]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    greedy, sampled = (
        [
            [[rows[prompt][column] for prompt in prompts] for rows in side]
            for side in (a, b)
        ]
        for column in (0, 1)
    )
    if len(a) == len(b) == 1 and None not in (*greedy[0][0], *greedy[1][0]):
        one, other = greedy[0][0], greedy[1][0]
        found["greedy"] = asdict(compare_greedy(one, other))  # type: ignore[arg-type]
    if all(None not in row for side in sampled for row in side):
        # Of several training seeds a problem's mean is over all of them.
        means = [np.mean(np.array(side, dtype=float), axis=0) for side in sampled]
        found["sampled"] = asdict(compare_sampled(*means))
    return found


def _problems(report: Report) -> dict[str, _Rows]:
    """By benchmark and problem text: greedy right or not, and the share of samples.

    A text that is asked more than once is numbered.
    """
    found: dict[str, _Rows] = {}
    seen = Counter[tuple[str, str]]()
    with (report.folder / PROBLEMS_FILE).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            greedy = float(row["greedy"]) if row["greedy"] else None
            n = int(row["n"])
            share = int(row["c"]) / n if n else None
            name, prompt = row["benchmark"], row["prompt"]
            key = (prompt, seen[name, prompt])
            seen[name, prompt] += 1
            found.setdefault(name, {})[key] = (greedy, share)
    return found


def _tables(found: Mapping[str, Any]) -> str:
    """The policies' curves, and their differences."""
    curves = [
        (label, name, figure, curve)
        for label, by_benchmark in found["policies"].items()
        for name, figures in by_benchmark.items()
        for figure, curve in figures.items()
    ]
    sizes = sorted({k for *_, curve in curves for k in curve}, key=int)
    shares = [
        [
            *named,
            *(f"{100 * curve[k]['mean']:.1f}" if k in curve else "-" for k in sizes),
        ]
        for *named, curve in curves
    ]
    rows = []
    for label, by_benchmark in found["comparisons"].items():
        for name, kinds in by_benchmark.items():
            for kind, row in kinds.items():
                shown = f"{100 * row['difference']:+.1f}"
                if kind == "greedy":
                    what = f"only first {row['only_a']}, only second {row['only_b']}"
                else:
                    shown += f" [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
                    what = "sign flips"
                ps = [
                    f"{row[p]:.4f}" if row[p] >= 1e-4 else "<0.0001"
                    for p in ("p", "p_holm")
                ]
                rows.append([label, name, kind, shown, *ps, what])
    policies = ["policy", "benchmark", "figure", *(f"k={k}" for k in sizes)]
    headers = ["comparison", "benchmark", "responses", "difference", "p", "p (Holm)"]
    tables = [format_table([*headers, "test"], rows)]
    if shares:
        tables.insert(0, format_table(policies, shares))
    return "\n\n".join(tables)
