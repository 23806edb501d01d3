"""Live progress: a bar with the time left, one line per iteration, signs of life."""

import math
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Self, TextIO

from tqdm import tqdm

_WIDTHS = {
    "iter": 9,
    "reward": 7,
    "accuracy": 8,
    "tokens": 7,
    "kl": 8,
    "seconds (sample, update)": 24,
}
_BEAT_S = 1.0


class Heartbeat:
    """Calls a function again and again, however long what goes on meanwhile takes.

    Args:
        beat: called by a thread of its own.
        every_s: seconds between two calls, > 0.
    """

    def __init__(self, beat: Callable[[], None], every_s: float = _BEAT_S):
        self._beat = beat
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            self._beat()

    def close(self) -> None:
        """Ends the calls; one that has begun is waited for."""
        self._done.set()
        self._thread.join()


@contextmanager
def working(
    what: str, *, stream: TextIO | None = None, line_every_s: float = 30.0
) -> Iterator[None]:
    """Writes a line now and then while something without steps goes on.

    Args:
        what: goes on, as in "reading data".
        stream: where to write; standard error by default.
        line_every_s: seconds between two lines.
    """
    out = sys.stderr if stream is None else stream
    start = time.monotonic()

    def beat() -> None:
        elapsed = tqdm.format_interval(time.monotonic() - start)
        out.write(f"{what} | {elapsed} elapsed\n")
        out.flush()

    heartbeat = Heartbeat(beat, line_every_s)
    try:
        yield
    finally:
        heartbeat.close()


class ProgressBar:
    """Shows how far a long command is: a bar on a terminal, else a line now and then.

    Both by time, also while a single iteration takes long. In a file or a pipe there is
    never a carriage return. Use it as a context manager, or close it.

    Args:
        total: number of iterations at the end.
        first: iterations that were done before.
        stream: where to write; standard error by default.
        line_every_s: seconds without a line after which there is one, if no bar.
        unit: what is counted; said in lines.
    """

    def __init__(
        self,
        total: int,
        *,
        first: int = 0,
        stream: TextIO | None = None,
        line_every_s: float = 30.0,
        unit: str = "",
    ):
        self.total = total
        self.first = self._done = first
        self._unit = f" {unit}" if unit else ""
        self._stream = sys.stderr if stream is None else stream
        self._line_every_s = line_every_s
        self._start = self._shown = time.monotonic()
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=first,
                file=self._stream,
                dynamic_ncols=True,
                leave=False,
                smoothing=0.1,
                bar_format="{percentage:3.0f}% {bar} {n}/{total} | {elapsed} elapsed, "
                "{remaining} left",
            )
        self._heartbeat = Heartbeat(self._beat, min(max(line_every_s, 0.01), _BEAT_S))

    @property
    def is_bar(self) -> bool:
        """Whether there is a bar, which has the time left."""
        return self._bar is not None

    def show(self, done: int) -> None:
        """Reports how many iterations are done."""
        self._done = done
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        else:
            self._beat()

    def _beat(self) -> None:
        """Keeps the bar's time going, or writes the line that is due."""
        if self._bar is not None:
            self._bar.refresh()
        elif time.monotonic() - self._shown >= self._line_every_s:
            elapsed = tqdm.format_interval(time.monotonic() - self._start)
            self.write(
                f"{self._done}/{self.total}{self._unit} | {elapsed} elapsed, "
                f"{self.time_left(self._done)} left"
            )

    def time_left(self, done: int) -> str:
        """Returns `[h:]mm:ss` at the speed so far; "-" before there is one."""
        if done <= self.first:
            return "-"
        seconds = (time.monotonic() - self._start) / (done - self.first)
        return tqdm.format_interval(round(seconds * (self.total - done)))

    def write(self, text: str) -> None:
        """Writes a line above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
            return
        self._shown = time.monotonic()
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Removes the bar; the lines stay."""
        self._heartbeat.close()
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Progress(ProgressBar):
    """Shows how far a run is: a line per iteration. Use it as a context manager.

    On a terminal a bar stays below the lines; in a file or a pipe the lines end with
    the time left, and while an iteration takes long there are lines by time.

    Args:
        total: number of the run's last iteration.
        first: iterations that were done before, in a run that is resumed.
        stream: where to write; standard error by default.
        absent: metrics that the run does not have, and the lines neither.
        line_every_s: see `ProgressBar`.
    """

    def __init__(
        self,
        total: int,
        *,
        first: int = 0,
        stream: TextIO | None = None,
        absent: Collection[str] = (),
        line_every_s: float = 30.0,
    ):
        super().__init__(
            total,
            first=first,
            stream=stream,
            line_every_s=line_every_s,
            unit="iterations",
        )
        self._absent = absent
        header = _join({name: name for name in _WIDTHS}, absent)
        self.write(header if self.is_bar else f"{header}  time left")

    def update(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Reports that an iteration is done.

        Args:
            iteration: its number, from 1.
            metrics: by the names of `reporting.metrics`; what is missing or NaN is
                shown as "-".
        """
        line = iteration_line(iteration, self.total, metrics, self._absent)
        self.write(line if self.is_bar else f"{line}  {self.time_left(iteration):>9}")
        self.show(iteration)


def iteration_line(
    iteration: int,
    total_iterations: int,
    metrics: Mapping[str, float],
    absent: Collection[str] = (),
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
    cells = (
        f"{iteration:>{width}}/{total_iterations}",
        number("reward/total", "+.3f"),
        number("accuracy", ".3f"),
        number("response/tokens", ".1f"),
        kl,
        f"{number('seconds/iteration', '.2f')} {phases}",
    )
    return _join(dict(zip(_WIDTHS, cells, strict=True)), absent)


def _join(cells: Mapping[str, str], absent: Collection[str]) -> str:
    shown = (name for name in _WIDTHS if name not in absent)
    return " | ".join(cells[name].rjust(_WIDTHS[name]) for name in shown)
