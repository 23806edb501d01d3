"""How far a stage of PRM training is, as a callback of transformers' Trainer."""

import sys
import time
from datetime import timedelta
from typing import Any, TextIO

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState

from pure_rllib.reporting.progress import Heartbeat


class StageProgress(TrainerCallback):
    """Writes a line per logged update, and shows that long updates go on.

    On a terminal a bar below the lines counts the updates and the forward passes of the
    next one. In a file or a pipe a line tells the same whenever `interval_s` have gone
    by since the last line, however long a single pass takes.

    Args:
        stage: its name.
        stream: where to write; standard output by default.
        interval_s: seconds, >= 0.
    """

    def __init__(
        self, stage: str, *, stream: TextIO | None = None, interval_s: float = 30.0
    ):
        self.stage = stage
        self.interval_s = interval_s
        self._stream = sys.stdout if stream is None else stream
        self._bar: tqdm | None = None
        self._heartbeat: Heartbeat | None = None
        self._start = self._last_line = 0.0
        self._passes = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See `TrainerCallback.on_train_begin`."""
        self._start = self._last_line = time.monotonic()
        if state.is_world_process_zero and self._stream.isatty():
            self._bar = tqdm(
                total=state.max_steps,
                desc=self.stage,
                unit="update",
                file=self._stream,
                dynamic_ncols=True,
                leave=False,
            )
        num_passes = args.gradient_accumulation_steps
        self._heartbeat = Heartbeat(lambda: self._show(num_passes, state))

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See `TrainerCallback.on_substep_end`."""
        self._passes += 1
        self._show(args.gradient_accumulation_steps, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See `TrainerCallback.on_step_end`."""
        self._passes = 0
        if self._bar is not None or not control.should_log:
            self._show(args.gradient_accumulation_steps, state)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """See `TrainerCallback.on_log`."""
        if logs and "loss" in logs:
            self._write(
                state,
                f"loss {float(logs['loss']):.4f} | lr {logs['learning_rate']:.2e} | "
                f"gradient norm {float(logs.get('grad_norm', float('nan'))):.3f}",
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See `TrainerCallback.on_train_end`."""
        self.close()

    def close(self) -> None:
        """Removes the bar and ends the lines; also after an error."""
        if self._heartbeat is not None:
            self._heartbeat.close()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, passes_per_update: int, state: TrainerState) -> None:
        passes = f"pass {self._passes}/{passes_per_update} of the next"
        now = time.monotonic()
        if self._bar is not None:
            self._bar.n = state.global_step
            # Which draws the bar anew.
            self._bar.set_postfix_str(passes)
        elif now - self._last_line >= self.interval_s:
            elapsed = now - self._start
            done = state.global_step + self._passes / passes_per_update
            left = _time(elapsed * (state.max_steps / done - 1)) if done else "-"
            self._write(state, f"{passes} | {_time(elapsed)} elapsed, {left} left")

    def _write(self, state: TrainerState, text: str) -> None:
        """Writes a line above the bar."""
        if not state.is_world_process_zero:
            return
        self._last_line = time.monotonic()
        line = f"{self.stage:<4} {state.global_step}/{state.max_steps} | {text}"
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
