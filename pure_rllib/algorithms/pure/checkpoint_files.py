"""Which files a checkpoint must have, and which of them cannot be read."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATES = (
    "algorithm_state",
    "learner_group/learner/state",
    "learner_group/learner/rl_module/default_policy/module_state",
)
_SUFFIXES = (".pkl", ".msgpack")
_UNREADABLE = (EOFError, pickle.UnpicklingError)


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
