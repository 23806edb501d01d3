"""A policy's weights by name, one shard at a time: to a model or to a folder."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PretrainedConfig

from pure_rllib.whole_folder import write_whole

CPU = torch.device("cpu")
MAX_SHARD_BYTES = 2**26
"""Size of a shard; a tensor that alone is larger is a shard of its own."""


class WeightSource(Protocol):
    """A policy's weights of one version, to be read one shard at a time.

    Names are those of the policy's Hugging Face parameters and persistent buffers; of
    tied tensors there is one name.
    """

    @property
    def version(self) -> int:
        """The update that they come from."""

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """Yields tensors by name: to be read only, and before the next shard."""


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


def write_shards(shards: Iterable[dict[str, Tensor]], folder: Path) -> None:
    """Writes safetensors in Hugging Face's layout: one file, or several with an index.

    Args:
        shards: on the CPU; one is held at a time.
        folder: exists.
    """
    files: dict[Path, list[str]] = {}
    for number, shard in enumerate(shards, start=1):
        path = folder / f"model-{number:05d}.safetensors"
        files[path] = list(shard)
        save_file(
            {name: tensor.contiguous() for name, tensor in shard.items()},
            path,
            metadata={"format": "pt"},
        )
    if len(files) == 1:
        path.rename(folder / "model.safetensors")
        return
    index = {
        "metadata": {"total_size": sum(path.stat().st_size for path in files)},
        "weight_map": {name: path.name for path in files for name in files[path]},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def export_policy(
    model: Any,
    tokenizer: Any | None,
    folder: str | Path,
    save: Callable[[Any, Path], None] | None = None,
) -> Path:
    """Writes a model in Hugging Face layout, as safetensors, all or nothing.

    Args:
        model: a Hugging Face model.
        tokenizer: saved beside it, and read again; None leaves it out.
        folder: must not exist, or be an earlier export, which is replaced.
        save: writes config and weights into a folder; None: `model.save_pretrained`.

    Returns:
        The folder's absolute path.

    Raises:
        ValueError: beside this model, transformers makes another tokenizer of it.
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
            _check_reload(tokenizer, partial)

    write_whole(target, write)
    return target


def check_exportable(tokenizer: Any, config: PretrainedConfig) -> None:
    """Makes sure that a tokenizer stays what it is, saved beside a model.

    Args:
        tokenizer: the policy's.
        config: of the model.

    Raises:
        ValueError: transformers makes another one of it.
    """
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _check_reload(tokenizer, Path(folder))


def _check_reload(tokenizer: Any, folder: Path) -> None:
    # Some model types choose the tokenizer's class, whatever was saved. Its own code,
    # where it has some, runs already.
    reloaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    for text in (*_PROBES, "a ".join(tokenizer.all_special_tokens)):
        if tokenizer(text)["input_ids"] != reloaded(text)["input_ids"]:
            model_type = json.loads((folder / "config.json").read_text())["model_type"]
            raise ValueError(
                f"`tokenizer` ({tokenizer.name_or_path}, {type(tokenizer).__name__}) "
                f"must fit the model's type ({model_type}), because beside its config "
                f"AutoTokenizer makes it a {type(reloaded).__name__}, which encodes "
                f"{text!r:.50} otherwise: nobody could use the exported policy. Set "
                "the model's own tokenizer, or a model of another type."
            )


# Words, spaces, line breaks, numbers and letters that families split differently.
_PROBES = ("The 12 cups\n\n  cost $3.50.\r\nSo x^2={4}\t\n", "naïve 中文 \U0001d465")
