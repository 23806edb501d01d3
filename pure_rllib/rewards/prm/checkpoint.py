"""From a reward model's folder to its tokenizer, its format and its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pure_rllib.models.loading import check_model_folder, load_tokenizer, read_config
from pure_rllib.rewards.prm.formats import PRMFormat, format_ids, make_format

_QWEN_PRM = "Qwen2ForProcessRewardModel"


@dataclass(frozen=True, slots=True)
class PRMCheckpoint:
    """What is known of a reward model before its weights are loaded.

    Attributes:
        path: the folder or the hub id.
        architecture: the model's class, or None if its config does not say.
        config: the content of config.json.
        tokenizer: the reward model's own.
        format: how it is asked.
    """

    path: str
    architecture: str | None
    config: Mapping[str, Any]
    tokenizer: Any
    format: PRMFormat


def read_checkpoint(
    path: str,
    *,
    prm_format: str | Mapping[str, Any] | PRMFormat | None = None,
    separator: str | None = None,
    trust_remote_code: bool = False,
) -> PRMCheckpoint:
    """Reads a reward model's config and tokenizer, and checks that a format fits.

    Args:
        path: a local folder or a hub id.
        prm_format: see `make_format`.
        separator: see `make_format`.
        trust_remote_code: runs code that comes with the tokenizer.

    Raises:
        ValueError: no model there, no format fits, or the set one does not.
    """
    files = check_model_folder(path, "prm")
    # As a mapping: the config of Qwen2.5-Math-PRM is a class that comes with it.
    config = read_config(files, "prm")
    tokenizer = load_tokenizer(files.path, "prm", trust_remote_code=trust_remote_code)
    architecture = next(iter(config.get("architectures") or []), None)
    chosen = make_format(
        prm_format,
        architecture=architecture,
        tokenizer=tokenizer,
        separator=separator,
        names=(files.path, config.get("_name_or_path")),
    )
    format_ids(chosen, tokenizer, config)
    if chosen.head == "labels" and (architecture or "").endswith("ForCausalLM"):
        raise ValueError(
            f"`prm` ({path}) must be a classifier with two labels for `prm_format` "
            f"{chosen.name!r}, because scores are read there; it is a {architecture}, "
            "without labels. Train one from it with pure-rllib prm-train, or set the "
            "`prm_format` that it was trained for."
        )
    if architecture and _is_other_process_reward_model(architecture):
        _check_remote_code(path, architecture, config, trust_remote_code)
    return PRMCheckpoint(files.path, architecture, config, tokenizer, chosen)


def _is_other_process_reward_model(architecture: str) -> bool:
    return architecture.endswith("ForProcessRewardModel") and architecture != _QWEN_PRM


def _check_remote_code(
    path: str, architecture: str, config: Mapping[str, Any], trust_remote_code: bool
) -> None:
    if "AutoModel" not in config.get("auto_map", {}):
        raise ValueError(
            f"`prm` ({path}) must be a class that transformers or pure_rllib knows, or "
            f"bring its code along (auto_map in config.json); it is a {architecture}."
        )
    if not trust_remote_code:
        raise ValueError(
            f"`trust_remote_code` (False) must be on for {architecture} ({path}), "
            "because its class comes as code with the checkpoint. Read that code, then "
            "set prm_kwargs={'trust_remote_code': True}."
        )


def load_model(
    checkpoint: PRMCheckpoint,
    *,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Loads the weights, on the CPU.

    `Qwen2ForProcessRewardModel` is loaded into transformers' own Qwen2 with the two
    layers of its head, without running the code that it brings.

    Args:
        checkpoint: from `read_checkpoint`.
        dtype: `auto`, `float32`, `bfloat16` or a torch dtype.
        attn_implementation: as in `from_pretrained`.
        trust_remote_code: runs code that comes with the checkpoint.

    Raises:
        ValueError: the checkpoint lacks weights of the model, such as the head's.
    """
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForTokenClassification,
    )

    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    path, architecture = checkpoint.path, checkpoint.architecture or ""
    if architecture == _QWEN_PRM:
        model_class, config = _qwen_process_reward_model(checkpoint.config)
        model, info = model_class.from_pretrained(path, config=config, **options)
    else:
        auto_class = (
            AutoModel
            if _is_other_process_reward_model(architecture)
            else AutoModelForTokenClassification
            if checkpoint.format.head == "labels"
            else AutoModelForCausalLM
        )
        model, info = auto_class.from_pretrained(
            path, trust_remote_code=trust_remote_code, **options
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"`prm` ({path}) must hold all weights of its model, because missing ones "
            f"would be random numbers; it lacks {', '.join(missing[:3])} and asks for "
            f"`prm_format` {checkpoint.format.name!r}. Set a folder that holds a "
            "trained reward model."
        )
    return model


def default_device(device: str | torch.device | None) -> str | torch.device:
    """Returns the device, or for None the GPU that this process sees, or the CPU.

    Raises:
        ValueError: it is no device, or a GPU that is not there.
    """
    has_gpu = torch.cuda.is_available()
    if device is None:
        return "cuda" if has_gpu else "cpu"
    reason = "this process sees no GPU"
    try:
        if has_gpu or torch.device(device).type != "cuda":
            return torch.device(device)
    except RuntimeError:
        reason = "torch knows no such device"
    raise ValueError(
        f"`device` ({device}) must be one that is here, because the reward model runs "
        f"on it; {reason}. Leave it out, or set it to cpu."
    )


def _qwen_process_reward_model(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the class of Qwen2.5-Math-PRM, and its config without remote code."""
    from torch import nn
    from transformers import Qwen2Config, Qwen2ForTokenClassification

    class Qwen2ForProcessRewardModel(Qwen2ForTokenClassification):
        """A token classifier whose head has two layers (arXiv 2501.07301)."""

        def __init__(self, config: Qwen2Config):
            super().__init__(config)
            size = config.hidden_size
            self.score = nn.Sequential(
                nn.Linear(size, size), nn.ReLU(), nn.Linear(size, config.num_labels)
            )
            self.post_init()

    fields = {
        name: value
        for name, value in config.items()
        if name not in {"model_type", "auto_map", "architectures", "num_labels"}
    }
    return Qwen2ForProcessRewardModel, Qwen2Config(**fields, num_labels=2)
