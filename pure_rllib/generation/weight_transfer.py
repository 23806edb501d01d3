"""vLLM's own weight transfer: from a learner straight into the workers of engines.

On GPUs tensors travel by vLLM's backend "nccl". For CPUs vLLM has none: "gloo" is added
here to vLLM's factories, and differs only in how a tensor travels.
"""

import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pure_rllib.generation.vllm_engine import finish_loading, import_vllm

NCCL, GLOO = "nccl", "gloo"
"""How tensors travel between GPUs, and between CPUs."""

JOIN_S = 60.0
"""How long engines, which are made by then, may take to join a transfer."""


class GlooGroup:
    """Passes tensors on CPUs from rank 0 to all other ranks.

    Args:
        host: of rank 0.
        port: free there.
        rank: of this process.
        world_size: number of ranks.
        timeout_s: how long one rank waits for another; `JOIN_S` at most for it to join.

    Raises:
        RuntimeError: not all ranks came in time.
    """

    def __init__(
        self, host: str, port: int, rank: int, world_size: int, timeout_s: float
    ):
        self._timeout = timedelta(seconds=timeout_s)
        join = min(self._timeout, timedelta(seconds=JOIN_S))
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=join)
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, join)

    def broadcast(self, tensor: Tensor) -> None:
        """Fills a contiguous tensor of any dtype with that of rank 0.

        Raises:
            RuntimeError: another rank is gone, or did not come in time.
        """
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = self._timeout
        # Bytes: gloo does not know every dtype.
        content = tensor.view(-1).view(torch.uint8)
        self._group.broadcast([content], options).wait()

    def destroy(self) -> None:
        """Closes the connections."""
        del self._group


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


@cache
def _register_gloo() -> Any:
    """Adds "gloo" to what vLLM's engines know; returns the class of its trainers."""
    from vllm.distributed.weight_transfer import (
        WeightTransferEngineFactory,
        nccl_engine,
    )

    # Types would say that tensors travel by NCCL.
    nccl: Any = nccl_engine

    @dataclass(kw_only=True)
    class GlooInitInfo(nccl.NCCLWeightTransferInitInfo):
        timeout_s: float

    class GlooEngine(nccl.NCCLWeightTransferEngine):
        init_info_cls = GlooInitInfo

        def init_transfer_engine(self, init_info: Any) -> None:
            self.model_update_group = GlooGroup(
                init_info.master_address,
                init_info.master_port,
                init_info.rank_offset + self.parallel_config.rank,
                init_info.world_size,
                init_info.timeout_s,
            )

        def update_weights(self, update_info: dict[str, Any]) -> None:
            # vLLM's waits for a GPU, too.
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: Any) -> None:
            for name, dtype, shape in zip(
                update_info.names,
                update_info.dtype_names,
                update_info.shapes,
                strict=True,
            ):
                tensor = torch.empty(shape, dtype=getattr(torch, dtype))
                self.model_update_group.broadcast(tensor)
                self.model.load_weights([(name, tensor)])

    class GlooTrainer(nccl.NCCLTrainerWeightTransferEngine):
        def _broadcast(self, source: Any, meta: Any) -> None:
            if not self.is_sender:
                return super()._broadcast(source, meta)
            for _, tensor in self._checked_iter(source, meta):
                self.model_update_group.broadcast(tensor.contiguous())

    WeightTransferEngineFactory.register_engine(GLOO, GlooEngine)
    return GlooTrainer


def open_trainer(
    backend: str,
    *,
    rank: int,
    host: str,
    num_workers: int,
    client: Any,
    source: ShardSource,
    timeout_s: float,
) -> Any:
    """Makes the learners' end of a transfer, and has the engines join it.

    All learners call it. The first one sends; the others read their `source` along.

    Args:
        backend: `NCCL` or `GLOO`.
        rank: this learner's number.
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
    import_vllm()
    from vllm.distributed.weight_transfer import nccl_common, nccl_engine

    # Not by vLLM's factory: its trainers join without looking at what engines raise.
    nccl: Any = nccl_engine.NCCLTrainerWeightTransferEngine
    trainer = (_register_gloo() if backend == GLOO else nccl)(
        client=client,
        source=source,
        is_sender=rank == 0,
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
    if backend == GLOO:
        init_info["timeout_s"] = timeout_s
        join: Any = partial(GlooGroup, host, port, 0, world_size, timeout_s)
    else:
        # Asked here: each thread has a current GPU of its own.
        gpu = torch.accelerator.current_device_index()
        connect = nccl_common.stateless_init_process_group
        join = partial(connect, host, port, 0, world_size, gpu)
    # Both ends wait for each other; the first that fails says why.
    pool = ThreadPoolExecutor(max_workers=2)
    here = pool.submit(join)
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


def transfer_settings(backend: str | None) -> dict[str, Any]:
    """Settings of `vllm.LLM` with which it can receive weights.

    Args:
        backend: `NCCL`, `GLOO`, or None for an engine that reads files only.
    """
    if backend is None:
        return {}
    if backend == GLOO:
        import_vllm()
        _register_gloo()
    return {"weight_transfer_config": {"backend": backend}}


def join_transfer(llm: Any, init_info: Mapping[str, Any]) -> None:
    """Has an engine's workers join a transfer, and leave the one before it."""
    llm.shutdown_weight_transfer_engine()
    llm.init_weight_transfer_engine({"init_info": dict(init_info)})


def load_from_transfer(llm: Any, update_info: Mapping[str, Any]) -> None:
    """Has an engine's workers load what a trainer sends meanwhile."""
    llm.start_weight_update()
    llm.update_weights({"update_info": dict(update_info)})
    llm.finish_weight_update()
    finish_loading(llm)
