"""The driver's side of a weight sync."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray
from ray.rllib.core.learner.learner_group import LearnerGroup

from pure_rllib.distributed.calls import on_learners
from pure_rllib.weight_sync.check import Probe
from pure_rllib.weight_sync.handle import Weights
from pure_rllib.weight_sync.nccl import WeightBroadcast
from pure_rllib.weight_sync.object_store import LiveWeights, check_room, put_weights


class WeightSync:
    """Publishes the learners' weights, and passes on where they are.

    They lie in Ray's object store, or are sent when env runners are about to sample
    with them; in one process with the learner, its own tensors are read.

    Args:
        learners: of the algorithm.
        probe_ids: see `Probe`.
        config: the algorithm's.
        in_process: there is no env runner but that of this process.

    Raises:
        ValueError: the object store is too small.
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
        self._is_live = in_process and learners.is_local
        self._broadcast: WeightBroadcast | None = None
        if backend := config.weight_backend():
            num_workers = config.generator_kwargs.get("tensor_parallel_size", 1)
            self._broadcast = WeightBroadcast(learners, backend, num_workers)
        self._newest: Weights | None = None
        if not self._is_live and self._broadcast is None:
            # The newest, and one per version that env runners may lag behind.
            check_room(learners, 1 + config.max_weight_lag)

    def publish(self, version: int) -> Weights:
        """Makes the learners' present weights the ones that env runners can take over.

        Args:
            version: the update they come from.
        """
        probe_ids, is_live = self._probe_ids, self._is_live
        is_sent = self._broadcast is not None

        def publish(learner: Any) -> Any:
            logps = learner.probe_logps(probe_ids)
            if is_live:
                # On its own device: the engine's is the same.
                read = partial(learner.weight_shards, device=learner.device)
                return LiveWeights(version, read), logps
            return None if is_sent else put_weights(learner, version), logps

        # All learners: they may hold one part of the weights each.
        source, logps = on_learners(self._learners, publish)[0]
        probe = Probe(probe_ids, tuple(logps))
        weights = Weights(version, uuid.uuid4().hex[:12], source, probe)
        if is_sent:
            self._newest = weights
        return weights

    def before_launch(
        self,
        actors: Mapping[int, Any],
        weights: Weights,
        wait_for: Callable[[Mapping[int, ray.ObjectRef]], Mapping[int, Any]],
    ) -> tuple[Weights, list[int]]:
        """Sees to it that env runners can take over weights when they sample next.

        Args:
            actors: living env runners by id, of which some may have been restarted.
            weights: what they are to sample with.
            wait_for: waits for one value of each env runner, and returns those of the
                ones that are not lost.

        Returns:
            What they are to sample with: where weights are sent the newest ones, since
            others are gone. And the ids of the env runners that can.

        Raises:
            WeightTransferError: weights were sent, and did not reach all of them.
        """
        if self._broadcast is None:
            return weights, list(actors)
        assert self._newest is not None, "published before env runners sample"
        received = wait_for(
            {
                i: actor.__ray_call__.remote(lambda runner: runner.receiver.received())
                for i, actor in actors.items()
            }
        )
        if received:
            self._broadcast.send(self._newest, actors, received)
        return self._newest, list(received)
