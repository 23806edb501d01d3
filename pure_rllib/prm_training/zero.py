"""DeepSpeed's ZeRO under transformers' Trainer, on GPUs or CPUs."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from pure_rllib.distributed.deepspeed_import import import_deepspeed

# What the Trainer fills in. Without its key DeepSpeed would not clip at all.
_FILLED = (
    "gradient_clipping",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)


def read_deepspeed_config(source: str) -> dict[str, Any]:
    """Reads a DeepSpeed config and checks what would be noticed too late.

    Args:
        source: a JSON file.

    Returns:
        Its content; batch sizes and clipping that it leaves open are "auto".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, asks for what cannot be, or there is no DeepSpeed.
    """
    if not Path(source).is_file():
        raise FileNotFoundError(
            f"`--deepspeed` ({source}) must be a DeepSpeed config file; there is none. "
            "Leave it out to train without DeepSpeed."
        )
    try:
        config = json.loads(Path(source).read_text(encoding="utf-8"))
    except ValueError as error:
        raise _error(source, "be JSON", str(error), "repair the file") from error
    if not isinstance(config, dict) or "zero_optimization" not in config:
        raise _error(
            source,
            "hold zero_optimization",
            "without ZeRO nothing is partitioned",
            'write {"zero_optimization": {"stage": 2}}',
        )
    zero = config["zero_optimization"]
    if zero.get("stage") == 3 and not zero.get(
        "stage3_gather_16bit_weights_on_model_save"
    ):
        raise _error(
            source,
            "gather weights with stage 3",
            "the PRM is written as one model",
            "set zero_optimization.stage3_gather_16bit_weights_on_model_save to true",
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"`--deepspeed` ({source}) needs the package DeepSpeed, which is not "
            "installed. Run `pip install 'pure-rllib[deepspeed]'`, or `make engines` "
            "on a machine without a GPU; or leave --deepspeed out."
        )
    return {**dict.fromkeys(_FILLED, "auto"), **config}


def start_processes() -> dict[str, Any]:
    """Makes the process group that DeepSpeed computes with.

    A process that torchrun did not start becomes a group of one. On CPUs accelerate
    finds no backend, so it would take every process for the only one: there the group
    is made first, over gloo.

    Returns:
        `accelerator_config` of `TrainingArguments`; empty where its default will do.
    """
    if "LOCAL_RANK" not in os.environ:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    on_cpu = not torch.accelerator.is_available()
    import_deepspeed(on_cpu=on_cpu)
    if not on_cpu:
        return {}
    from accelerate.state import AcceleratorState, PartialState

    # That of an earlier stage holds its learning rate.
    AcceleratorState._reset_state(reset_partial_state=True)
    names = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
    os.environ |= names
    PartialState(backend="gloo")
    for name in names:
        del os.environ[name]
    return {"use_configured_state": True}


def check_agreement(source: str, config: HfTrainerDeepSpeedConfig) -> None:
    """Raises a ValueError if the config's numbers differ from training's settings."""
    if differing := config.mismatches:
        raise _error(
            source,
            "agree with the settings of training",
            ", ".join(text.removeprefix("- ds ") for text in differing),
            'write "auto" for these',
        )


def _error(source: str, rule: str, reason: str, way_out: str) -> ValueError:
    return ValueError(
        f"`--deepspeed` ({source}) must {rule}, because {reason}. To mend it, "
        f"{way_out}."
    )
