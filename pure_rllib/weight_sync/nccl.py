"""Weights that go straight from the first learner into the env runners' engines.

The learner sends a version when env runners are asked to sample with it that do not
hold it yet, and all of them receive it at once. They are between two batches then: what
a batch is sampled with does not change meanwhile. Nothing is kept for later; an env
runner that Ray started anew is sent the newest version, with all others.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from traceback import format_exception_only
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.rllib.core.learner.learner_group import LearnerGroup

from pure_rllib.distributed.calls import on_learners
from pure_rllib.distributed.collectives import (
    CollectiveBrokenError,
    phase,
    rank,
)
from pure_rllib.generation.weight_transfer import (
    JOIN_S,
    NCCL,
    ShardSource,
    open_trainer,
)
from pure_rllib.weight_sync.transport import (
    transfer_backend,
    workers_per_engine,
)


class WeightTransferError(RuntimeError):
    """A transfer of weights broke off; the engines hold parts of two versions."""


class WeightsNotHeldError(RuntimeError):
    """An env runner lacks weights that were sent before its process started."""


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """What an env runner holds.

    Attributes:
        group: the learner and the engines that it has joined; None: none yet.
        publication: what it received last; None: nothing, or not all of it.
    """

    group: str | None = None
    publication: str | None = None


class BroadcastWeights:
    """Weights that are sent; env runners are told no more than their version.

    Args:
        version: the update they come from.
        hand_over: sends the newest weights to env runners, where they do not hold them;
            see `WeightBroadcast.hand_over`. It stays with the driver.
    """

    def __init__(self, version: int, hand_over: Callable[..., Any] | None = None):
        self.version = version
        self.hand_over = hand_over

    def __reduce__(self) -> tuple[Any, ...]:
        return BroadcastWeights, (self.version,)


@dataclass(frozen=True, slots=True)
class Transfer:
    """What all learners are told of a transfer.

    Attributes:
        backend: see `generation.weight_transfer`.
        group: the name of this set of engines.
        env_runners: actors, one engine each.
        workers_per_engine: processes of one engine.
        version: of the weights.
        publication: theirs.
        timeout_s: how long learner and engines wait for each other.
    """

    backend: str
    group: str
    env_runners: tuple[Any, ...]
    workers_per_engine: int
    version: int
    publication: str
    timeout_s: float


class EngineClient:
    """Calls all engines at once: a `VLLMWeightSyncClient`, which vLLM's trainer uses.

    Args:
        transfer: the first one; later ones are set.
    """

    def __init__(self, transfer: Transfer):
        self.transfer = transfer

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Has the engines join, each with ranks of its own after the learner's."""
        group, num_workers = self.transfer.group, self.transfer.workers_per_engine
        self._wait_for(
            [
                actor.join_transfer.remote(
                    group, {**init_info, "rank_offset": 1 + i * num_workers}
                )
                for i, actor in enumerate(self.transfer.env_runners)
            ],
            min(JOIN_S, self.transfer.timeout_s),
        )

    def start_weight_update(self) -> None:
        """Nothing: `update_weights` is all that an engine is called for."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Has the engines receive what is sent meanwhile."""
        version, publication = self.transfer.version, self.transfer.publication
        self._wait_for(
            [
                actor.receive_weights.remote(version, publication, update_info)
                for actor in self.transfer.env_runners
            ],
            self.transfer.timeout_s,
        )

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing: see `start_weight_update`."""

    def _wait_for(self, calls: Sequence[ray.ObjectRef], timeout_s: float) -> None:
        ray.get(list(calls), timeout=timeout_s)


class WeightSender:
    """The learners' side."""

    def __init__(self) -> None:
        self._trainer: Any = None
        self._client: EngineClient | None = None
        self._source: ShardSource | None = None
        self._group: str | None = None

    @phase("broadcast")
    def send(self, learner: Any, transfer: Transfer) -> None:
        """Sends a learner's present weights; all learners take part.

        Args:
            learner: whose `weight_shards` are sent.
            transfer: to whom.

        Raises:
            WeightTransferError: not all engines received all of it.
            CollectiveBrokenError: the learners could not gather it.
        """
        is_on_gpu = transfer.backend == NCCL
        with torch.cuda.device(learner._device) if is_on_gpu else nullcontext():
            try:
                if self._group != transfer.group:
                    self._open(learner, transfer)
                assert self._client is not None
                self._client.transfer = transfer
                self._trainer.send_weights()
            except (CollectiveBrokenError, torch.OutOfMemoryError):
                raise
            except (RuntimeError, RayError) as error:
                reason = "".join(format_exception_only(error)).strip().splitlines()[-1]
                raise WeightTransferError(
                    f"The weights of version {transfer.version} must reach all "
                    f"{len(transfer.env_runners)} env runners at once, because they "
                    f'are sent by "{transfer.backend}"; the transfer broke off. Most '
                    "likely an env runner is gone; its log says why. Resume from the "
                    "last checkpoint, with `.learners(weight_transport='files')` if it "
                    f"comes again. Reason: {reason}"
                ) from error

    def _open(self, learner: Any, transfer: Transfer) -> None:
        if self._trainer is not None:
            self._trainer.shutdown()
        self._client = EngineClient(transfer)
        if self._source is None:
            # One for all groups: it knows names and shapes, which needs a gather.
            self._source = ShardSource(
                lambda: learner.weight_shards(device=learner._device)
            )
        self._trainer = open_trainer(
            transfer.backend,
            rank=rank(),
            host=ray.util.get_node_ip_address(),
            num_workers=len(transfer.env_runners) * transfer.workers_per_engine,
            client=self._client,
            source=self._source,
            timeout_s=transfer.timeout_s,
        )
        self._group = transfer.group


class WeightReceiving:
    """What an env runner offers to learners that send weights."""

    generator: Any
    _held = HeldWeights()

    def held_weights(self) -> HeldWeights:
        """Returns what it holds, once it has made its engine."""
        _ = self.generator  # made at the first use
        return self._held

    def join_transfer(self, group: str, init_info: Mapping[str, Any]) -> None:
        """Joins a learner and other engines; see `HeldWeights`."""
        self._held = HeldWeights()
        self.generator.join_transfer(init_info)
        self._held = HeldWeights(group)

    def receive_weights(
        self, version: int, publication: str, update_info: Mapping[str, Any]
    ) -> None:
        """Receives what the learner sends meanwhile."""
        group = self._held.group
        self._held = HeldWeights(group)
        self.generator.receive_weights(version, update_info)
        self._held = HeldWeights(group, publication)

    def check_held(self, version: int, publication: str) -> None:
        """Checks that a publication was received.

        Raises:
            WeightsNotHeldError: it was not.
        """
        if self._held.publication != publication:
            raise WeightsNotHeldError(
                f"This env runner holds publication {self._held.publication} and was "
                f"asked to sample with {publication} (weights version {version})."
            )


class WeightBroadcast:
    """The driver's side.

    Args:
        learners: remote.
        backend: see `Transfer`.
        workers_per_engine: see `Transfer`.
    """

    def __init__(self, learners: LearnerGroup, backend: str, workers_per_engine: int):
        self._learners = learners
        self._backend = backend
        self._workers_per_engine = workers_per_engine
        self._group: str | None = None
        self._members: set[int] = set()
        self._newest: Any = None

    @classmethod
    def of(cls, learners: LearnerGroup, config: Any) -> "WeightBroadcast | None":
        """Makes what a `PUREConfig` asks for; None where weights lie in files."""
        backend = transfer_backend(config)
        if backend is None:
            return None
        return cls(learners, backend, workers_per_engine(config))

    def offer(self, weights: Any) -> None:
        """Makes the `Weights` that the learners hold now the ones to be sent."""
        self._newest = weights

    def hand_over(self, actors: Mapping[int, Any], held: Mapping[int, Any]) -> Any:
        """Sends the newest weights, unless all env runners hold them.

        Args:
            actors: of the env runners, by id.
            held: what each of those holds that are to receive them.

        Returns:
            The newest `Weights`, which all of `held` hold now.

        Raises:
            WeightTransferError: it broke off. The env runners are killed then: they may
                wait for ever.
        """
        weights = self._newest
        if all(one.publication == weights.publication for one in held.values()):
            return weights
        if self._members != set(held) or any(
            one.group != self._group for one in held.values()
        ):
            self._group, self._members = uuid.uuid4().hex[:12], set(held)
        assert self._group is not None
        transfer = Transfer(
            self._backend,
            self._group,
            tuple(actors[i] for i in sorted(held)),
            self._workers_per_engine,
            weights.version,
            weights.publication,
            self._learners.config.collective_timeout_s,
        )
        with ExitStack() as on_error:
            for actor in transfer.env_runners:
                on_error.callback(ray.kill, actor)
            on_learners(
                self._learners, lambda learner: learner.sender.send(learner, transfer)
            )
            on_error.pop_all()
        return weights
