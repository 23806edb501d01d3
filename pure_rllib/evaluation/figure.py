"""pass@k over k, with bands; of several policies in one figure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pure_rllib.reporting.plots import PALETTE, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Curve = Mapping[str, Mapping[str, float]]


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
            axis.set_ylim(0, 1)
            axis.legend(loc="best")
        for axis in list(axes)[len(names) :]:
            axis.set_visible(False)
        if not names:
            figure.text(0.5, 0.5, "only greedy responses: no pass@k", ha="center")

    return save_figure(draw, path, size=(5.0 * columns, 4.2 * rows))


def _draw_policy(
    axis: "Axes", label: str, parts: Sequence[Mapping[str, Any]], colour: str
) -> None:
    if all("sampled" in part for part in parts):
        curves = [part["sampled"]["pass_at_k"] for part in parts]
        _draw(axis, curves, None, colour, label=label)
    if all("cot" in part for part in parts):
        rules = [part["cot"]["cot_pass_at_k"] for part in parts]
        several = rules[0]["any"] != rules[0]["all"]
        band = (rules[0]["all"], rules[0]["any"]) if several else None
        curves = [rule["majority"] for rule in rules]
        judge = parts[0]["cot"]["judge"]
        _draw(axis, curves, band, colour, label=f"{label}, CoT [{judge}]", style="--")


def _draw(
    axis: "Axes",
    curves: Sequence[_Curve],
    band: tuple[_Curve, _Curve] | None,
    colour: str,
    *,
    label: str,
    style: str = "-",
) -> None:
    sizes = [int(k) for k in curves[0]]
    means = np.array([_values(curve, "mean") for curve in curves])
    if len(curves) > 1:
        low, high = means.min(axis=0), means.max(axis=0)
    elif band is not None:
        low, high = (np.array(_values(curve, "mean")) for curve in band)
    else:
        low, high = (np.array(_values(curves[0], end)) for end in ("low", "high"))
    middle = np.median(means, axis=0)
    axis.plot(sizes, middle, style, color=colour, marker="o", ms=3, label=label)
    axis.fill_between(sizes, low, high, color=colour, alpha=0.13, linewidth=0)


def _values(curve: _Curve, key: str) -> list[float]:
    return [row[key] for row in curve.values()]
