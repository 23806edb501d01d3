"""The figure of a process reward model's quality."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pure_rllib.reporting.plots import BLUE, GREEN, GREY, ORANGE, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_quality(figures: Mapping[str, Any], path: str | Path) -> Path:
    """Draws one panel per benchmark that was measured.

    Args:
        figures: as `measure` computes them; at least one benchmark.
        path: PNG file to write.

    Returns:
        The path.
    """
    panels: dict[str, Callable[[Axes, Mapping[str, Any]], None]] = {
        "processbench": _processbench,
        "prmbench": _prmbench,
        "steps": _calibration,
    }
    names = [name for name in panels if name in figures]
    if not names:
        raise ValueError(f"`figures` ({list(figures)}) must hold one of {list(panels)}")

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        for axis, name in zip(axes, names, strict=True):
            panels[name](axis, figures[name])
            axis.set_ylim(0, 1)

    return save_figure(draw, path, size=(5.2 * len(names), 4.2))


def _processbench(axis: "Axes", figures: Mapping[str, Any]) -> None:
    keys = ("error_accuracy", "correct_accuracy", "f1")
    _bars(axis, figures["subsets"], keys)
    axis.set_title("ProcessBench")


def _prmbench(axis: "Axes", figures: Mapping[str, Any]) -> None:
    parts = {**figures["subsets"], "overall": figures["overall"]}
    _bars(axis, parts, ("f1", "negative_f1", "prm_score"))
    axis.set_title("PRMBench")


def _bars(
    axis: "Axes", parts: Mapping[str, Mapping[str, float]], keys: tuple[str, ...]
) -> None:
    places = np.arange(len(parts))
    for k, (key, colour) in enumerate(zip(keys, (BLUE, ORANGE, GREEN), strict=True)):
        heights = [part[key] for part in parts.values()]
        label = key.replace("_", " ")
        axis.bar(places + (k - 1) * 0.27, heights, 0.27, color=colour, label=label)
    rotation = 0 if len(parts) < 5 else 60
    axis.set_xticks(places, list(parts), rotation=rotation)
    axis.legend(ncols=3, loc="upper center")


def _calibration(axis: "Axes", figures: Mapping[str, Any]) -> None:
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
    axis.set_xlabel("p(right) of the PRM")
    axis.set_ylabel("share of steps that are right")
    axis.set_title(f"Calibration, error {curve['error']:.3f}")
