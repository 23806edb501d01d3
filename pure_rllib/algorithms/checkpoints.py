"""Checkpoints that are whole or absent, and that say what is wrong with them."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.rllib.utils import force_list

from pure_rllib.whole_folder import find_whole, write_whole

_STATES = (
    "algorithm_state",
    "learner_group/learner/state",
    "learner_group/learner/rl_module/default_policy/module_state",
)
_SUFFIXES = (".pkl", ".msgpack")
_UNREADABLE = (EOFError, pickle.UnpicklingError)


def write(path: Any, save: Callable[[Path], Any]) -> str:
    """Writes a checkpoint whole or not at all; returns its absolute path.

    Args:
        path: on this node; see `is_elsewhere`.
        save: writes it into a folder.
    """
    target = Path(path).absolute()

    def write_and_check(partial: Path) -> None:
        save(partial)
        check_files(partial)

    write_whole(target, write_and_check)
    return str(target)


@contextmanager
def reading(path: Any, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Checks a checkpoint before it is read inside, and names the file if that fails.

    Args:
        path: of the checkpoint.
        kwargs: of RLlib's `restore_from_path`.

    Raises:
        ValueError: a file is absent, or damaged, here or for a learner.
    """
    folder = Path(path)
    is_whole = kwargs.get("component") is None and not is_elsewhere(path, kwargs)
    # A folder that is absent is RLlib's error.
    if is_whole and find_whole(folder).exists():
        check_files(folder)
    try:
        yield
    except _UNREADABLE as error:
        files = folder.rglob("*.pkl")
        broken = [str(file) for file in files if not _is_readable(file)]
        raise ValueError(
            f"`path` ({folder}) must be a whole checkpoint, and cannot be read: "
            f"{', '.join(broken) or 'a file in it'} is damaged "
            f"({str(error).splitlines()[-1]}). What was restored before is not "
            "consistent: make a new algorithm, and restore another checkpoint."
        ) from error


def is_elsewhere(path: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is on no node, by the arguments of `save_to_path`."""
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


def _is_readable(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            pickle.load(stream)
    except _UNREADABLE:
        return False
    return True


def callback_states(callbacks: Any) -> dict[str, Any]:
    """Returns the states of callbacks with `get_state` and `set_state`, by class name.

    RLlib's checkpoints hold nothing of them.

    Args:
        callbacks: an algorithm's: one, or a list.
    """
    return {
        type(callback).__name__: callback.get_state()
        for callback in force_list(callbacks)
        if hasattr(callback, "get_state")
    }


def set_callback_states(callbacks: Any, states: dict[str, Any]) -> None:
    """Gives callbacks back what they remembered; without a state they stay as is."""
    for callback in force_list(callbacks):
        if type(callback).__name__ in states:
            callback.set_state(states[type(callback).__name__])
