"""Weights on their way from learners to env runners, and the proof that they arrived.

By files, learners write a version once, as safetensors in the shared memory of their
node. Env runners of that node read it there; another node fetches it through Ray's
object store, once, into its own shared memory. The driver passes on only where the
weights are. `weight_broadcast` does without files.
"""

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from pure_rllib.distributed.calls import on_learners
from pure_rllib.distributed.collectives import phase, rank
from pure_rllib.generation.base import WeightSource
from pure_rllib.models.weight_files import (
    FolderWeights,
    ShardFile,
    WeightsRoot,
    write_index,
    write_weights,
)
from pure_rllib.models.weights import LiveWeights
from pure_rllib.weight_sync.check import Probe
from pure_rllib.weight_sync.nccl import (
    BroadcastWeights,
    WeightBroadcast,
)

_CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class PublishedFiles:
    """Where a version of the weights lies.

    Attributes:
        version: the update they come from.
        folder: on the publisher's node.
        node_id: the publisher's node.
        files: with sizes and checksums.
        refs: the files' bytes in Ray's object store, if the cluster has other nodes.
    """

    version: int
    folder: str
    node_id: str
    files: tuple[ShardFile, ...]
    refs: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """A policy's weights by version, as env runners are told of them.

    Attributes:
        version: how many iterations they have been through.
        publication: names this publication: after a checkpoint was restored, a version
            comes a second time with other weights.
        source: the weights, where they lie, or that they are sent.
        probe: to prove that they arrived.
    """

    version: int
    publication: str
    source: LiveWeights | PublishedFiles | BroadcastWeights
    probe: Probe


class WeightPublisher:
    """The learners' side."""

    def __init__(self) -> None:
        self._root: WeightsRoot | None = None
        self._refs: list[tuple[Any, ...]] = []

    @phase("publish")
    def publish(
        self, learner: Any, version: int, publication: str, keep: int
    ) -> PublishedFiles | None:
        """Writes a version where env runners can read it; all learners take part.

        Args:
            learner: whose `weight_shards` are written; one shard is held at a time.
            version: the update they come from.
            publication: a name that was not used before.
            keep: publications that stay readable.

        Returns:
            Where they are; None but for the first learner.
        """
        shards = learner.weight_shards()
        if rank() > 0:
            for _ in shards:
                pass
            return None
        if self._root is None:
            # One more than is kept: the new one is written before the oldest goes.
            self._root = WeightsRoot((keep + 1) * learner.num_weight_bytes())
        written = write_weights(shards, self._root.path / publication, version)
        self._root.keep_newest(keep)
        refs: tuple[Any, ...] = ()
        if _num_nodes() > 1:
            refs = tuple(
                ray.put(np.fromfile(written.folder / file.name, dtype=np.uint8))
                for file in written.files
            )
        self._refs = [*self._refs, refs][-keep:]
        return PublishedFiles(
            version, str(written.folder), _node_id(), written.files, refs
        )

    def close(self) -> None:
        """Removes all publications."""
        if self._root is not None:
            self._root.close()
            self._root = None
        self._refs = []


class WeightReceiver:
    """An env runner's side.

    Args:
        keep: publications of other nodes that stay on this one.
    """

    def __init__(self, keep: int):
        self._keep = keep
        self._root: WeightsRoot | None = None

    def receive(self, source: LiveWeights | PublishedFiles) -> WeightSource:
        """Returns weights that this process can read.

        Raises:
            RuntimeError: they lie on another node and were not sent.
        """
        if isinstance(source, LiveWeights):
            return source
        if source.node_id == _node_id():
            return FolderWeights(source.version, Path(source.folder), source.files)
        if len(source.refs) != len(source.files):
            raise RuntimeError(
                f"The weights of version {source.version} lie on another node, which "
                "was the only one when they were published. Resume from the last "
                "checkpoint, with all nodes present from the start."
            )
        return self._fetch(source)

    def _fetch(self, source: PublishedFiles) -> FolderWeights:
        """Copies a publication to this node, unless a neighbour has done so."""
        publisher, publication = Path(source.folder).parts[-2:]
        name = f"{publisher.rsplit('-', 1)[-1]}-{_node_id()[:12]}"
        num_bytes = sum(file.num_bytes for file in source.files)
        if self._root is None or self._root.name != name:
            self.close()
            self._root = WeightsRoot(num_bytes * (self._keep + 1), name)
        root = self._root
        target = root.path / publication
        with root.writing():
            if not target.is_dir():
                root.keep_newest(self._keep)
                _write_bytes(source, target)
        return FolderWeights(source.version, target, source.files)

    def close(self) -> None:
        """Leaves the copies of this node to its other env runners."""
        if self._root is not None:
            self._root.close()
            self._root = None


def _write_bytes(source: PublishedFiles, target: Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    # An env runner that was killed while it wrote leaves one behind.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for file, ref in zip(source.files, source.refs, strict=True):
        ray.get(ref).tofile(partial / file.name)
    write_index(partial)
    os.rename(partial, target)


class WeightExchange:
    """The driver's side: has weights published, and passes on where they are.

    Args:
        learners: of the algorithm.
        probe_ids: see `Probe`.
        config: the `PUREConfig`.
        in_process: there is no env runner but that of this process.
    """

    def __init__(
        self,
        learners: LearnerGroup,
        probe_ids: Sequence[Sequence[int]],
        config: Any,
        *,
        in_process: bool,
    ):
        self._learners = learners
        self._probe_ids = tuple(tuple(ids) for ids in probe_ids)
        # One, and one per version that env runners may lag behind.
        self._keep = 1 + config.max_weight_lag
        # The generator reads a local learner's own tensors.
        self._in_process = (
            in_process and learners.is_local and config.generator == "transformers"
        )
        self._broadcast = WeightBroadcast.of(learners, config)

    def publish(self, version: int) -> Weights:
        """Makes the learners' present weights available to env runners."""
        publication = uuid.uuid4().hex[:12]
        probe_ids, keep, in_process = self._probe_ids, self._keep, self._in_process
        broadcast, is_sent = self._broadcast, self._broadcast is not None

        def publish(learner: Any) -> Any:
            logps = learner.probe_logps(probe_ids)
            if in_process:
                return LiveWeights(version, learner.weight_shards), logps
            if is_sent:
                return None, logps
            source = learner.publisher.publish(learner, version, publication, keep)
            return source, logps

        # All learners: they may hold one part of the weights each.
        source, logps = on_learners(self._learners, publish)[0]
        probe = Probe(probe_ids, tuple(logps))
        if broadcast is None:
            return Weights(version, publication, source, probe)
        source = BroadcastWeights(version, broadcast.hand_over)
        weights = Weights(version, publication, source, probe)
        broadcast.offer(weights)
        return weights

    def close(self, env_runners: EnvRunnerGroup) -> None:
        """Removes what was published; what lost processes hold goes with the next run.

        Args:
            env_runners: may hold copies on other nodes.
        """
        if self._learners.is_local:
            self._learners._learner.publisher.close()
        else:
            self._learners.foreach_learner(
                lambda learner: learner.publisher.close(), timeout_seconds=_CLOSE_S
            )
        env_runners.foreach_env_runner(
            lambda runner: runner.close_weights(), timeout_seconds=_CLOSE_S
        )


def _node_id() -> str:
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def _num_nodes() -> int:
    if not ray.is_initialized():
        return 1
    return sum(bool(node["Alive"]) for node in ray.nodes())
