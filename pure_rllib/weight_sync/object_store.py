"""Weights in Ray's object store: a learner puts them there, env runners read them.

Ray counts the references. A version stays for as long as the driver or a call of an env
runner holds its `StoredWeights`; each node that reads it fetches it once.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import ObjectLostError
from ray.rllib.core.learner.learner_group import LearnerGroup
from torch import Tensor, nn

from pure_rllib.distributed.calls import on_learners
from pure_rllib.distributed.collectives import rank
from pure_rllib.models.export import (
    MAX_SHARD_BYTES,
    cut_into_shards,
    untied_tensors,
)


@dataclass(frozen=True, slots=True)
class LiveWeights:
    """Weights that a learner of the same process holds: nothing is copied to publish.

    Attributes:
        version: the update they come from.
        read: gives the learner's weights, shard by shard, at the moment of the call.
    """

    version: int
    read: Callable[[], Iterator[dict[str, Tensor]]]

    @classmethod
    def of(cls, module: nn.Module, version: int) -> "LiveWeights":
        """The weights of a module, whatever they are when they are read."""
        return cls(version, lambda: cut_into_shards(untied_tensors(module)))

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """See `WeightSource`."""
        return self.read()


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's bytes, and how to read them; NumPy does not know every dtype.

    Attributes:
        content: uint8.
        dtype: of the tensor.
        shape: of the tensor.
    """

    content: np.ndarray
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "StoredTensor":
        """Shares the memory of a contiguous tensor on the CPU."""
        content = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        return cls(content, tensor.dtype, tuple(tensor.shape))

    def tensor(self) -> Tensor:
        """Shares the memory of the content, which is to be read only."""
        if not self.content.size:
            return torch.empty(self.shape, dtype=self.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            flat = torch.frombuffer(self.content, dtype=self.dtype)
        return flat.view(self.shape)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Weights that lie in Ray's object store.

    Attributes:
        version: the update they come from.
        num_bytes: of all tensors.
        refs: one per shard, each of `StoredTensor` by name.
    """

    version: int
    num_bytes: int
    refs: tuple[ray.ObjectRef, ...]

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """See `WeightSource`; nothing is copied on the node where they lie.

        Raises:
            RuntimeError: they are lost with the learner that put them there.
        """
        for ref in self.refs:
            yield {name: stored.tensor() for name, stored in self._get(ref).items()}

    def _get(self, ref: ray.ObjectRef) -> dict[str, StoredTensor]:
        try:
            shard: dict[str, StoredTensor] = ray.get(ref)
        except ObjectLostError as error:
            raise RuntimeError(
                f"The weights of version {self.version} must be in Ray's object store; "
                "they are lost with the first learner or its node, whose log says why. "
                "Resume from the last checkpoint."
            ) from error
        return shard


def put_weights(learner: Any, version: int) -> StoredWeights | None:
    """Puts a learner's present weights into the object store; all learners take part.

    Args:
        learner: whose `weight_shards` are put there; one shard is held at a time.
        version: the update they come from.

    Returns:
        Where they are; None but for the first learner.
    """
    refs, num_bytes = [], 0
    for shard in learner.weight_shards():
        if rank() == 0:
            refs.append(
                ray.put({name: StoredTensor.of(one) for name, one in shard.items()})
            )
            num_bytes += sum(tensor.nbytes for tensor in shard.values())
    return StoredWeights(version, num_bytes, tuple(refs)) if rank() == 0 else None


def check_room(learners: LearnerGroup, num_versions: int) -> None:
    """Checks that the object store of the first learner's node holds the weights.

    Args:
        learners: of the run.
        num_versions: that lie there at one time.

    Raises:
        ValueError: it is too small; Ray would write them to a disk at each update.
    """

    def describe(learner: Any) -> tuple[int, str]:
        return learner.num_weight_bytes(), ray.get_runtime_context().get_node_id()

    num_bytes, node_id = on_learners(learners, describe)[0]
    needed = num_versions * num_bytes + min(num_bytes, MAX_SHARD_BYTES)
    (node,) = (node for node in ray.nodes() if node["NodeID"] == node_id)
    room = int(node["Resources"].get("object_store_memory", 0))
    if room < needed:
        raise ValueError(
            f"`object_store_memory` ({room}) of the first learner's node must be >= "
            f"{needed} bytes, because {num_versions} version(s) of the policy's "
            f"weights ({num_bytes} bytes) and a part of the next lie in Ray's object "
            f"store. Set `ray.init(object_store_memory={needed})`, in a YAML file "
            f"`ray: {{object_store_memory: {needed}}}`, or start the cluster with `ray "
            f"start --object-store-memory={needed}`."
        )
