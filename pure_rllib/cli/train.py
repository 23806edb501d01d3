"""One run: the loop around `Algorithm.train()`, and what it leaves in its folder."""

import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import ray

from pure_rllib.algorithms import PURE, PUREConfig
from pure_rllib.cli.experiment import Experiment
from pure_rllib.cli.folder import RunFolder, write_text
from pure_rllib.cli.interrupt import Interrupt
from pure_rllib.cli.loggers import RunLoggers, RunTrial
from pure_rllib.cli.rollout_files import (
    drop_later,
    iteration_of,
    read_rollouts,
    write_rollouts,
)
from pure_rllib.cli.rows import Row, evaluation_of, is_reached, read_rows, row_of
from pure_rllib.cli.sections import resolved
from pure_rllib.cli.session import start_ray
from pure_rllib.reporting.plots import learning_curves
from pure_rllib.reporting.progress import Progress
from pure_rllib.reporting.rollouts import write_rollouts_page
from pure_rllib.reporting.tables import accuracy_table

INTERRUPTED = 130
"""Exit status after Ctrl-C, as of a shell's."""


class Run:
    """A run of one experiment, without Tune.

    Args:
        experiment: what to run.
        folder: where; made by this run, or to be resumed.
        checkpoint: to go on from; None starts anew.
        verbose: show what Ray's processes write.
        say: called with every line of the report.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        *,
        checkpoint: Path | None = None,
        verbose: bool = False,
        say: Callable[[str], None] = print,
    ):
        self.experiment = experiment
        self.folder = folder
        self.checkpoint = checkpoint
        self.verbose = verbose
        self.say = say
        self._rows: list[Row] = []
        self._start = monotonic()
        self._seconds_before = 0.0

    def __call__(self) -> int:
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

    def _run(self, algo: PURE, config: PUREConfig) -> int:
        # Not before: a wrong setting makes no folder.
        self.say(f"Run folder: {self.folder.path}")
        if self.checkpoint is None:
            self._begin(config)
        else:
            self._restore(algo, self.checkpoint)
            if algo.iteration >= self.experiment.num_iterations:
                self.say(
                    f"{self.folder.path} has {algo.iteration} iterations already. "
                    f"Add --iterations {2 * algo.iteration} to go on."
                )
                return 0
        self._start = monotonic()
        trial = RunTrial(self.experiment.name, self.folder.path, self.experiment.config)
        loggers = RunLoggers(trial, self._rows, self.experiment.spec.get("wandb"))
        try:
            return self._loop(algo, config, loggers)
        except (Exception, KeyboardInterrupt):
            self._say_how_to_resume("Not finished.")
            raise
        finally:
            loggers.close()

    def _begin(self, config: PUREConfig) -> None:
        self.folder.path.mkdir(parents=True, exist_ok=True)
        write_text(self.folder.experiment_file, self.experiment.to_yaml())
        self.folder.write_json("config.json", resolved(config))

    def _restore(self, algo: PURE, checkpoint: Path) -> None:
        """Takes the run back to a checkpoint, its logs included."""
        algo.restore_from_path(str(checkpoint))
        iteration = iteration_of(checkpoint)
        assert algo.iteration == iteration, f"{checkpoint} is of {algo.iteration}"
        file = self.folder.result_file
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = read_rows(file)
        kept = [
            i for i, row in enumerate(rows) if row["training_iteration"] <= iteration
        ]
        write_text(file, "".join(lines[i] for i in kept))
        self._rows = [rows[i] for i in kept]
        self._seconds_before = self._rows[-1]["time_total_s"]
        self.folder.remove_leftovers()
        drop_later(self.folder.rollouts, iteration)
        for later in self.folder.checkpoints():
            if iteration_of(later) > iteration:
                # What follows is another road from here.
                self.folder.delete_checkpoint(later)
        self.say(f"Resuming {self.folder.path} after iteration {iteration}.")

    def _loop(self, algo: PURE, config: PUREConfig, loggers: RunLoggers) -> int:
        total = self.experiment.num_iterations
        every = self.experiment.option("checkpoint", "every")
        with (
            Progress(total, first_iteration=algo.iteration) as progress,
            Interrupt(progress.write) as interrupt,
        ):
            if config.evaluation_interval and not self._rows:
                self._log(row_of({"training_iteration": 0} | _evaluate(algo)), loggers)
            is_done = False
            while not (is_done or interrupt.requested):
                result = algo.train()
                iteration = algo.iteration
                row = row_of({**result, "training_iteration": iteration})
                # A callback, such as the monitor of reward hacking, may end the run.
                is_done = is_reached(row, self.experiment.stop) or result["done"]
                if is_done and config.evaluation_interval and not evaluation_of(row):
                    row |= evaluation_of(row_of(_evaluate(algo)))
                is_last = is_done or interrupt.requested
                self._log(row, loggers, self._rollouts(algo, iteration, is_last))
                progress.update(iteration, row)
                if is_last or iteration % every == 0:
                    self._save(algo)
            # Ctrl-C may have come while the iteration was being written down.
            if not self.folder.checkpoint(algo.iteration).exists():
                self._save(algo)
        if not is_done:
            self._say_how_to_resume("Stopped.")
            return INTERRUPTED
        self._report(algo)
        return 0

    def _save(self, algo: PURE) -> None:
        algo.save_to_path(str(self.folder.checkpoint(algo.iteration)))
        self.folder.keep_checkpoints(self.experiment.option("checkpoint", "keep"))

    def _log(self, row: Row, loggers: RunLoggers, rollouts: Any = ()) -> None:
        row["time_total_s"] = self._seconds_before + monotonic() - self._start
        self._rows.append(row)
        loggers.write(row, rollouts)

    def _rollouts(self, algo: PURE, iteration: int, is_last: bool) -> Any:
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
            self.say(f"{event} There is no checkpoint yet.")
            return
        self.say(f"{event} Last checkpoint: {checkpoints[-1]}")
        folder = shlex.quote(str(self.folder.path))
        self.say(f"To go on:  pure-rllib train --resume {folder}")

    def _report(self, algo: PURE) -> None:
        """Writes figures, page, policy and summary, and says where they are."""
        path, name = self.folder.path, self.experiment.name
        iteration = algo.iteration
        curves = learning_curves(self._rows, path / "learning_curves.png", title=name)
        by_iteration = read_rollouts(self.folder.rollouts)
        page = write_rollouts_page(
            by_iteration,
            path / "rollouts.html",
            title=f"Rollouts of {name}",
            meta=self._facts(),
        )
        policy = self.folder.write_policy(algo.export_policy)
        evaluated = [evaluation_of(row) for row in self._rows if evaluation_of(row)]
        before, after = (evaluated[0], evaluated[-1]) if evaluated else ({}, {})
        self.folder.write_json(
            "summary.json",
            {
                "name": name,
                "iterations": iteration,
                "seconds": self._rows[-1]["time_total_s"],
                "before": before,
                "after": after,
                "last_iteration": {
                    # JSON has no word for NaN.
                    key: None if math.isnan(value) else value
                    for key, value in self._rows[-1].items()
                },
            },
        )
        if len(evaluated) > 1:
            self.say("")
            self.say(accuracy_table(before, after))
        self.say("")
        for label, shown in (
            ("learning curves", curves),
            ("rollouts, in a browser", page),
            ("policy, Hugging Face", policy),
            ("checkpoint", self.folder.checkpoints()[-1]),
            ("all metrics", path / "progress.csv"),
        ):
            self.say(f"{label:<23} {shown}")
        self.say(
            f"\nOpen the rollouts page to see what each step earned, run `tensorboard "
            f"--logdir {shlex.quote(str(path))}` for all curves, or load the policy "
            "with AutoModelForCausalLM.from_pretrained."
        )

    def _facts(self) -> dict[str, Any]:
        facts = {"experiment": self.experiment.name}
        for section in ("environment", "env_runners", "training"):
            for key, value in self.experiment.config.get(section, {}).items():
                facts[key] = value
        return facts


def _evaluate(algo: PURE) -> dict[str, Any]:
    return {"evaluation": algo.evaluate()}


def say_flushed(text: str) -> None:
    """Prints at once, so that what pipes and files show is in order."""
    sys.stderr.flush()
    print(text, flush=True)
