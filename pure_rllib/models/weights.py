"""Weights on their way out of the learner, one shard at a time, and to disk."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pure_rllib.generation.base import WeightSource
from pure_rllib.whole_folder import write_whole

CPU = torch.device("cpu")
MAX_SHARD_BYTES = 2**26
"""Size of a shard; a tensor that alone is larger is a shard of its own."""


def untied_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields parameters and persistent buffers by name, each of tied ones once."""
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


def cut_into_shards(
    tensors: Iterable[tuple[str, Tensor]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    device: torch.device = CPU,
) -> Iterator[dict[str, Tensor]]:
    """Gathers tensors to shards.

    Args:
        tensors: by name, on any device; taken one by one as shards are asked for.
        max_shard_bytes: see `MAX_SHARD_BYTES`.
        device: of the shards.

    Yields:
        Shards; tensors that are on the device already are not copied.
    """
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.detach().to(device)
        size += tensor.nbytes
    if shard:
        yield shard


class LiveWeights:
    """Weights that a learner of the same process holds: nothing is copied to publish.

    Args:
        version: the update they come from.
        shards: gives the learner's weights at the moment of the call.
    """

    folder: Path | None = None

    def __init__(self, version: int, shards: Callable[[], Iterator[dict[str, Tensor]]]):
        self.version = version
        self._shards = shards

    @classmethod
    def of(cls, module: nn.Module, version: int) -> "LiveWeights":
        """The weights of a module, whatever they are when they are read."""
        return cls(version, lambda: cut_into_shards(untied_tensors(module)))

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """See `WeightSource`."""
        return self._shards()


@torch.no_grad()
def copy_weights(weights: WeightSource, module: nn.Module) -> None:
    """Copies weights into a module's own tensors, shard by shard.

    Args:
        weights: of tied tensors one name is enough.
        module: changed in place.

    Raises:
        ValueError: a name is missing or unknown, or a shape differs. Other tensors may
            have been copied by then.
    """
    state = module.state_dict(keep_vars=True)
    copied: set[int] = set()
    unknown: list[str] = []
    shapes: list[str] = []
    for shard in weights.shards():
        for name, tensor in shard.items():
            if name not in state:
                unknown.append(name)
            elif tensor.shape != state[name].shape:
                shapes.append(
                    f"{name} {tuple(tensor.shape)} instead of "
                    f"{tuple(state[name].shape)}"
                )
            else:
                state[name].copy_(tensor)
            copied.add(id(state.get(name)))
    missing = [name for name, tensor in state.items() if id(tensor) not in copied]
    if unknown or missing or shapes:
        raise ValueError(
            f"The weights of version {weights.version} must fit the generator's model; "
            f"missing: {missing or 'none'}; unexpected: {unknown or 'none'}; other "
            f"shape: {shapes or 'none'}. Build both from the same config.json."
        )


def export_policy(
    model: Any,
    tokenizer: Any | None,
    folder: str | Path,
    save: Callable[[Any, Path], None] | None = None,
) -> Path:
    """Writes a model in Hugging Face layout, as safetensors, all or nothing.

    Args:
        model: a Hugging Face model.
        tokenizer: saved beside it; None leaves it out.
        folder: must not exist, or be an earlier export, which is replaced.
        save: writes config and weights into a folder; None: `model.save_pretrained`.

    Returns:
        The folder's absolute path.
    """
    target = Path(folder).absolute()
    if not torch.cuda.is_available():
        # Saving imports DeepSpeed where it is installed, and that would warn of a CPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    def write(partial: Path) -> None:
        if save is None:
            model.save_pretrained(partial)
        else:
            save(model, partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)

    write_whole(target, write)
    return target
