"""Checkpoints that are whole or absent, and that say what is wrong with them."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER_GROUP
from ray.rllib.utils.annotations import override

from pure_rllib.whole_folder import find_whole, write_whole

_STATES = (
    "algorithm_state",
    "learner_group/learner/state",
    "learner_group/learner/rl_module/default_policy/module_state",
)
_SUFFIXES = (".pkl", ".msgpack")
_UNREADABLE = (EOFError, pickle.UnpicklingError)


class WholeCheckpoints(Algorithm):
    """An algorithm that writes whole checkpoints and refuses damaged ones."""

    @override(Algorithm)
    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """Writes a checkpoint that is whole or absent, whatever happens meanwhile."""
        if path is None or kwargs.get("state") is not None:
            return str(super().save_to_path(path, **kwargs))
        if _is_elsewhere(path, kwargs):
            return self._write(path, **kwargs)
        target = Path(path).absolute()

        def write(partial: Path) -> None:
            self._write(partial, **kwargs)
            check_files(partial)

        write_whole(target, write)
        return str(target)

    def _write(self, path: Any, **kwargs: Any) -> str:
        # The learners write theirs themselves: the driver never holds it.
        state = self.get_state(not_components=COMPONENT_LEARNER_GROUP)
        folder = super().save_to_path(path, state=state, **kwargs)
        self.learner_group.save_to_path(f"{path}/{COMPONENT_LEARNER_GROUP}", **kwargs)
        return str(folder)

    @override(Algorithm)
    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Restores a checkpoint.

        Raises:
            ValueError: a file of it is absent or damaged.
            Exception: what a learner raised.
        """
        is_whole = kwargs.get("component") is None and not _is_elsewhere(path, kwargs)
        # A folder that is absent is RLlib's error.
        if is_whole and find_whole(Path(path)).exists():
            check_files(Path(path))
        with named_files(Path(path)):
            super().restore_from_path(path, *args, **kwargs)


def _is_elsewhere(path: Any, kwargs: dict[str, Any]) -> bool:
    return kwargs.get("filesystem") is not None or "://" in str(path)


def check_files(folder: Path) -> None:
    """Checks that the policy's, the optimiser's and the run's state are there.

    Raises:
        ValueError: a file is absent or empty.
    """
    missing = [
        name
        for name in _STATES
        if not any(_has_content(folder / f"{name}{suffix}") for suffix in _SUFFIXES)
    ]
    if missing:
        raise ValueError(
            f"`path` ({folder}) must be a whole checkpoint, and has no "
            f"{' and no '.join(f'{name}.pkl' for name in missing)}. Use another "
            "checkpoint of the run."
        )


def _has_content(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


@contextmanager
def named_files(folder: Path) -> Iterator[None]:
    """Names the file if reading a checkpoint fails inside.

    Raises:
        ValueError: for what reading a damaged file raises, here or in a learner.
    """
    try:
        yield
    except _UNREADABLE as error:
        broken = [str(file) for file in folder.rglob("*.pkl") if not _is_readable(file)]
        raise ValueError(
            f"`path` ({folder}) must be a whole checkpoint, and cannot be read: "
            f"{', '.join(broken) or 'a file in it'} is damaged "
            f"({str(error).splitlines()[-1]}). What was restored before is not "
            "consistent: make a new algorithm, and restore another checkpoint."
        ) from error


def _is_readable(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            pickle.load(stream)
    except _UNREADABLE:
        return False
    return True
