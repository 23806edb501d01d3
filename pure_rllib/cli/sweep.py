"""Several trials of one experiment, through Ray Tune."""

import contextlib
import io
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.search.basic_variant import BasicVariantGenerator

from pure_rllib.algorithms import ALGORITHMS, LLMAlgorithm
from pure_rllib.cli.experiment import Experiment
from pure_rllib.cli.folder import RunFolder
from pure_rllib.cli.loggers import (
    MetricsCSVLogger,
    is_reached,
    make_wandb,
    read_rows,
)
from pure_rllib.cli.search import (
    RUN,
    check_sweep,
    flat_path,
    make_scheduler,
    param_space,
)
from pure_rllib.cli.settings import search_spaces
from pure_rllib.cli.study import Trial, draw_study, results_of, shown, study_table
from pure_rllib.cli.train import INTERRUPTED, say, start_ray
from pure_rllib.reporting.progress import ProgressBar
from pure_rllib.whole_folder import write_text


class SweepProgress(tune.Callback):
    """Shows iterations done over all trials, and a line per finished trial."""

    def __init__(self, num_trials: int, num_iterations: int):
        self._num_trials = num_trials
        self._num_iterations = num_iterations
        self._done: dict[str, int] = {}
        self._ended: set[str] = set()
        self._bar: ProgressBar | None = None

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """Counts an iteration."""
        self._done[trial.trial_id] = result["training_iteration"]
        done = sum(
            self._num_iterations if name in self._ended else number
            for name, number in self._done.items()
        )
        if self._bar is None:
            total = self._num_trials * self._num_iterations
            self._bar = ProgressBar(total, first=done - 1)
        self._bar.show(done)

    def on_trial_complete(
        self, iteration: int, trials: list, trial: Any, **info: Any
    ) -> None:
        """Writes a line."""
        self._ended.add(trial.trial_id)
        self._write(
            f"trial {len(self._ended)}/{self._num_trials} done: {trial} after "
            f"{self._done.get(trial.trial_id, 0)} iterations"
        )

    def on_trial_error(
        self, iteration: int, trials: list, trial: Any, **info: Any
    ) -> None:
        """Writes a line."""
        self._write(f"trial {trial} failed")

    def on_experiment_end(self, trials: list, **info: Any) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def _write(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def get_state(self) -> None:
        """Keeps nothing in Tune's own checkpoint: a bar cannot be kept."""


class AlgorithmOfArm(LLMAlgorithm):
    """The algorithm that a trial's arm names: Tune takes one class for all trials.

    What algorithms differ in is their configs.
    """

    def __init__(self, config: Any = None, *args: Any, **kwargs: Any):
        defaults = ALGORITHMS[config[RUN]].get_default_config()
        # Results say by it which arm they are of.
        known = {*defaults.to_dict(), "arm"}
        own = {key: value for key, value in config.items() if key in known}
        super().__init__(defaults.update_from_dict(own), *args, **kwargs)

    @classmethod
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """Returns what a trial of the arm needs."""
        return ALGORITHMS[config[RUN]].default_resource_request(config)


@dataclass
class Sweep:
    """A sweep of one experiment: arms, seeds, or search spaces.

    Attributes:
        experiment: what to run.
        folder: where.
        resume: go on with what lies there.
        verbose: show what Ray's processes write.
    """

    experiment: Experiment
    folder: RunFolder
    resume: bool = False
    verbose: bool = False

    def run(self) -> int:
        """Runs all trials; returns the exit status.

        Raises:
            ValueError: a setting cannot work; nothing was started then.
        """
        configs = check_sweep(self.experiment)
        # Made here for its errors: before Ray is started.
        make_scheduler(self.experiment)
        # A metric that is only measured now and then is missing in other results.
        os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
        start_ray(configs[0], self.experiment.spec.get("ray"), verbose=self.verbose)
        try:
            # Tune forgets names when Ray is shut down, as an earlier run may have done.
            tune.register_trainable(self.trainable, self._trainable_class())
            self.folder.path.mkdir(parents=True, exist_ok=True)
            if not self.resume:
                write_text(self.folder.experiment_file, self.experiment.to_yaml())
            say(f"Sweep folder: {self.folder.path}")
            # Tune's own table says less than ours, and names a folder of its own.
            console = sys.stdout if self.verbose else io.StringIO()
            with contextlib.redirect_stdout(console):
                results = self._tuner().fit()
        finally:
            ray.shutdown()
        return self._report(results)

    @property
    def trainable(self) -> str:
        """The name of what Tune trains: the algorithm, or those of the arms."""
        return "+".join(sorted({self.experiment.run_of(a) for a in self._arms}))

    @property
    def _arms(self) -> list[str] | list[None]:
        return list(self.experiment.arms) or [None]

    def _trainable_class(self) -> type[LLMAlgorithm]:
        is_one = len({self.experiment.run_of(arm) for arm in self._arms}) == 1
        return ALGORITHMS[self.trainable] if is_one else AlgorithmOfArm

    def _tuner(self) -> tune.Tuner:
        spec = self.experiment.spec
        path = self.folder.path.resolve()
        space = param_space(self.experiment)
        if self.resume:
            try:
                return tune.Tuner.restore(
                    str(path),
                    trainable=self.trainable,
                    param_space=space,
                    restart_errored=True,
                )
            except (ModuleNotFoundError, AttributeError) as error:
                raise ValueError(
                    f"`--resume` ({path}) must be a sweep of this version, because "
                    f"Tune's state names what another one had ({error}). Start it "
                    "again with --out."
                ) from error
        seed = self.experiment.config.get("debugging", {}).get("seed", 0)
        concurrent = spec.get("max_concurrent", 0)
        stop, wandb = self.experiment.stop, spec.get("wandb")
        return tune.Tuner(
            self.trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=spec.get("metric"),
                mode=spec.get("mode", "max") if "metric" in spec else None,
                num_samples=spec.get("num_samples", 1),
                scheduler=make_scheduler(self.experiment),
                search_alg=BasicVariantGenerator(
                    random_state=seed, max_concurrent=concurrent
                ),
                trial_name_creator=self._trial_name,
                trial_dirname_creator=self._trial_name,
            ),
            run_config=tune.RunConfig(
                name=path.name,
                storage_path=str(path.parent),
                stop=lambda trial_id, result: is_reached(result, stop),
                verbose=0,
                callbacks=[
                    MetricsCSVLogger(),
                    *([make_wandb(wandb)] if wandb else []),
                    SweepProgress(self.num_trials, self.experiment.num_iterations),
                ],
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=self._num_to_keep,
                    checkpoint_frequency=self.experiment.option("checkpoint", "every"),
                    checkpoint_at_end=True,
                ),
            ),
        )

    @property
    def _num_to_keep(self) -> int:
        """Checkpoints per trial; PBT may go on from one that is not the newest."""
        keep = self.experiment.option("checkpoint", "keep")
        kind = self.experiment.spec.get("scheduler", {}).get("type")
        return max(keep, 4) if kind == "PBT" else keep

    @property
    def swept(self) -> dict[str, list[str]]:
        """Name in tables -> path in a trial's config, of all that differs."""
        names = {} if not self.experiment.arms else {"arm": ["arm"]}
        for key in search_spaces(self.experiment.config):
            names[key.rpartition(".")[2]] = flat_path(key)
        if self.experiment.seeds:
            names["seed"] = ["seed"]
        return names

    @property
    def num_trials(self) -> int:
        """How many trials there will be."""
        number = self.experiment.spec.get("num_samples", 1)
        number *= len(self.experiment.arms) or 1
        number *= len(self.experiment.seeds) or 1
        for space in search_spaces(self.experiment.config).values():
            number *= len(space.get("grid_search", [0]))
        return number

    def _report(self, results: tune.ResultGrid) -> int:
        trials = [self._trial(result) for result in results]
        # Arm by arm, arms in the order of the first trials.
        order = list(dict.fromkeys(trial.label for trial in trials))
        trials.sort(key=lambda trial: order.index(trial.label))
        reach = self.experiment.option("report", "reach")
        say("")
        say(study_table(trials, reach))
        path = self.folder.path
        text = study_table(trials, reach, markdown=True)
        table = write_text(path / "table.md", f"{text}\n")
        numbers = [
            {"settings": t.settings, "folder": t.folder, "error": t.error}
            | results_of(t, reach)
            for t in trials
        ]
        self.folder.write_json("table.json", numbers)
        figure = draw_study(self.experiment, trials, path / "study.png")
        say(f"\ntable   {table}")
        if figure is not None:
            say(f"figure  {figure}")
        say(f"trials  {path}  (tensorboard --logdir {shlex.quote(str(path))})")
        errors = [trial for trial in trials if trial.error]
        for trial in errors:
            say(f"\nTrial {trial.settings} failed: {trial.error}")
        is_cut = any(not r.metrics.get("done") for r in results if not r.error)
        if errors or is_cut or len(trials) < self.num_trials:
            resume = f"pure-rllib train --resume {shlex.quote(str(path))}"
            say(f"\nNot all trials are finished. To go on:  {resume}")
            return 1 if errors else INTERRUPTED
        return 0

    def _trial(self, result: tune.Result) -> Trial:
        file = Path(result.path) / "result.json"
        rows = read_rows(file) if file.is_file() else []
        # A trial that went on from a checkpoint has some iterations twice.
        by_iteration = {row["training_iteration"]: row for row in rows}
        ordered = [by_iteration[i] for i in sorted(by_iteration)]
        error = None if result.error is None else str(result.error).strip()
        return Trial(self._settings(result.config), ordered, error, result.path)

    def _trial_name(self, trial: Any) -> str:
        """Names a trial by what distinguishes it."""
        settings = self._settings(trial.config)
        parts = [f"{name}={shown(value)}" for name, value in settings.items()]
        return re.sub(r"[^\w.=+%-]", "", "_".join([*parts, trial.trial_id]))[-120:]

    def _settings(self, config: Any) -> dict[str, Any]:
        """What distinguishes a trial, from its config."""
        settings = {}
        for name, path in self.swept.items():
            value = config
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            settings[name] = value
        return settings
