"""Live progress: a bar with the time left, and one line per iteration."""

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

_COLUMNS = ("iter", "reward", "accuracy", "tokens", "kl", "seconds (sample, update)")
_WIDTHS = (9, 7, 8, 7, 8, 24)


class Progress:
    """Shows how far a run is. Use it as a context manager.

    On a terminal a bar stays below the lines; in a file or a pipe there are only lines,
    which then end with the time left, and never a carriage return.

    Args:
        total_iterations: number of the run's last iteration.
        first_iteration: iterations that were done before, in a run that is resumed.
        stream: where to write; standard error by default.
    """

    def __init__(
        self,
        total_iterations: int,
        *,
        first_iteration: int = 0,
        stream: TextIO | None = None,
    ):
        self.total_iterations = total_iterations
        self.first_iteration = first_iteration
        self._stream = sys.stderr if stream is None else stream
        self._start = time.monotonic()
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total_iterations,
                initial=first_iteration,
                file=self._stream,
                unit="iter",
                dynamic_ncols=True,
                leave=False,
                smoothing=0.1,
                bar_format="{percentage:3.0f}% {bar} {n}/{total} | {elapsed} elapsed, "
                "{remaining} left",
            )
        header = _join(_COLUMNS)
        self.write(header if self._bar is not None else f"{header}  time left")

    def update(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Reports that an iteration is done.

        Args:
            iteration: its number, from 1.
            metrics: by the names of `reporting.metrics`; what is missing or NaN is
                shown as "-".
        """
        line = iteration_line(iteration, self.total_iterations, metrics)
        if self._bar is None:
            self.write(f"{line}  {self._time_left(iteration):>9}")
            return
        self.write(line)
        self._bar.update(iteration - self._bar.n)

    def write(self, text: str) -> None:
        """Writes a line above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
            return
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Removes the bar; the lines stay."""
        if self._bar is not None:
            self._bar.close()

    def _time_left(self, iteration: int) -> str:
        done = iteration - self.first_iteration
        if done <= 0:
            return "-"
        seconds = (time.monotonic() - self._start) / done
        return _clock(seconds * (self.total_iterations - iteration))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def iteration_line(
    iteration: int, total_iterations: int, metrics: Mapping[str, float]
) -> str:
    """Writes the line of one iteration, without the time left.

    Its KL is to the reference policy, or to the old policy where there is no reference
    policy.
    """

    def number(name: str, spec: str) -> str:
        value = metrics.get(name, math.nan)
        return "-" if value is None or math.isnan(value) else format(value, spec)

    kl = number("kl/reference", ".4f")
    if kl == "-":
        kl = number("kl/old_policy", ".4f")
    phases = f"({number('seconds/sample', '.2f')}, {number('seconds/learn', '.2f')})"
    width = len(str(total_iterations))
    return _join(
        (
            f"{iteration:>{width}}/{total_iterations}",
            number("reward/total", "+.3f"),
            number("accuracy", ".3f"),
            number("response/tokens", ".1f"),
            kl,
            f"{number('seconds/iteration', '.2f')} {phases}",
        )
    )


def _join(cells: tuple[str, ...]) -> str:
    return " | ".join(c.rjust(w) for c, w in zip(cells, _WIDTHS, strict=True))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
