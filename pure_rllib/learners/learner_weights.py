"""The learner's weights: given to generators, compared with theirs, exported."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from pure_rllib.distributed.collectives import rank
from pure_rllib.models.logprobs import sequence_logps
from pure_rllib.models.lora import has_lora, merged_tensors, save_merged
from pure_rllib.models.weights import (
    CPU,
    MAX_SHARD_BYTES,
    cut_into_shards,
    export_policy,
    untied_tensors,
)
from pure_rllib.weight_sync.nccl import WeightSender
from pure_rllib.weight_sync.object_store import WeightPublisher


class LearnerWeights:
    """What a learner offers of its weights; all learners make each call together."""

    module: Any
    _device: Any

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.publisher = WeightPublisher()
        self.sender = WeightSender()

    @property
    def _policy(self) -> Any:
        return self.module[DEFAULT_MODULE_ID].unwrapped().policy

    def weight_shards(
        self, max_shard_bytes: int = MAX_SHARD_BYTES, *, device: torch.device = CPU
    ) -> Iterator[dict[str, Tensor]]:
        """Yields the policy's weights under their Hugging Face names, LoRA merged in.

        All learners call it together; the first learner's shards count.
        """
        tensors = merged_tensors(self._policy)
        return cut_into_shards(tensors, max_shard_bytes, device=device)

    def num_weight_bytes(self) -> int:
        """Returns the size of what `weight_shards` yields."""
        return sum(tensor.nbytes for _, tensor in untied_tensors(self._policy))

    def probe_logps(self, sequences: Sequence[Sequence[int]]) -> list[Any]:
        """Log-probabilities as `Generator.logps` gives them; all learners call it."""
        with torch.no_grad():
            return [
                sequence_logps(self._policy, token_ids, self._device)
                for token_ids in sequences
            ]

    def export_policy(self, tokenizer: Any, folder: str) -> None:
        """Writes the policy in Hugging Face layout; all learners call it."""
        if rank() == 0:
            save = save_merged if has_lora(self._policy) else None
            export_policy(self._policy, tokenizer, folder, save)
