"""Folders and files that are whole or absent, even if their writer is killed."""

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Has a folder written beside its place, and puts it there when it is whole.

    What was at its place stays there until then.

    Args:
        target: the folder's place.
        write: makes the folder it is called with, which does not exist yet.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial)
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        _put(partial, target)
        # The name is on the disk only when the folder that has it is.
        _flush(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> Path:
    """Writes a text file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def _flush(path: Path) -> None:
    """Sends a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete_whole(target: Path) -> None:
    """Deletes a folder; half of one is never left under its name, or found again."""
    # Not as outdated: `find_whole` would bring back what a killed process left.
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    os.replace(target, partial)
    shutil.rmtree(partial)


def _put(partial: Path, target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()  # made for us, as Tune does
    if not target.exists():
        os.replace(partial, target)
        return
    if exchange(partial, target):
        return  # the older one is at the partial's place now, and goes with it
    # For a moment nothing is at the target: `find_whole` knows what to do.
    outdated = target.with_name(f".{target.name}.outdated-{os.getpid()}")
    os.replace(target, outdated)
    os.replace(partial, target)
    shutil.rmtree(outdated)


def exchange(first: Path, second: Path) -> bool:
    """Exchanges two folders in one step, where the file system can (Linux, local)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def find_whole(target: Path) -> Path:
    """Puts the older folder back if a process was killed between two renames.

    Returns:
        The target.
    """
    if not target.exists():
        for outdated in target.parent.glob(f".{target.name}.outdated-*"):
            os.replace(outdated, target)
            break
    return target


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed processes were writing or deleting in a folder.

    Only for a folder that no living process writes to.
    """
    for kind in ("partial", "outdated"):
        for leftover in folder.glob(f".*.{kind}-*"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
