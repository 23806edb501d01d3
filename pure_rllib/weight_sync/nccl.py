"""Weights that go straight from the first learner into the env runners' engines.

This is vLLM's own weight transfer. The learner sends a version when env runners are
asked to sample with it that do not hold it yet, and all of them receive it at once.
They are between two batches then: what a batch is sampled with does not change
meanwhile. Nothing is kept for later; an env runner that Ray started anew is sent the
newest version, with all others.
"""

import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from traceback import format_exception_only
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.rllib.core.learner.learner_group import LearnerGroup
from torch import Tensor

from pure_rllib.distributed.calls import on_learners
from pure_rllib.distributed.collectives import (
    CollectiveBrokenError,
    rank,
)
from pure_rllib.generation.vllm_engine import import_vllm
from pure_rllib.weight_sync.handle import ReceivedWeights, Weights

JOIN_S = 60.0
"""How long engines, which are made by then, may take to join a transfer."""


class WeightTransferError(RuntimeError):
    """A transfer of weights broke off; the engines hold parts of two versions."""


class NCCLBackend:
    """Tensors travel from GPU to GPU: vLLM's backend "nccl"."""

    def engine_backend(self) -> str:
        """Returns its name, as the vLLM of an env runner's process knows it."""
        return "nccl"

    def make_trainer(self, **arguments: Any) -> Any:
        """Makes vLLM's learners' end, which has joined nobody yet."""
        import_vllm()
        from vllm.distributed.weight_transfer import nccl_engine

        return nccl_engine.NCCLTrainerWeightTransferEngine(**arguments)

    def joining(
        self, host: str, port: int, world_size: int, timeout_s: float
    ) -> Callable[[], Any]:
        """Returns what joins the engines as rank 0, from whatever thread calls it.

        Args:
            host: of this process.
            port: free there.
            world_size: of the learner and all engines' workers.
            timeout_s: how long one waits for another; NCCL may wait for ever.
        """
        from vllm.distributed.weight_transfer import nccl_common

        # Asked here: each thread has a current GPU of its own.
        gpu = torch.accelerator.current_device_index()
        connect = nccl_common.stateless_init_process_group
        return partial(connect, host, port, 0, world_size, gpu)


@dataclass(frozen=True, slots=True)
class Transfer:
    """What all learners are told of a transfer.

    Attributes:
        backend: how tensors travel.
        group: the name of this set of engines.
        env_runners: actors, one engine each.
        workers_per_engine: processes of one engine.
        version: of the weights.
        sync_id: theirs.
        timeout_s: how long learner and engines wait for each other.
    """

    backend: NCCLBackend
    group: str
    env_runners: tuple[Any, ...]
    workers_per_engine: int
    version: int
    sync_id: str
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
        self._call(
            lambda runner, i: runner.receiver.join_transfer(
                group, {**init_info, "rank_offset": 1 + i * num_workers}
            ),
            min(JOIN_S, self.transfer.timeout_s),
        )

    def start_weight_update(self) -> None:
        """Nothing: `update_weights` is all that an engine is called for."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Has the engines receive what is sent meanwhile."""
        version, sync_id = self.transfer.version, self.transfer.sync_id
        self._call(
            lambda runner, _: runner.receiver.receive(version, sync_id, update_info),
            self.transfer.timeout_s,
        )

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing: see `start_weight_update`."""

    def _call(self, function: Callable[[Any, int], None], timeout_s: float) -> None:
        """Calls `function(env runner, its place)` in all of them, and waits."""
        calls = [
            actor.__ray_call__.remote(function, i)
            for i, actor in enumerate(self.transfer.env_runners)
        ]
        ray.get(calls, timeout=timeout_s)


class ShardSource:
    """A policy's weights as vLLM's trainers read them: its `WeightSource`.

    Args:
        shards: gives the present weights. All learners read them together.
    """

    def __init__(self, shards: Callable[[], Iterator[dict[str, Tensor]]]):
        self._shards = shards
        self._metadata: list[Any] = []

    def metadata(self) -> list[Any]:
        """Returns name, dtype and shape of all tensors; they never change."""
        from vllm.distributed.weight_transfer import ParamMeta

        if not self._metadata:
            self._metadata = [
                ParamMeta(name, tensor.dtype, tuple(tensor.shape))
                for name, tensor in self
            ]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yields tensors by name, each valid until the next."""
        for shard in self._shards():
            yield from shard.items()


def open_trainer(
    backend: NCCLBackend,
    *,
    host: str,
    num_workers: int,
    client: Any,
    source: ShardSource,
    timeout_s: float,
) -> Any:
    """Makes the learners' end of a transfer, and has the engines join it.

    All learners call it. The first one sends; the others read their `source` along.

    Args:
        backend: how tensors travel.
        host: this node's address.
        num_workers: of all engines together.
        client: calls the engines, as vLLM's `VLLMWeightSyncClient`.
        source: this learner's weights.
        timeout_s: how long one end waits for the other; with NCCL it may be for ever.

    Returns:
        vLLM's trainer. Its `send_weights()` sends the source's present weights.

    Raises:
        Exception: what kept the engines, or this end, from joining; the first failure.
    """
    # Not by vLLM's factory: its trainers join without looking at what engines raise.
    trainer = backend.make_trainer(
        client=client,
        source=source,
        is_sender=rank() == 0,
        # One by one, without a buffer: parameters are sent from where they are.
        packed=False,
    )
    if not trainer.is_sender:
        return trainer
    port, world_size = _free_port(), 1 + num_workers
    init_info = {
        "master_address": host,
        "master_port": port,
        "world_size": world_size,
        "rank_offset": 1,
    }
    # Both ends wait for each other; the first that fails says why.
    pool = ThreadPoolExecutor(max_workers=2)
    here = pool.submit(backend.joining(host, port, world_size, timeout_s))
    there = pool.submit(client.init_weight_transfer_engine, init_info)
    pool.shutdown(wait=False)
    for end in as_completed((here, there)):
        end.result()
    trainer.model_update_group = here.result()
    return trainer


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
    return port


class WeightSender:
    """The learners' side."""

    def __init__(self) -> None:
        self._trainer: Any = None
        self._client: EngineClient | None = None
        self._source: ShardSource | None = None
        self._group: str | None = None

    def send(self, learner: Any, transfer: Transfer) -> None:
        """Sends a learner's present weights; all learners take part.

        Args:
            learner: whose `weight_shards` are sent.
            transfer: to whom.

        Raises:
            WeightTransferError: not all engines received all of it.
            CollectiveBrokenError: the learners could not gather it.
        """
        is_on_gpu = learner._device.type == "cuda"
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
                    f"are sent; the transfer broke off. Most "
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
            host=ray.util.get_node_ip_address(),
            num_workers=len(transfer.env_runners) * transfer.workers_per_engine,
            client=self._client,
            source=self._source,
            timeout_s=transfer.timeout_s,
        )
        self._group = transfer.group


class WeightBroadcast:
    """The driver's side.

    Args:
        learners: remote.
        backend: how tensors travel.
        workers_per_engine: processes of one engine.
    """

    def __init__(
        self, learners: LearnerGroup, backend: NCCLBackend, workers_per_engine: int
    ):
        self._learners = learners
        self._backend = backend
        self._workers_per_engine = workers_per_engine
        self._group: str | None = None
        self._members: set[int] = set()

    def send(
        self,
        weights: Weights,
        actors: Mapping[int, Any],
        received: Mapping[int, ReceivedWeights],
    ) -> None:
        """Has the learners send their weights, unless all env runners hold them.

        Args:
            weights: what the learners hold.
            actors: of the env runners, by id.
            received: what each of those was sent last that are to receive them.

        Raises:
            WeightTransferError: it broke off. The env runners are killed then: they may
                wait for ever.
        """
        if all(one.sync_id == weights.sync_id for one in received.values()):
            return
        if self._members != set(received) or any(
            one.group != self._group for one in received.values()
        ):
            self._group, self._members = uuid.uuid4().hex[:12], set(received)
        assert self._group is not None
        transfer = Transfer(
            self._backend,
            self._group,
            tuple(actors[i] for i in sorted(received)),
            self._workers_per_engine,
            weights.version,
            weights.sync_id,
            self._learners.config.collective_timeout_s,
        )
        with ExitStack() as on_error:
            for actor in transfer.env_runners:
                on_error.callback(ray.kill, actor)
            on_learners(
                self._learners,
                lambda learner: learner.sender.send(learner, transfer),
                within_s=JOIN_S + transfer.timeout_s,
            )
            on_error.pop_all()
