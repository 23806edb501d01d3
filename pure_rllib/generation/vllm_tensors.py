"""Which of a policy's tensors a vLLM model holds, and their fingerprints."""

from typing import Any

import torch
from torch import Tensor, nn

from pure_rllib.models.fingerprints import (
    HeldTensors,
    bits_sum,
    columns,
    fingerprint,
)

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def held_tensors(worker: Any, version: int) -> HeldTensors:
    """Reads the tensors that a worker's model samples with.

    On a CPU vLLM keeps the weights of a linear layer in a packed form only, which is
    read through the layer itself: its product with a unit vector is a column, without
    rounding.

    Args:
        worker: vLLM's, with the whole model.
        version: of the weights; see `fingerprints.columns`.
    """
    model: nn.Module = worker.model_runner.get_model()
    parts = getattr(model, "packed_modules_mapping", {})
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    held: list[tuple[tuple[str, ...], int]] = []
    for name, tensor in model.named_parameters():
        if tensor.numel() and tensor.dtype in _FLOATS:
            held.append((_policy_names(name, parts), fingerprint(tensor, version)))
    for module in model.modules():
        if hasattr(module, "cpu_linear"):
            # A tied head is packed too, and its name is the embedding's.
            name = names[id(module.weight)]
            read = bits_sum(_packed_columns(module, version))
            held.append((_policy_names(name, parts), read))
    return held


def _policy_names(name: str, parts: dict[str, list[str]]) -> tuple[str, ...]:
    """Names of the tensors that vLLM puts one below the other."""
    owner, _, kind = name.rpartition(".")
    above, _, leaf = owner.rpartition(".")
    if leaf not in parts:
        return (name,)
    return tuple(f"{above}.{part}.{kind}" for part in parts[leaf])


def _packed_columns(layer: Any, version: int) -> Tensor:
    weight = layer.weight
    # The weight that was packed is empty afterwards, but for an embedding's.
    width = weight.shape[-1] or getattr(layer, "input_size", None)
    width = width or layer.embedding_dim
    chosen = columns(width, version)
    units = torch.zeros(len(chosen), width, dtype=weight.dtype)
    units[range(len(chosen)), chosen] = 1
    columns_read: Tensor = layer.cpu_linear(units, weight, None)
    return columns_read
