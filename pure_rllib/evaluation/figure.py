"""pass@k over k, with bands; of several policies in one figure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pure_rllib.reporting.plots import PALETTE, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = dict[str, dict[str, float]]
"""k -> mean, low and high."""


def pass_at_k_figure(
    policies: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path
) -> Path:
    """Draws one panel per benchmark: pass@k solid, CoT-Pass@K dashed.

    The band of a policy's one evaluation is the 95% interval over problems, that of
    several (of other training seeds) reaches from the lowest to the highest, around
    their median. Around CoT-Pass@K by the majority of several verdicts the band reaches
    from all of them to any.

    Args:
        policies: label -> the figures of its evaluations; at most 7 labels.
        path: of the PNG file.

    Raises:
        ValueError: too many policies.
    """
    if len(policies) > len(PALETTE):
        raise ValueError(
            f"`policies` ({len(policies)}) must be at most {len(PALETTE)}, because "
            "more colours are not told apart. Draw several figures."
        )
    names = list(
        dict.fromkeys(
            name
            for evaluations in policies.values()
            for figures in evaluations
            for name, part in figures["metrics"].items()
            if "sampled" in part or "cot" in part
        )
    )
    columns = max(1, min(3, len(names)))
    rows = max(1, math.ceil(len(names) / columns))

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for axis, name in zip(axes, names, strict=False):
            for colour, (label, evaluations) in zip(
                PALETTE, policies.items(), strict=False
            ):
                parts = [f["metrics"][name] for f in evaluations]
                _draw_policy(axis, label, parts, colour)
            axis.set_title(name)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xlabel("samples, k")
            axis.set_ylabel("problems solved by one of k")
            axis.set_ylim(-0.02, 1.02)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        for axis in figure.axes[len(names) :]:
            axis.set_visible(False)
        if not names:
            figure.text(0.5, 0.5, "only greedy responses: no pass@k", ha="center")

    return save_figure(
        draw, path, size=(5.0 * columns, 4.2 * rows + 0.2 * len(policies))
    )


def _draw_policy(
    axis: "Axes", label: str, parts: Sequence[Mapping[str, Any]], colour: str
) -> None:
    # Bands over seeds may be wide, and lie over each other.
    alpha = 0.12 if len(parts) == 1 else 0.05
    for name, curve in curves_of(parts).items():
        style = "--" if name.startswith("cot") else "-"
        named = f"{label}, CoT [{parts[0]['cot']['judge']}]" if style == "--" else label
        sizes = [int(k) for k in curve]
        middle, low, high = (
            [row[key] for row in curve.values()] for key in ("mean", "low", "high")
        )
        axis.plot(sizes, middle, style, color=colour, marker="o", ms=3, label=named)
        axis.fill_between(sizes, low, high, color=colour, alpha=alpha, linewidth=0.8)


def curves_of(parts: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """One policy's curves on one benchmark, each k with `mean`, `low` and `high`.

    Args:
        parts: figures of its evaluations; of several, of other training seeds, the
            mean is the median and the ends are the lowest and the highest.

    Returns:
        `pass@k` and `cot_pass@k`, where every evaluation has it.
    """
    found: dict[str, Curve] = {}
    if all("sampled" in part for part in parts):
        found["pass@k"] = _over_seeds([p["sampled"]["pass_at_k"] for p in parts])
    if all("cot" in part for part in parts):
        rules = [part["cot"]["cot_pass_at_k"] for part in parts]
        curve = _over_seeds([rule["majority"] for rule in rules])
        (one, *others) = rules
        if not others and one["any"] != one["all"]:
            for k, row in curve.items():
                row |= {"low": one["all"][k]["mean"], "high": one["any"][k]["mean"]}
        found["cot_pass@k"] = curve
    return found


def _over_seeds(curves: Sequence[Mapping[str, Mapping[str, float]]]) -> Curve:
    if len(curves) == 1:
        return {k: dict(row) for k, row in curves[0].items()}
    found = {}
    for k in curves[0]:
        means = [curve[k]["mean"] for curve in curves]
        found[k] = {"mean": median(means), "low": min(means), "high": max(means)}
    return found
