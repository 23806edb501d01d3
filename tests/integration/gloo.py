"""A way for weights to be sent between CPUs, so that all but NCCL itself is tested.

vLLM has none: "gloo" is added to what its engines know, and differs from "nccl" only in
how a tensor travels.
"""

from collections.abc import Callable
from datetime import timedelta
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pure_rllib.algorithms import PUREConfig
from pure_rllib.generation.vllm_engine import import_vllm
from pure_rllib.weight_sync.nccl import NCCLBackend

JOIN_S = 60.0


class GlooGroup:
    """Passes tensors on CPUs from rank 0 to all other ranks."""

    def __init__(
        self, host: str, port: int, rank: int, world_size: int, timeout_s: float
    ):
        self._timeout = timedelta(seconds=timeout_s)
        join = min(self._timeout, timedelta(seconds=JOIN_S))
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=join)
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, join)

    def broadcast(self, tensor: Tensor) -> None:
        """Fills a contiguous tensor of any dtype with that of rank 0."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = self._timeout
        # Bytes: gloo does not know every dtype.
        content = tensor.view(-1).view(torch.uint8)
        self._group.broadcast([content], options).wait()

    def destroy(self) -> None:
        """Closes the connections."""
        del self._group


@cache
def register_gloo(timeout_s: float) -> Any:
    """Adds "gloo" to what vLLM's engines know; returns the class of its trainers."""
    import_vllm()
    from vllm.distributed.weight_transfer import (
        WeightTransferEngineFactory,
        nccl_engine,
    )

    # Types would say that tensors travel by NCCL.
    nccl: Any = nccl_engine

    class GlooEngine(nccl.NCCLWeightTransferEngine):
        def init_transfer_engine(self, init_info: Any) -> None:
            self.model_update_group = GlooGroup(
                init_info.master_address,
                init_info.master_port,
                init_info.rank_offset + self.parallel_config.rank,
                init_info.world_size,
                timeout_s,
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

    WeightTransferEngineFactory.register_engine("gloo", GlooEngine)
    return GlooTrainer


class GlooBackend(NCCLBackend):
    """Tensors travel between CPUs."""

    timeout_s = 1800.0

    def engine_backend(self) -> str:
        register_gloo(self.timeout_s)
        return "gloo"

    def make_trainer(self, **arguments: Any) -> Any:
        return register_gloo(self.timeout_s)(**arguments)

    def joining(
        self, host: str, port: int, world_size: int, timeout_s: float
    ) -> Callable[[], GlooGroup]:
        return partial(GlooGroup, host, port, 0, world_size, timeout_s)


class GlooConfig(PUREConfig):
    """Weights are sent, without GPUs."""

    def weight_backend(self) -> GlooBackend:
        return GlooBackend()
