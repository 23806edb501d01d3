"""Weights on their way from the learner to generators, and to disk."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """A policy's weights as plain bytes.

    NumPy has no bfloat16, so tensors travel as bytes with their dtype's name; Ray's
    object store then shares them between processes of a node without a copy.

    Attributes:
        version: the update they come from.
        tensors: by parameter name: dtype (as in `torch.float32`), shape, and a uint8
            array of the bytes.
        checksum: hex digest over names, dtypes, shapes and bytes.
    """

    version: int
    tensors: dict[str, tuple[str, tuple[int, ...], np.ndarray]]
    checksum: str


def pack_weights(
    source: nn.Module | Mapping[str, Tensor], version: int = 0
) -> PackedWeights:
    """Packs parameters and persistent buffers; tied tensors travel once.

    Args:
        source: a module or a state dict, on any device and of any dtype.
        version: the update they come from.

    Returns:
        Packed weights that share no memory with the source.
    """
    state = source.state_dict() if isinstance(source, nn.Module) else source
    tensors: dict[str, tuple[str, tuple[int, ...], np.ndarray]] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        raw = tensor.detach().to("cpu", copy=True).contiguous().reshape(-1)
        data = raw.view(torch.uint8).numpy()
        tensors[name] = (str(tensor.dtype), tuple(tensor.shape), data)
    return PackedWeights(version, tensors, _checksum(tensors))


def unpack_weights(packed: PackedWeights) -> dict[str, Tensor]:
    """Gives packed weights back as tensors, without a copy.

    Args:
        packed: what `pack_weights` made; its arrays may be read-only.

    Returns:
        Tensors by name; they share memory with `packed` and must only be read.

    Raises:
        ValueError: the bytes are not the ones that were packed.
    """
    found = _checksum(packed.tensors)
    if found != packed.checksum:
        raise ValueError(
            f"The weights of version {packed.version} must arrive as they were sent; "
            f"their checksum is {found} instead of {packed.checksum}, so they were "
            "damaged on the way. Send them again."
        )
    return {
        name: _as_tensor(data, getattr(torch, dtype.removeprefix("torch.")), shape)
        for name, (dtype, shape, data) in packed.tensors.items()
    }


def _as_tensor(data: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if data.size == 0:
        return torch.empty(shape, dtype=dtype)
    # Unlike from_numpy, frombuffer takes a read-only array; its warning about writing
    # does not apply to tensors that are only read.
    return torch.frombuffer(_writable_view(data), dtype=dtype).reshape(shape)


def _writable_view(data: np.ndarray) -> np.ndarray:
    """The same memory, flagged as writable to keep PyTorch from warning."""
    if data.flags.writeable:
        return data
    interface = dict(data.__array_interface__)
    interface["data"] = (interface["data"][0], False)

    class _View:
        __array_interface__ = interface
        owner = data  # keeps the memory alive

    return np.asarray(_View())


def _checksum(tensors: Mapping[str, tuple[str, tuple[int, ...], np.ndarray]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        digest.update(f"{name}|{dtype}|{shape}|".encode())
        digest.update(np.ascontiguousarray(data).data)
    return digest.hexdigest()


@torch.no_grad()
def copy_weights(weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """Copies weights into a module's own tensors.

    Args:
        weights: by name; of tied tensors one name is enough.
        module: changed in place.

    Raises:
        ValueError: a name is missing or unknown, or a shape differs; nothing has been
            changed then.
    """
    state = module.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(id(tensor), []).append(name)
    unknown = sorted(set(weights) - set(state))
    missing = sorted(
        names[0]
        for names in groups.values()
        if not any(name in weights for name in names)
    )
    shapes = sorted(
        f"{name} {tuple(tensor.shape)} instead of {tuple(state[name].shape)}"
        for name, tensor in weights.items()
        if name in state and tensor.shape != state[name].shape
    )
    if unknown or missing or shapes:
        raise ValueError(
            "`weights` must fit the generator's model; "
            f"missing: {missing or 'none'}; unexpected: {unknown or 'none'}; other "
            f"shape: {shapes or 'none'}. Build both from the same config.json."
        )
    for name, tensor in weights.items():
        state[name].copy_(tensor)


def export_policy(model: Any, tokenizer: Any | None, folder: str | Path) -> Path:
    """Writes a model in Hugging Face layout, as safetensors, all or nothing.

    Args:
        model: a Hugging Face model.
        tokenizer: saved beside it; None leaves it out.
        folder: must not exist, or be an earlier export, which is replaced.

    Returns:
        The folder's absolute path.
    """
    target = Path(folder).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(
        tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".tmp", dir=target.parent)
    )
    try:
        model.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        staging.chmod(0o755)
        if target.exists():
            # A folder cannot be replaced in one step: the old one is moved aside first
            # and deleted when the new one is in place.
            old = Path(f"{staging}.old")
            os.rename(target, old)
            os.rename(staging, target)
            shutil.rmtree(old)
        else:
            os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target
