"""The folder of a run: which files it holds, and which folders may become one."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from pure_rllib.cli.experiment import Experiment, load_experiment
from pure_rllib.reporting.records import ResponseRecord, group_records
from pure_rllib.whole_folder import (
    delete_whole,
    find_whole,
    remove_leftovers,
    write_text,
    write_whole,
)

_ITERATION = "iteration_"


@dataclass(frozen=True)
class RunFolder:
    """Paths below one run's folder.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def experiment_file(self) -> Path:
        """The experiment as it was run, options applied."""
        return self.path / "experiment.yaml"

    @property
    def result_file(self) -> Path:
        """One JSON object per iteration."""
        return self.path / "result.json"

    @property
    def rollouts(self) -> Path:
        """One file of responses per reported iteration."""
        return self.path / "rollouts"

    @property
    def is_sweep(self) -> bool:
        """Whether Tune's state lies here."""
        return (self.path / "tuner.pkl").is_file()

    def checkpoint(self, iteration: int) -> Path:
        """Where the checkpoint after an iteration lies."""
        return self.path / "checkpoints" / f"{_ITERATION}{iteration:06d}"

    def checkpoints(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        return sorted((self.path / "checkpoints").glob(f"{_ITERATION}*"))

    def keep_checkpoints(self, number: int) -> None:
        """Deletes all but the newest checkpoints."""
        for outdated in self.checkpoints()[:-number]:
            delete_whole(outdated)

    def go_back_to(self, iteration: int) -> None:
        """Deletes what later iterations left, and what a killed process was writing."""
        for folder in (self.path, self.path / "checkpoints", self.rollouts):
            remove_leftovers(folder)
        for checkpoint in self.checkpoints():
            if iteration_of(checkpoint) > iteration:
                delete_whole(checkpoint)
        for rollouts in self.rollouts.glob(f"{_ITERATION}*.jsonl"):
            if iteration_of(rollouts) > iteration:
                rollouts.unlink()

    def write_policy(self, export: Callable[[Path], Any]) -> Path:
        """Lets `export` write the policy, in place of an older one."""
        target = self.path / "policy"
        write_whole(target, export)
        return target

    def write_json(self, name: str, data: Any) -> Path:
        """Writes a JSON file whole or not at all."""
        from ray.tune.utils.util import SafeFallbackEncoder

        text = json.dumps(data, indent=2, cls=SafeFallbackEncoder) + "\n"
        return write_text(self.path / name, text)


def iteration_of(path: Path) -> int:
    """Reads the number off `iteration_000010.jsonl` or a checkpoint's folder."""
    return int(path.stem.rpartition("_")[2])


def write_rollouts(
    groups: Sequence[Sequence[ResponseRecord]], folder: Path, iteration: int
) -> Path:
    """Writes `iteration_000010.jsonl`: one response per line."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [record for group in groups for record in group]
    lines = [json.dumps(record.as_dict(), default=_plain) for record in records]
    path = folder / f"{_ITERATION}{iteration:06d}.jsonl"
    return write_text(path, "\n".join(lines) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_rollouts(folder: Path) -> dict[int, list[list[ResponseRecord]]]:
    """Reads all iterations of a folder: number -> groups."""
    by_iteration = {}
    for path in sorted(folder.glob(f"{_ITERATION}*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [ResponseRecord(**json.loads(line)) for line in lines if line]
        by_iteration[iteration_of(path)] = group_records(records)
    return by_iteration


def new_folder(out: str | Path | None, name: str) -> RunFolder:
    """Chooses the folder of a new run; makes nothing yet.

    Args:
        out: the folder; None: `runs/<name>/<date and time>`.
        name: of the experiment.

    Raises:
        ValueError: the folder holds another run, or anything else.
    """
    if out is None:
        path = Path("runs", name, f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
        number = 2
        while path.exists():
            path = path.with_name(f"{path.name.partition('.')[0]}.{number}")
            number += 1
        return RunFolder(path)
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise ValueError(f"`--out` ({path}) must be a folder, and is a file.")
    if RunFolder(path).experiment_file.exists():
        raise ValueError(
            f"`--out` ({path}) must be a new folder, because it holds another run. "
            f"Continue that run with `--resume {path}`, or choose another --out."
        )
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(
            f"`--out` ({path}) must be a new or empty folder, because files of a run "
            "would mix with those in it. Choose another --out."
        )
    return RunFolder(path)


def open_folder(resume: str | Path) -> tuple[RunFolder, Path | None]:
    """Finds the run and the checkpoint that `--resume` names.

    Args:
        resume: a run's folder, or one of its checkpoints.

    Returns:
        The run, and the checkpoint to go on from: the newest, or the one named; None
        for a sweep, whose trials have their own.

    Raises:
        FileNotFoundError: there is no run, or it has no checkpoint.
    """
    path = Path(resume).resolve()
    if path.parent.name == "checkpoints" and path.name.startswith(_ITERATION):
        find_whole(path)
        folder, checkpoints = RunFolder(path.parent.parent), [path]
    else:
        folder = RunFolder(path)
        checkpoints = folder.checkpoints()
    if not folder.experiment_file.is_file():
        raise FileNotFoundError(
            f"`--resume` ({resume}) must be the folder of a run or one of its "
            "checkpoints, and has no experiment.yaml. Without --resume a new run "
            "starts."
        )
    if folder.is_sweep:
        return folder, None
    if not checkpoints or not checkpoints[-1].is_dir():
        raise FileNotFoundError(
            f"`--resume` ({resume}) must have a checkpoint, and has none: it was "
            "stopped before its first. Start again with another --out."
        )
    return folder, checkpoints[-1]


def check_unchanged(stored: Experiment, given: Experiment, folder: RunFolder) -> None:
    """Raises a ValueError that lists what differs from the run to be resumed."""
    if folder.is_sweep and given.stop != stored.stop:
        raise ValueError(
            f"`stop` ({given.stop}) of a sweep must stay {stored.stop} when it is "
            "resumed, because Ray Tune keeps it with its trials. Leave out "
            "--iterations, or start a new sweep with another --out."
        )
    changes = stored.changes(given)
    if changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise ValueError(
            f"the configuration of {folder.path} must not change when it is resumed, "
            "because its metrics would be those of no experiment:\n"
            f"{listed}\n"
            "Only `stop` may (--iterations). Leave these as they were, or start a new "
            "run with another --out."
        )


def stored_experiment(folder: RunFolder) -> Experiment:
    """Reads the experiment that a run was started with."""
    return load_experiment(folder.experiment_file)
