"""What is logged of an iteration: a row of metrics, through Ray Tune's own loggers."""

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.logger import (
    CSVLoggerCallback,
    JsonLoggerCallback,
    LoggerCallback,
    TBXLoggerCallback,
)
from ray.tune.utils import flatten_dict

from pure_rllib.cli.experiment import BOOKKEEPING, Experiment
from pure_rllib.reporting.metrics import FAMILIES, METRICS, absent_metrics
from pure_rllib.reporting.records import ResponseRecord
from pure_rllib.reporting.rollouts import rollout_table

Row = dict[str, Any]


def row_of(result: Mapping[str, Any], absent: Collection[str] = ()) -> Row:
    """Picks the registered metrics out of a nested result; NaN where there is none.

    Args:
        result: of an iteration or of evaluation.
        absent: metrics that the run does not have, and the row neither.
    """
    flat = flatten_dict(dict(result), delimiter="/")
    of_families = [name for name in flat if name.startswith(FAMILIES)]
    names = [name for name in METRICS if name not in absent]
    values = {name: flat.get(name) for name in (*BOOKKEEPING, *names, *of_families)}
    return {
        name: math.nan if v is None else v if isinstance(v, int) else float(v)
        for name, v in values.items()
    }


def evaluation_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The evaluation's metrics in a row; empty if it was not evaluated."""
    return {
        name: value
        for name, value in row.items()
        if name.startswith("evaluation/")
        and value is not None
        and not math.isnan(value)
    }


def read_rows(path: Path) -> list[Row]:
    """Reads a `result.json`: one flat or nested object per line, flattened."""
    rows = []
    # A run that was killed while it wrote leaves half a line without an end.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    for line in lines:
        row = flatten_dict(json.loads(line), delimiter="/")
        rows.append({k: math.nan if v is None else v for k, v in row.items()})
    return rows


def is_reached(row: Mapping[str, Any], stop: Mapping[str, float]) -> bool:
    """Whether any stop criterion is met: its metric is at or over its value."""
    flat = flatten_dict(dict(row), delimiter="/")
    return any(
        flat.get(name) is not None and flat[name] >= value
        for name, value in stop.items()
    )


def check_stop(
    stop: Mapping[str, float], absent: Collection[str], *, is_evaluated: bool
) -> None:
    """Checks that a run will have the metrics that are to end it.

    Args:
        stop: the criteria.
        absent: metrics that cannot be measured in this run.
        is_evaluated: whether there are held-out problems now and then.

    Raises:
        ValueError: it will not have one.
    """
    for name, value in stop.items():
        if name.startswith("evaluation/") and not is_evaluated:
            reason = "nothing is evaluated: set `evaluation.evaluation_interval`, or"
        elif name in absent:
            reason = "the environment has nothing that gives it:"
        else:
            continue
        raise ValueError(
            f"`stop.{name}` ({value}) must be a metric of this run, because {reason} "
            "leave it out."
        )


class MetricsCSVLogger(CSVLoggerCallback):
    """Writes every metric that the run can have as a column from the first row on.

    Ray's logger takes its columns from the first row, and would drop an evaluation that
    comes later.
    """

    def log_trial_result(self, iteration: int, trial: Any, result: dict) -> None:
        """Writes a row."""
        measured = {key: value for key, value in result.items() if key != "config"}
        flat = flatten_dict(measured, delimiter="/")
        absent = absent_metrics(
            has_step_scorer="reward/process_mean" in flat,
            has_verifier="accuracy" in flat,
            has_turns="turns/mean" in flat,
            has_reward_model="reward/model" in flat,
        )
        missing = {n: math.nan for n in METRICS if n not in flat and n not in absent}
        super().log_trial_result(iteration, trial, {**flat, **missing})


class ResultJsonLogger(JsonLoggerCallback):
    """Writes `result.json` only: the settings stand in `config.json`."""

    def update_config(self, trial: Any, config: dict) -> None:
        """Writes no parameters."""


class RunTrial(Trial):
    """A run without Tune, in the form that Tune's loggers take.

    Args:
        experiment: whose settings are shown by some loggers.
        folder: where loggers write.
    """

    def __init__(self, experiment: Experiment, folder: Path):
        super().__init__(experiment.run, config=dict(experiment.config), stub=True)
        self._name = experiment.name
        self._folder = folder.resolve()
        self.trial_id = f"{experiment.name}-{self._folder.name}"

    @property
    def local_path(self) -> str:
        """The run's folder."""
        return str(self._folder)

    @property
    def experiment_dir_name(self) -> str:
        """Groups runs of one experiment."""
        return self._name

    def init_local_path(self) -> None:
        """Makes the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self.trial_id


class RunLoggers:
    """Logs the rows of a run without Tune, through Tune's loggers.

    Args:
        experiment: of the run.
        folder: where they write.
        rows: rows of the time before a resume; repeated into the files that are
            written anew.
    """

    def __init__(self, experiment: Experiment, folder: Path, rows: Sequence[Row] = ()):
        self._trial = RunTrial(experiment, folder)
        wandb = experiment.spec.get("wandb")
        self._wandb = make_wandb(wandb, resume=bool(rows)) if wandb else None
        for replaced in (
            *folder.glob("events.out.tfevents.*"),
            folder / "progress.csv",
        ):
            replaced.unlink(missing_ok=True)
        self._loggers: list[LoggerCallback] = [MetricsCSVLogger(), TBXLoggerCallback()]
        for row in rows:
            self._write(row)
        self._loggers.append(ResultJsonLogger())

    def _write(self, row: Row) -> None:
        for logger in self._loggers:
            logger.log_trial_result(row["training_iteration"], self._trial, row)

    def write(
        self, row: Row, rollouts: Sequence[Sequence[ResponseRecord]] = ()
    ) -> None:
        """Logs an iteration, with its rollouts where they are to be shown."""
        self._write(row)
        if self._wandb is None:
            return
        iteration = row["training_iteration"]
        known: dict[str, Any] = {k: v for k, v in row.items() if not math.isnan(v)}
        if rollouts:
            records = [record for group in rollouts for record in group]
            known["rollouts"] = rollout_table(records, iteration)
        self._wandb.log_trial_result(iteration, self._trial, known)

    def close(self) -> None:
        """Closes all files, and waits for Weights & Biases."""
        for logger in self._loggers:
            logger.log_trial_end(self._trial)
        if self._wandb is not None:
            self._wandb.log_trial_end(self._trial)
            self._wandb.on_experiment_end([self._trial])


def make_wandb(settings: Mapping[str, Any], *, resume: bool = False) -> Any:
    """Makes Ray's callback for Weights & Biases.

    Args:
        settings: its arguments and those of `wandb.init`: `project`, `mode`, ...
        resume: continue the run of the same id.

    Raises:
        ValueError: Weights & Biases is not installed, or `project` is missing.
    """
    try:
        import wandb  # noqa: F401 (Ray's module imports without it, and fails in use)
    except ImportError as error:
        raise ValueError(
            f"`wandb` ({dict(settings)}) needs Weights & Biases. Install it with "
            "`pip install pure-rllib[wandb]`, or leave the section out."
        ) from error
    from ray.air.integrations.wandb import WandbLoggerCallback

    if not settings.get("project"):
        raise ValueError(
            f"`wandb.project` ({settings.get('project')!r}) must be given, because "
            "runs are filed under it. Add --set wandb.project=NAME."
        )
    if settings.get("mode"):
        # Ray looks for a key only where this says that one is needed.
        os.environ["WANDB_MODE"] = str(settings["mode"])
    extra = {"resume": "allow"} if resume else {}
    callback = WandbLoggerCallback(**{**settings, **extra})
    callback.setup()
    return callback
