"""A learner group that raises what its learners raise, also for their state."""

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import ray
from pyarrow.fs import FileSystem, LocalFileSystem
from ray.rllib.core import COMPONENT_LEARNER
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.utils.actor_manager import (
    FaultTolerantActorManager,
    RemoteCallResults,
    ResultOrError,
)
from ray.rllib.utils.annotations import override

from pure_rllib.distributed.calls import on_learners
from pure_rllib.distributed.collectives import rank


class PURELearnerGroup(LearnerGroup):
    """Reads, writes, saves and restores its learners' state, or raises.

    RLlib drops what remote learners raise while they save or restore: a checkpoint
    would lack the policy, or a run go on from fresh weights, without a word. It also
    asks the first learner alone for the state, which with DeepSpeed would wait for ever
    for the parts of the others; and it has the driver hold the state to write it, and
    copies files to learners on other nodes, of 1 GiB at most, where they could read
    them in place.
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
        """Has the first learner write the state, unless it does not see the folder."""
        if path is not None:
            filesystem, path = _place(filesystem, path)
        options = {"filesystem": filesystem, "use_msgpack": use_msgpack}
        if self.is_local or state is not None or path is None:
            return str(super().save_to_path(path, state=state, **options))
        # Without a state of the learners: only what describes the group.
        super().save_to_path(path, state={}, **options)
        if not self._see(path, filesystem, only=[0]):
            state = self.get_state()
            return str(super().save_to_path(path, state=state, **options))

        def save(learner: Any) -> None:
            state = learner.get_state()
            if rank() == 0:
                target = f"{path}/{COMPONENT_LEARNER}"
                learner.save_to_path(target, state=state, **options)

        self._on_state_holders(save)
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
        """Has all learners read the state, unless one does not see the folder."""
        filesystem, path = _place(filesystem, path)
        if self.is_remote and component is None and self._see(path, filesystem):
            source = f"{path}/{COMPONENT_LEARNER}"
            on_learners(
                self,
                lambda learner: learner.restore_from_path(
                    source, filesystem=filesystem, **kwargs
                ),
            )
        else:
            super().restore_from_path(
                path, component=component, filesystem=filesystem, **kwargs
            )

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

    @override(LearnerGroup)
    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """Returns the learners."""
        learners = self._learner if self.is_local else _RemoteLearners(self)
        return [(COMPONENT_LEARNER, learners)]


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


class _RemoteLearners(FaultTolerantActorManager):
    """What RLlib's `Checkpointable` uses of an actor manager; calls raise.

    Args:
        group: of remote learners, whose manager this stands for.
    """

    def __init__(self, group: PURELearnerGroup):
        # Not the base's, which would count the actors' restarts and health.
        self._group = group

    @override(FaultTolerantActorManager)
    def healthy_actor_ids(self) -> list[int]:
        return sorted(self._group._worker_manager.actors())

    @override(FaultTolerantActorManager)
    def foreach_actor(
        self,
        func: Callable[[Any], Any],
        *,
        remote_actor_ids: list[int] | None = None,
        **kwargs: Any,
    ) -> RemoteCallResults:
        results = RemoteCallResults()
        indices = self.healthy_actor_ids()
        if remote_actor_ids is not None:
            indices = sorted(remote_actor_ids)
        answers = on_learners(self._group, func, only=indices)
        for index, answer in zip(indices, answers, strict=True):
            results.add_result(index, ResultOrError(result=answer), None)
        return results
