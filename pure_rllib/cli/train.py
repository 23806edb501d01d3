"""One run: the loop around `Algorithm.train()`, and what it leaves in its folder."""

import logging
import math
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Self

import ray

from pure_rllib.algorithms import LLMAlgorithm, LLMConfig
from pure_rllib.cli.experiment import Experiment
from pure_rllib.cli.folder import (
    RunFolder,
    iteration_of,
    read_rollouts,
    write_rollouts,
)
from pure_rllib.cli.loggers import (
    Row,
    RunLoggers,
    check_stop,
    evaluation_of,
    is_reached,
    read_rows,
    row_of,
)
from pure_rllib.cli.settings import resolved
from pure_rllib.reporting.plots import learning_curves
from pure_rllib.reporting.progress import Progress
from pure_rllib.reporting.rollouts import write_rollouts_page
from pure_rllib.reporting.tables import accuracy_table
from pure_rllib.whole_folder import write_text

INTERRUPTED = 130
"""Exit status after Ctrl-C, as of a shell's."""


@dataclass
class Run:
    """A run of one experiment, without Tune.

    Attributes:
        experiment: what to run.
        folder: where; made by this run, or to be resumed.
        checkpoint: to go on from; None starts anew.
        verbose: show what Ray's processes write.
    """

    experiment: Experiment
    folder: RunFolder
    checkpoint: Path | None = None
    verbose: bool = False
    _rows: list[Row] = field(default_factory=list, init=False)
    _start: float = field(default_factory=monotonic, init=False)
    _seconds_before: float = field(default=0.0, init=False)

    def run(self) -> int:
        """Runs until a stop criterion is met or Ctrl-C; returns the exit status.

        Raises:
            ValueError: a setting cannot work.
        """
        config = self.experiment.build_config()
        start_ray(config, self.experiment.spec.get("ray"), verbose=self.verbose)
        try:
            algo = config.build_algo()
            try:
                return self._run(algo, config)
            finally:
                algo.stop()
        finally:
            ray.shutdown()

    def _run(self, algo: LLMAlgorithm, config: LLMConfig) -> int:
        check_stop(
            self.experiment.stop,
            algo.env_summary.absent_metrics,
            is_evaluated=bool(config.evaluation_interval),
        )
        # Not before: a wrong setting makes no folder.
        say(f"Run folder: {self.folder.path}")
        say(algo.first_lines)
        say(algo.env_summary.steps)
        if self.checkpoint is None:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            write_text(self.folder.experiment_file, self.experiment.to_yaml())
            self.folder.write_json("config.json", resolved(algo.config))
        else:
            self._restore(algo, self.checkpoint)
            if algo.iteration >= self.experiment.num_iterations:
                say(
                    f"{self.folder.path} has {algo.iteration} iterations already. "
                    f"Add --iterations {2 * algo.iteration} to go on."
                )
                return 0
        self._start = monotonic()
        loggers = RunLoggers(self.experiment, self.folder.path, self._rows)
        try:
            if self._loop(algo, config, loggers):
                self._report(algo)
                return 0
            self._say_how_to_resume("Stopped.")
            return INTERRUPTED
        except (Exception, KeyboardInterrupt):
            self._say_how_to_resume("Not finished.")
            raise
        finally:
            loggers.close()

    def _restore(self, algo: LLMAlgorithm, checkpoint: Path) -> None:
        """Takes the run back to a checkpoint, its logs included."""
        algo.restore_from_path(str(checkpoint))
        iteration = iteration_of(checkpoint)
        assert algo.iteration == iteration, f"{checkpoint} is of {algo.iteration}"
        file = self.folder.result_file
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        # Rows are in order; what follows is another road from here.
        self._rows = [
            row for row in read_rows(file) if row["training_iteration"] <= iteration
        ]
        write_text(file, "".join(lines[: len(self._rows)]))
        self._seconds_before = self._rows[-1]["time_total_s"]
        self.folder.go_back_to(iteration)
        say(f"Resuming {self.folder.path} after iteration {iteration}.")

    def _loop(self, algo: LLMAlgorithm, config: LLMConfig, loggers: RunLoggers) -> bool:
        """Iterates; returns whether the run is done, not only interrupted."""
        total = self.experiment.num_iterations
        every = self.experiment.option("checkpoint", "every")
        absent = algo.env_summary.absent_metrics
        with (
            Progress(total, first=algo.iteration, absent=absent) as progress,
            Interrupt(progress.write) as interrupt,
        ):
            if config.evaluation_interval and not self._rows:
                before = {"training_iteration": 0, "evaluation": algo.evaluate()}
                self._log(row_of(before, absent), loggers)
            is_done = False
            while not (is_done or interrupt.requested):
                result = algo.train()
                iteration = algo.iteration
                row = row_of({**result, "training_iteration": iteration}, absent)
                # A callback, such as the monitor of reward hacking, may end the run.
                is_done = is_reached(row, self.experiment.stop) or result["done"]
                if is_done and config.evaluation_interval and not evaluation_of(row):
                    row |= evaluation_of(row_of({"evaluation": algo.evaluate()}))
                is_last = is_done or interrupt.requested
                self._log(row, loggers, self._rollouts(algo, iteration, is_last))
                progress.update(iteration, row)
                if is_last or iteration % every == 0:
                    self._save(algo)
            # Ctrl-C may have come while the iteration was being written down.
            if not self.folder.checkpoint(algo.iteration).exists():
                self._save(algo)
        return is_done

    def _save(self, algo: LLMAlgorithm) -> None:
        algo.save_to_path(str(self.folder.checkpoint(algo.iteration)))
        self.folder.keep_checkpoints(self.experiment.option("checkpoint", "keep"))

    def _log(self, row: Row, loggers: RunLoggers, rollouts: Any = ()) -> None:
        row["time_total_s"] = self._seconds_before + monotonic() - self._start
        self._rows.append(row)
        loggers.write(row, rollouts)

    def _rollouts(self, algo: LLMAlgorithm, iteration: int, is_last: bool) -> Any:
        """Keeps the rollouts of the first, every n-th and the last iteration."""
        every = self.experiment.option("report", "rollouts_every")
        if not (iteration == 1 or iteration % every == 0 or is_last):
            return ()
        groups = algo.rollouts(self.experiment.option("report", "max_groups"))
        write_rollouts(groups, self.folder.rollouts, iteration)
        return groups

    def _say_how_to_resume(self, event: str) -> None:
        checkpoints = self.folder.checkpoints()
        if not checkpoints:
            say(f"{event} There is no checkpoint yet.")
            return
        say(f"{event} Last checkpoint: {checkpoints[-1]}")
        folder = shlex.quote(str(self.folder.path))
        say(f"To go on:  pure-rllib train --resume {folder}")

    def _report(self, algo: LLMAlgorithm) -> None:
        """Writes figures, page, policy and summary, and says where they are."""
        path, name = self.folder.path, self.experiment.name
        curves = learning_curves(self._rows, path / "learning_curves.png", title=name)
        facts = {"experiment": name}
        for section in ("environment", "env_runners", "training"):
            facts |= self.experiment.config.get(section, {})
        page = write_rollouts_page(
            read_rollouts(self.folder.rollouts),
            path / "rollouts.html",
            title=f"Rollouts of {name}",
            meta=facts,
        )
        policy = self.folder.write_policy(algo.export_policy)
        evaluated = [found for row in self._rows if (found := evaluation_of(row))]
        before, after = (evaluated[0], evaluated[-1]) if evaluated else ({}, {})
        last = self._rows[-1]
        summary = {
            "name": name,
            "iterations": algo.iteration,
            "seconds": last["time_total_s"],
            "before": before,
            "after": after,
            # JSON has no word for NaN.
            "last_iteration": {
                k: None if math.isnan(v) else v for k, v in last.items()
            },
        }
        self.folder.write_json("summary.json", summary)
        if len(evaluated) > 1:
            say(f"\n{accuracy_table(before, after)}")
        say(
            f"\nlearning curves         {curves}\n"
            f"rollouts, in a browser  {page}\n"
            f"policy, Hugging Face    {policy}\n"
            f"checkpoint              {self.folder.checkpoints()[-1]}\n"
            f"all metrics             {path / 'progress.csv'}\n"
            "\nOpen the rollouts page to see what each step earned, run `tensorboard "
            f"--logdir {shlex.quote(str(path))}` for all curves, or load the policy "
            "with AutoModelForCausalLM.from_pretrained."
        )


class Interrupt:
    """While entered, the first SIGINT or SIGTERM is only noted; the second one stops.

    The iteration is finished then, and a checkpoint written.

    Args:
        tell: called with a line of text when the first one comes.

    Attributes:
        requested: whether one has come.
    """

    def __init__(self, tell: Callable[[str], None]):
        self.requested = False
        self._tell = tell
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._tell(
            "Stopping: this iteration is finished and a checkpoint written first "
            "(Ctrl-C again: stop at once)."
        )


def start_ray(
    config: LLMConfig,
    options: Mapping[str, Any] | None = None,
    *,
    verbose: bool = False,
) -> None:
    """Starts Ray on this machine, or joins a cluster, unless it runs already.

    Args:
        config: of a run; it gets at least the CPUs that it asks for, because Ray would
            else wait for them without end.
        options: `num_cpus`, `num_gpus`, `object_store_memory`, `address`.
        verbose: show what remote processes write.
    """
    if ray.is_initialized():
        return
    options = {"address": os.environ.get("RAY_ADDRESS"), **(options or {})}
    if options["address"] is None:
        options["address"] = "local"
        options.setdefault("num_cpus", max(os.cpu_count() or 1, cpus_of(config)))
    ray.init(
        **options,
        include_dashboard=False,
        configure_logging=True,
        logging_level=logging.INFO if verbose else logging.ERROR,
        log_to_driver=verbose,
    )


def cpus_of(config: LLMConfig) -> int:
    """Returns how many CPUs a run asks Ray for."""
    algorithm: type[LLMAlgorithm] = config.algo_class
    request = algorithm.default_resource_request(config)
    return math.ceil(request.required_resources.get("CPU", 1))


def quiet() -> None:
    """Keeps notes for developers of other libraries off the console."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings(
        "default", category=DeprecationWarning, module=r"pure_rllib\."
    )
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"ray\.")
    for name in ("ray", "ray.rllib", "ray.tune", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def say(text: str) -> None:
    """Prints at once, so that what pipes and files show is in order."""
    sys.stderr.flush()
    print(text, flush=True)
