"""A learner group that raises what its learners raise, also for their state."""

import math
from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import ray
from pyarrow.fs import FileSystem, LocalFileSystem
from ray.rllib.core import COMPONENT_LEARNER
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.utils.annotations import override

from pure_rllib.distributed.calls import on_learners
from pure_rllib.distributed.collectives import rank


class PURELearnerGroup(LearnerGroup):
    """Reads, writes, saves and restores its learners' state, or raises.

    RLlib drops what remote learners raise while they save or restore: a checkpoint
    would lack the policy, or a run go on from fresh weights, without a word. It also
    asks the first learner alone for the state, which with DeepSpeed would wait for ever
    for the parts of the others; and it has the driver hold the state to write it, and
    copies files to learners on other nodes where they could read them in place.
    """

    @override(LearnerGroup)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns the first learner's state, to which all give their parts."""
        if not self._check_component(COMPONENT_LEARNER, components, not_components):
            return {}
        wanted = self._get_subcomponents(COMPONENT_LEARNER, components)
        unwanted = self._get_subcomponents(COMPONENT_LEARNER, not_components)
        states = self._on_state_holders(
            lambda learner: learner.get_state(wanted, not_components=unwanted, **kwargs)
        )
        return {COMPONENT_LEARNER: states[0]}

    def _on_state_holders(self, call: Callable[[Any], Any]) -> list[Any]:
        """Calls all learners if each holds a part of the state, else the first.

        The first one may copy or write it for longer than the others work.
        """
        only = [0] if self.config.deepspeed is None else None
        return on_learners(self, call, only=only, longer_s=math.inf)

    @override(LearnerGroup)
    def set_state(self, state: dict[str, Any]) -> None:
        """Gives all learners the same state."""
        if COMPONENT_LEARNER not in state:
            return
        given = state[COMPONENT_LEARNER]
        # Ray replaces the reference by what it stands for.
        shares = [given] if self.is_local else [ray.put(given)] * len(self)
        on_learners(self, lambda learner, share: learner.set_state(share), shares)

    @override(LearnerGroup)
    def save_to_path(
        self,
        path: Any = None,
        *,
        state: dict[str, Any] | None = None,
        filesystem: Any = None,
        use_msgpack: bool = False,
    ) -> str:
        """Has the first learner write the state, or send it where it sees no folder."""
        filesystem, path = _place(filesystem, path or mkdtemp())
        options = {"filesystem": filesystem, "use_msgpack": use_msgpack}
        if self.is_local:
            return str(super().save_to_path(path, state=state, **options))
        # Without a state of the learners: only what describes the group.
        super().save_to_path(path, state={}, **options)
        if state is not None and COMPONENT_LEARNER not in state:
            return str(path)
        given = None if state is None else state[COMPONENT_LEARNER]
        target = f"{path}/{COMPONENT_LEARNER}"
        is_seen = self._see(path, filesystem, only=[0])

        def save(learner: Any) -> dict[str, bytes]:
            state = learner.get_state() if given is None else given
            if rank() > 0:
                return {}
            if is_seen:
                learner.save_to_path(target, state=state, **options)
                return {}
            with TemporaryDirectory() as folder:
                learner.save_to_path(folder, state=state, use_msgpack=use_msgpack)
                return _read(Path(folder))

        _write(self._on_state_holders(save)[0], Path(target))
        return str(path)

    @override(LearnerGroup)
    def restore_from_path(
        self,
        path: Any,
        *,
        component: str | None = None,
        filesystem: Any = None,
        **kwargs: Any,
    ) -> None:
        """Has all learners read the state, or sends it where one sees no folder."""
        filesystem, path = _place(filesystem, path)
        if self.is_local:
            super().restore_from_path(
                path, component=component, filesystem=filesystem, **kwargs
            )
            return
        source, below = path, None
        if component is None:
            source = f"{path}/{COMPONENT_LEARNER}"
        elif component != COMPONENT_LEARNER:
            below = component.removeprefix(f"{COMPONENT_LEARNER}/")
        options = {"component": below, **kwargs}
        if self._see(path, filesystem):
            on_learners(
                self,
                lambda learner: learner.restore_from_path(
                    source, filesystem=filesystem, **options
                ),
            )
            return

        def restore(learner: Any, files: dict[str, bytes]) -> None:
            with TemporaryDirectory() as folder:
                _write(files, Path(folder))
                learner.restore_from_path(folder, **options)

        # Ray replaces the reference by what it stands for.
        on_learners(self, restore, [ray.put(_read(Path(source)))] * len(self))

    def _see(
        self, path: str, filesystem: FileSystem, only: list[int] | None = None
    ) -> bool:
        """Whether learners see the driver's folder, which has a group's checkpoint."""
        if not isinstance(filesystem, LocalFileSystem):
            return True  # it is on no node
        stamp = _stamp(Path(path))
        return all(
            on_learners(self, lambda learner: _stamp(Path(path)) == stamp, only=only)
        )


def _place(filesystem: FileSystem | None, path: Any) -> tuple[FileSystem, str]:
    """A path as RLlib takes it: without a file system it is local, or a URI."""
    if filesystem is not None:
        return filesystem, str(path)
    found: tuple[FileSystem, str] = FileSystem.from_uri(str(path))
    return found


def _stamp(folder: Path) -> list[bytes]:
    """The small files in and beside a group's checkpoint, which tell it from others."""
    files = [*folder.glob("*.*"), *folder.parent.glob("algorithm_state.*")]
    return [file.read_bytes() for file in sorted(files)]


def _read(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their paths below it."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _write(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
