"""Responses of an iteration as JSON lines, and back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pure_rllib.cli.folder import write_text
from pure_rllib.reporting.records import ResponseRecord, group_records

Groups = Sequence[Sequence[ResponseRecord]]


def write_rollouts(groups: Groups, folder: Path, iteration: int) -> Path:
    """Writes `iteration_000010.jsonl`: one response per line."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [record for group in groups for record in group]
    lines = [json.dumps(record.as_dict(), default=_plain) for record in records]
    path = folder / f"iteration_{iteration:06d}.jsonl"
    return write_text(path, "\n".join(lines) + "\n")


def read_rollouts(folder: Path) -> dict[int, list[list[ResponseRecord]]]:
    """Reads all iterations of a folder: number -> groups."""
    by_iteration = {}
    for path in sorted(folder.glob("iteration_*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [ResponseRecord(**json.loads(line)) for line in lines if line]
        by_iteration[iteration_of(path)] = group_records(records)
    return by_iteration


def drop_later(folder: Path, iteration: int) -> None:
    """Deletes the files of later iterations, which a resumed run makes again."""
    for path in folder.glob("iteration_*.jsonl"):
        if iteration_of(path) > iteration:
            path.unlink()


def iteration_of(path: Path) -> int:
    """Reads the number off `iteration_000010.jsonl` or a checkpoint's folder."""
    return int(path.stem.rpartition("_")[2])


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
