"""Ray Tune's own loggers, for sweeps and for runs without Tune alike."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.callback import Callback
from ray.tune.experiment import Trial
from ray.tune.logger import (
    CSVLoggerCallback,
    JsonLoggerCallback,
    LoggerCallback,
    TBXLoggerCallback,
)
from ray.tune.utils import flatten_dict

from pure_rllib.cli.rows import Row
from pure_rllib.reporting.metrics import METRICS
from pure_rllib.reporting.records import ResponseRecord

_MISSING = dict.fromkeys(METRICS, math.nan)


class MetricsCSVLogger(CSVLoggerCallback):
    """Writes every registered metric as a column from the first row on.

    Ray's logger takes its columns from the first row, and would drop an evaluation that
    comes later.
    """

    def log_trial_result(self, iteration: int, trial: Any, result: dict) -> None:
        """Writes a row."""
        flat = flatten_dict(
            {key: value for key, value in result.items() if key != "config"},
            delimiter="/",
        )
        super().log_trial_result(iteration, trial, {**flat, **_MISSING, **flat})


class ResultJsonLogger(JsonLoggerCallback):
    """Writes `result.json` only: the settings stand in `config.json`."""

    def update_config(self, trial: Any, config: dict) -> None:
        """Writes no parameters."""


class RunTrial(Trial):
    """A run without Tune, in the form that Tune's loggers take.

    Args:
        name: of the experiment.
        folder: where loggers write.
        config: settings, for those that show them.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]):
        super().__init__("PURE", config=dict(config), stub=True)
        self._name = name
        self._folder = folder.resolve()
        self.trial_id = f"{name}-{self._folder.name}"

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
        trial: the run.
        rows: rows of the time before a resume; repeated into the files that are
            written anew.
        wandb: settings of Weights & Biases; None: not used.
    """

    def __init__(
        self,
        trial: RunTrial,
        rows: Sequence[Row] = (),
        wandb: Mapping[str, Any] | None = None,
    ):
        self._trial = trial
        self._wandb = make_wandb(wandb, resume=bool(rows)) if wandb else None
        folder = Path(trial.local_path)
        (folder / "progress.csv").unlink(missing_ok=True)
        for events in folder.glob("events.out.tfevents.*"):
            events.unlink()
        replayed: list[LoggerCallback] = [MetricsCSVLogger(), TBXLoggerCallback()]
        for logger in replayed:
            for row in rows:
                logger.log_trial_result(row["training_iteration"], trial, row)
        self._loggers = [*replayed, ResultJsonLogger()]

    def write(
        self, row: Row, rollouts: Sequence[Sequence[ResponseRecord]] = ()
    ) -> None:
        """Logs an iteration, with its rollouts where they are to be shown."""
        iteration = row["training_iteration"]
        for logger in self._loggers:
            logger.log_trial_result(iteration, self._trial, row)
        if self._wandb is None:
            return
        known: dict[str, Any] = {k: v for k, v in row.items() if not math.isnan(v)}
        if rollouts:
            from pure_rllib.reporting.rollout_table import rollout_table

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


def sweep_callbacks(wandb: Mapping[str, Any] | None) -> list[Callback]:
    """The loggers of a sweep that differ from Tune's defaults."""
    callbacks: list[Callback] = [MetricsCSVLogger()]
    if wandb:
        callbacks.append(make_wandb(wandb))
    return callbacks
