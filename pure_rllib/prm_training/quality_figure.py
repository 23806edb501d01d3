"""The figure of a process reward model's quality."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pure_rllib.reporting.plots import BLUE, GREEN, GREY, ORANGE, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {"f1": "F1", "negative_f1": "F1 of wrong steps", "prm_score": "PRM-Score"}


def draw_quality(figures: Mapping[str, Any], path: str | Path) -> Path:
    """Draws one panel per benchmark that was measured, and returns the path.

    Args:
        figures: as `measure` computes them; at least one benchmark.
        path: PNG file to write.
    """
    panels: dict[str, Callable[[Axes, Mapping[str, Any]], str]] = {
        "processbench": _processbench,
        "prmbench": _prmbench,
        "steps": _calibration,
        "arithmetic": _arithmetic,
    }
    names = [name for name in panels if name in figures]
    if not names:
        raise ValueError(f"`figures` ({list(figures)}) must hold one of {list(panels)}")

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        for axis, name in zip(axes, names, strict=True):
            title = panels[name](axis, figures[name])
            # A line stands between title and axes: a legend or a note.
            axis.set_title(title, pad=24)

    return save_figure(draw, path, size=(5.2 * len(names), 4.6))


def _processbench(axis: "Axes", figures: Mapping[str, Any]) -> str:
    keys = ("error_accuracy", "correct_accuracy", "f1")
    _bars(axis, figures["subsets"], keys)
    return "ProcessBench"


def _prmbench(axis: "Axes", figures: Mapping[str, Any]) -> str:
    parts = {**figures["subsets"], "overall": figures["overall"]}
    _bars(axis, parts, ("f1", "negative_f1", "prm_score"))
    return "PRMBench"


def _bars(
    axis: "Axes", parts: Mapping[str, Mapping[str, float]], keys: tuple[str, ...]
) -> None:
    places = np.arange(len(parts))
    for k, (key, colour) in enumerate(zip(keys, (BLUE, ORANGE, GREEN), strict=True)):
        heights = [part[key] for part in parts.values()]
        label = _LABELS.get(key, key.replace("_", " "))
        axis.bar(places + (k - 1) * 0.27, heights, 0.27, color=colour, label=label)
    few = len(parts) < 5
    axis.set_ylim(0, 1)
    names = [name.replace("_", " ") for name in parts]
    axis.set_xticks(
        places, names, rotation=0 if few else 45, ha="center" if few else "right"
    )
    axis.grid(visible=False, axis="x")
    # Above the bars, whatever their heights.
    axis.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)


def _arithmetic(axis: "Axes", figures: Mapping[str, Any]) -> str:
    parts = {**figures["auc"], "all errors": figures["auc_all"]}
    names = [name.replace("_", " ") for name in parts]
    axis.barh(names, list(parts.values()), color=BLUE)
    axis.invert_yaxis()
    axis.axvline(0.5, color=GREY, linewidth=1, dashes=(4, 2))
    axis.set_xlim(0, 1)
    axis.set_xlabel("AUC of right steps against errors of the kind")
    axis.grid(visible=False, axis="y")
    return "Chain arithmetic"


def _calibration(axis: "Axes", figures: Mapping[str, Any]) -> str:
    curve = figures["calibration"]
    counts = np.asarray(curve["counts"], dtype=float)
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, dashes=(4, 2))
    axis.plot(curve["mean_probability"], curve["share_right"], color=BLUE)
    axis.scatter(
        curve["mean_probability"],
        curve["share_right"],
        # The area tells how many steps lie in a bin.
        s=20 + 180 * counts / counts.max(),
        color=BLUE,
        zorder=3,
    )
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel("p(right) of the PRM")
    axis.set_ylabel("share of steps that are right")
    note = "area of a point: how many steps"
    axis.text(0, 1.02, note, transform=axis.transAxes, color=GREY)
    return f"Calibration, error {curve['error']:.3f}"
