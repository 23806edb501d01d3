"""Figures of one run and of studies, as PNG files."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pure_rllib.reporting.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Panel = Callable[["Axes", Sequence[Row]], None]

# Okabe and Ito's palette: told apart with any colour vision.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, AMBER, GREY = "#56B4E9", "#E69F00", "#7F7F7F"
PALETTE = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PHASES = (
    ("sample", BLUE),
    ("score", SKY),
    ("verify", GREEN),
    ("learn", ORANGE),
    ("sync", AMBER),
    ("other", "#BBBBBB"),
)
_STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#444444",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
}


def learning_curves(rows: Sequence[Row], path: str | Path, title: str = "") -> Path:
    """Draws one run: accuracy, process reward, lengths, KL, clipping, time.

    Args:
        rows: one mapping per iteration, metric names to numbers, with
            `training_iteration` (else rows count from 1). A metric that is missing or
            NaN leaves a gap; `evaluation/*` may stand in some rows only. Accuracy, the
            reward model's and process rewards have a panel where any row has them.
        path: PNG file to write; its folder is made.
        title: shown above the panels.

    Returns:
        The path.
    """
    if not rows:
        raise ValueError("`rows` ([]) must have an iteration: there is nothing to draw")
    panels = run_panels(rows)

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(2, math.ceil(len(panels) / 2), sharex=True)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for panel, axis in zip(panels, axes.flat, strict=False):
            panel(axis, rows)
            axis.margins(x=0.02)
        for axis in axes[-1]:
            axis.set_xlabel("iteration")
            _whole_numbers(axis)
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=13, weight="bold")

    return save_figure(draw, path, size=(13.5, 7.2))


def run_panels(rows: Sequence[Row]) -> list[Panel]:
    """Returns what draws the panels of `learning_curves`.

    A run without a step scorer, a reward model or a verifier has no such metric in any
    row.
    """
    panels: list[Panel] = [_draw_lengths, _draw_kl, _draw_clipping, _draw_seconds]
    for panel, metric in (
        (_draw_process_reward, "reward/process_mean"),
        (_draw_model_reward, "reward/model"),
        (_draw_accuracy, "accuracy"),
    ):
        if any(metric in row for row in rows):
            panels.insert(0, panel)
    return panels


def study_figure(
    curves: Mapping[str, Sequence[Sequence[Row]]],
    keys: Sequence[str],
    path: str | Path,
    title: str = "",
) -> Path:
    """Compares the arms of a study: the median over seeds, in a band from min to max.

    Args:
        curves: label of an arm -> one list of rows per seed (rows as in
            `learning_curves`); at most 7 arms.
        keys: metrics, one panel each.
        path: PNG file to write; its folder is made.
        title: shown above the panels.

    Returns:
        The path.
    """
    if not 1 <= len(curves) <= len(PALETTE):
        raise ValueError(
            f"`curves` ({len(curves)} arms) must have 1 to {len(PALETTE)}: more "
            "colours are not told apart; draw several figures"
        )
    if not keys:
        raise ValueError("`keys` ([]) must name a metric: each one is a panel")
    num_columns = min(3, len(keys))
    num_rows = math.ceil(len(keys) / num_columns)

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(num_rows, num_columns, squeeze=False)
        for axis, key in zip(axes.flat, keys, strict=False):
            for index, (label, runs) in enumerate(curves.items()):
                _draw_band(axis, runs, key, label, index)
            axis.set_title(_title(key))
            axis.set_ylabel(_unit(key))
            axis.set_xlabel("iteration")
            _whole_numbers(axis)
            axis.margins(x=0.02)
            if _unit(key).startswith("share"):
                axis.set_ylim(-0.03, 1.03)
        for axis in list(axes.flat)[len(keys) :]:
            axis.axis("off")
        handles, labels = axes[0][0].get_legend_handles_labels()
        seeds = max(len(runs) for runs in curves.values())
        note = f"median, min to max of {seeds} seeds" if seeds > 1 else "one seed"
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=min(len(curves), 4),
            fontsize=10,
            title=note,
            title_fontsize=9,
            alignment="left",
        )
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=13, weight="bold")

    height = 3.5 * num_rows + 0.9
    return save_figure(draw, path, size=(max(6.4, 4.6 * num_columns), height))


def _draw_band(
    axis: "Axes", runs: Sequence[Sequence[Row]], key: str, label: str, index: int
) -> None:
    """One arm: iterations that any seed has; bands where more than one has them."""
    by_iteration: dict[float, list[float]] = {}
    for rows in runs:
        for x, y in zip(*_series(rows, key), strict=True):
            if not math.isnan(y):
                by_iteration.setdefault(x, []).append(y)
    xs = sorted(by_iteration)
    colour = PALETTE[index]
    axis.plot(
        xs,
        [float(np.median(by_iteration[x])) for x in xs],
        color=colour,
        label=label,
        marker=MARKERS[index],
        markersize=4.5,
        markevery=max(1, len(xs) // 8),
    )
    axis.fill_between(
        xs,
        [min(by_iteration[x]) for x in xs],
        [max(by_iteration[x]) for x in xs],
        color=colour,
        alpha=0.16,
        linewidth=0,
    )


def _draw_accuracy(axis: "Axes", rows: Sequence[Row]) -> None:
    _line(axis, rows, "accuracy", "training samples", SKY)
    for decoding, colour, marker in (("sampled", BLUE, "o"), ("greedy", ORANGE, "s")):
        key = f"evaluation/{decoding}_accuracy"
        xs, ys = _series(rows, key)
        known = ~np.isnan(ys)
        if not known.any():
            continue
        low, high = (_series(rows, f"{key}_{end}")[1] for end in ("low", "high"))
        errors = np.nan_to_num(np.stack([ys - low, high - ys])[:, known]).clip(0)
        axis.errorbar(
            xs[known],
            ys[known],
            yerr=errors,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.2,
            capsize=3,
            label=f"held out, {decoding} (95%)",
        )
    axis.set_ylim(-0.03, 1.03)
    _finish(axis, "Accuracy", "share of responses")


def _draw_process_reward(axis: "Axes", rows: Sequence[Row]) -> None:
    _line(axis, rows, "reward/process_mean", "mean of steps", BLUE)
    _line(axis, rows, "reward/process_min", "worst step", ORANGE, dashes=(4, 1.5))
    axis.axhline(0, color="#999999", linewidth=0.8, zorder=0)
    axis.set_ylim(-1.05, 1.05)
    _finish(axis, "Process reward", "reward, -1 to 1")


def _draw_model_reward(axis: "Axes", rows: Sequence[Row]) -> None:
    _line(axis, rows, "reward/model", "training samples", SKY)
    for decoding, colour, marker in (("sampled", BLUE, "o"), ("greedy", ORANGE, "s")):
        xs, ys = _series(rows, f"evaluation/{decoding}_model_reward")
        if (known := ~np.isnan(ys)).any():
            label = f"held out, {decoding}"
            axis.plot(xs[known], ys[known], color=colour, marker=marker, label=label)
    _finish(axis, "Reward model", "reward")


def _draw_lengths(axis: "Axes", rows: Sequence[Row]) -> None:
    _line(axis, rows, "response/tokens", "tokens", BLUE)
    _twin(axis, rows, "response/steps", "steps (right)", "steps per response")
    _finish(axis, "Response length", "tokens per response", loc="upper left")


def _draw_kl(axis: "Axes", rows: Sequence[Row]) -> None:
    _line(axis, rows, "kl/reference", "KL to reference policy", BLUE)
    if not axis.lines:
        _line(axis, rows, "kl/old_policy", "KL to old policy", BLUE)
    _twin(axis, rows, "entropy", "entropy (right)", "nats per token")
    _finish(axis, "KL and entropy", "nats per token", loc="upper left")


def _draw_clipping(axis: "Axes", rows: Sequence[Row]) -> None:
    _line(axis, rows, "clip/low_share", "clipped from below", BLUE)
    _line(axis, rows, "clip/high_share", "clipped from above", GREEN, dashes=(4, 1.5))
    _twin(axis, rows, "gradient_norm", "gradient norm (right)", "gradient norm")
    _finish(axis, "Clipping and gradient", "share of tokens", 2, loc="upper left")


def _draw_seconds(axis: "Axes", rows: Sequence[Row]) -> None:
    xs = _series(rows, "seconds/iteration")[0]
    stacks = [
        (name, colour, np.nan_to_num(_series(rows, f"seconds/{name}")[1]))
        for name, colour in PHASES
    ]
    stacks = [stack for stack in stacks if stack[2].any()]
    bottom = np.zeros(len(xs))
    for name, colour, seconds in stacks:
        axis.bar(xs, seconds, bottom=bottom, width=1.0, color=colour, label=name)
        bottom = bottom + seconds
    axis.set_ylim(0, max(float(bottom.max()) * 1.3, 1e-9))
    _finish(axis, "Time of an iteration", "seconds", 3, loc="upper left")


def _line(
    axis: "Axes", rows: Sequence[Row], key: str, label: str, colour: str, **style: Any
) -> None:
    """Draws one metric; nothing where no row has it."""
    xs, ys = _series(rows, key)
    if not np.isnan(ys).all():
        marker = "o" if len(rows) == 1 else None
        axis.plot(xs, ys, color=colour, label=label, marker=marker, **style)


def _twin(axis: "Axes", rows: Sequence[Row], key: str, label: str, unit: str) -> None:
    """Draws one metric on an axis of its own at the right; both start at 0."""
    _leave_room(axis)
    if np.isnan(_series(rows, key)[1]).all():
        return
    right = axis.twinx()
    right.spines["right"].set_visible(True)
    right.spines["right"].set_color(ORANGE)
    right.tick_params(axis="y", colors=ORANGE)
    right.grid(False)
    _line(right, rows, key, label, ORANGE, dashes=(4, 1.5))
    _leave_room(right)
    right.set_ylabel(unit, color=ORANGE)
    # One legend for both axes: the left one shows it.
    axis.plot([], [], color=ORANGE, label=label, dashes=(4, 1.5))


def _leave_room(axis: "Axes") -> None:
    """Starts the axis at 0 and ends it above the curves, where the legend goes."""
    axis.set_ylim(0, axis.get_ylim()[1] * 1.3)


def _finish(
    axis: "Axes", title: str, unit: str, ncols: int = 1, loc: Any = "best"
) -> None:
    axis.set_title(title)
    axis.set_ylabel(unit)
    if axis.get_legend_handles_labels()[0]:
        legend = axis.legend(loc=loc, ncols=ncols)
        legend.set_frame_on(True)
        legend.get_frame().set(edgecolor="none", facecolor="white", alpha=0.75)


def _series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of one metric; NaN where a row does not have it."""
    xs = [row.get("training_iteration", i) for i, row in enumerate(rows, start=1)]
    ys = [row.get(key) for row in rows]
    known = [math.nan if y is None or y == "" else float(y) for y in ys]
    return np.asarray(xs, dtype=np.float64), np.asarray(known)


def _title(key: str) -> str:
    """`evaluation/greedy_accuracy` as a heading."""
    text = key.replace("/", ": ").replace("_", " ")
    return text[:1].upper() + text[1:]


def _unit(key: str) -> str:
    return METRICS[key].unit if key in METRICS else ""


def _whole_numbers(axis: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def save_figure(
    draw: Callable[["Figure"], None], path: str | Path, size: tuple[float, float]
) -> Path:
    """Draws on a canvas of its own: no screen, and no state left in pyplot."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(path, dpi=130)
    return path
