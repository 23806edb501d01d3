"""Weights as safetensors in shared memory: written once, read by all of a node."""

import atexit
import fcntl
import json
import mmap
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

ROOT_VARIABLE = "PURE_RLLIB_WEIGHTS_DIR"
"""Environment variable: where weights are published instead of shared memory."""

_PREFIX = "pure_rllib-weights-"
_INDEX = "model.safetensors.index.json"
_LOCK = "lock"
_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One file of published weights, and how to know that it is whole."""

    name: str
    num_bytes: int
    checksum: str

    @classmethod
    def of(cls, path: Path) -> "ShardFile":
        """Describes a file that has been written."""
        return cls(path.name, path.stat().st_size, _checksum(path))


class FolderWeights:
    """Published weights, read from a folder of this node.

    Args:
        version: the update they come from.
        folder: holds `files` and their index, as Hugging Face lays them out.
        files: with the checksums that they had at the publisher.
    """

    def __init__(self, version: int, folder: Path, files: Iterable[ShardFile]):
        self.version = version
        self._folder = folder
        self.files = tuple(files)

    @property
    def folder(self) -> Path:
        """See `WeightSource`."""
        return self._folder

    def check(self) -> None:
        """Compares every file with its checksum.

        Raises:
            ValueError: a file is missing or holds other bytes than were written.
        """
        for file in self.files:
            path = self._folder / file.name
            found = _checksum(path) if path.is_file() else "no file"
            if found != file.checksum:
                raise ValueError(
                    f"The weights of version {self.version} must arrive as they were "
                    f"sent; `{path}` has the checksum {found} instead of "
                    f"{file.checksum}, so it was damaged or removed on the way. Resume "
                    "from the last checkpoint; if it comes again, set "
                    f"{ROOT_VARIABLE} to a folder on a disk."
                )

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """See `WeightSource`; the tensors are mapped into memory, not copied.

        Raises:
            ValueError: see `check`.
        """
        self.check()
        for file in self.files:
            with safe_open(self._folder / file.name, framework="pt") as shard:
                # A shard is a file: the pages of one are let go before the next.
                yield {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118


def write_weights(
    shards: Iterable[dict[str, Tensor]], folder: Path, version: int
) -> FolderWeights:
    """Writes shards as safetensors with Hugging Face's index.

    Args:
        shards: on the CPU; one is held at a time.
        folder: made by this call; readers see it when it is whole.
        version: the update they come from.
    """
    partial = folder.with_name(f"{folder.name}{_PARTIAL}")
    partial.mkdir(parents=True)
    files: list[ShardFile] = []
    for number, shard in enumerate(shards, start=1):
        path = partial / f"model-{number:05d}.safetensors"
        save_file({name: t.contiguous() for name, t in shard.items()}, path)
        files.append(ShardFile.of(path))
    write_index(partial)
    os.rename(partial, folder)
    return FolderWeights(version, folder, files)


def write_index(folder: Path) -> None:
    """Writes Hugging Face's index for the shards that lie in a folder."""
    weight_map: dict[str, str] = {}
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            weight_map.update(dict.fromkeys(shard.keys(), path.name))
        total += path.stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        if not path.stat().st_size:
            return xxhash.xxh3_128_hexdigest(b"")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return xxhash.xxh3_128_hexdigest(content)


class WeightsRoot:
    """A folder for publications, which goes when the last process that uses it goes.

    The folder lies in shared memory if there is room for `num_bytes`, else where
    temporary files lie, or where the environment variable `ROOT_VARIABLE` says. What
    killed processes left behind is removed when the next root is made.

    Args:
        num_bytes: of all publications that are kept at one time.
        name: several processes share the root of this name; None: a new one.
    """

    def __init__(self, num_bytes: int, name: str | None = None):
        parent = _parent_folder(num_bytes)
        _remove_abandoned(parent)
        self.name = name or uuid.uuid4().hex[:12]
        self.path = parent / f"{_PREFIX}{os.getuid()}-{self.name}"
        # Locked for as long as this process lives, whatever its end.
        self._lock = _lock_folder(self.path)
        atexit.register(self.close)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps the other processes of this root from writing."""
        with (self.path / "writer").open("a") as writer:
            fcntl.flock(writer, fcntl.LOCK_EX)
            yield

    def keep_newest(self, count: int) -> None:
        """Removes all publications but the newest ones, and what was left unfinished.

        Call it between writing publications, not meanwhile.
        """
        for unfinished in self.path.glob(f"*{_PARTIAL}"):
            shutil.rmtree(unfinished)
        folders = [path for path in self.path.iterdir() if path.is_dir()]
        folders.sort(key=lambda path: path.stat().st_mtime_ns)
        for folder in folders[: max(0, len(folders) - count)]:
            shutil.rmtree(folder)

    def close(self) -> None:
        """Leaves the folder, and removes it if no other process uses it."""
        if not self._lock.closed:
            _remove_if_free(self.path, self._lock)
            self._lock.close()
            atexit.unregister(self.close)


def _lock_folder(folder: Path) -> IO[str]:
    """Makes a folder and shares its lock, even if others are removing it."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = (folder / _LOCK).open("a")
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        # Who removes the folder holds the lock: what was waited for may be gone.
        if _is_same_file(folder / _LOCK, lock):
            return lock
        lock.close()


def _is_same_file(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _parent_folder(num_bytes: int) -> Path:
    chosen = os.environ.get(ROOT_VARIABLE)
    if chosen:
        Path(chosen).mkdir(parents=True, exist_ok=True)
        return Path(chosen)
    shared_memory = Path("/dev/shm")
    if (
        os.access(shared_memory, os.W_OK)
        and shutil.disk_usage(shared_memory).free > num_bytes
    ):
        return shared_memory
    return Path(tempfile.gettempdir())


def _remove_abandoned(parent: Path) -> None:
    """Removes folders of this user that no living process uses."""
    for folder in parent.glob(f"{_PREFIX}{os.getuid()}-*"):
        try:
            with (folder / _LOCK).open() as lock:
                _remove_if_free(folder, lock)
        except FileNotFoundError:
            # Being made or removed by another process at this moment.
            continue


def _remove_if_free(folder: Path, lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    shutil.rmtree(folder, ignore_errors=True)
