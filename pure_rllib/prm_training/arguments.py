"""The settings of PRM training as arguments of transformers' Trainer."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from pure_rllib.prm_training.settings import (
    OWN_ARGUMENTS,
    PRMTrainingSettings,
    accumulation,
)
from pure_rllib.prm_training.zero import (
    check_agreement,
    read_deepspeed_config,
    start_processes,
)


def stage_arguments(
    settings: PRMTrainingSettings,
    out: Path,
    deepspeed: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, TrainingArguments]]:
    """Yields the name and the arguments of each stage that is not left out.

    A stage's arguments are made when it begins: DeepSpeed is started with them.
    """
    stages = [
        ("head", settings.head_lr, settings.head_epochs),
        ("all", settings.lr, settings.epochs),
    ]
    for stage, lr, epochs in stages:
        if epochs:
            yield (
                stage,
                training_arguments(
                    settings,
                    out / "trainer",
                    lr=lr,
                    epochs=epochs,
                    deepspeed=deepspeed,
                    extra=extra,
                ),
            )


def training_arguments(
    settings: PRMTrainingSettings,
    folder: Path,
    *,
    lr: float,
    epochs: float,
    deepspeed: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> TrainingArguments:
    """Translates the settings of one stage.

    Args:
        settings: all settings.
        folder: where the Trainer may write.
        lr: of the stage.
        epochs: of the stage.
        deepspeed: a DeepSpeed config file.
        extra: further arguments by transformers' names, such as `bf16`.

    Raises:
        FileNotFoundError: there is no DeepSpeed config.
        ValueError: an argument has a setting of its own, transformers refuses it, or
            the DeepSpeed config does not fit.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError(
            "`accelerate` (not installed) must be there, because transformers' Trainer "
            "needs it. Run `pip install 'pure-rllib[prm]'`."
        )
    known = TrainingArguments.__dataclass_fields__
    for name, value in (extra or {}).items():
        if name in OWN_ARGUMENTS or name not in known:
            own = OWN_ARGUMENTS.get(name)
            reason = f"it is set by {own}" if own else "transformers has no such one"
            raise ValueError(
                f"`--trainer` ({name}) must be an argument of transformers' "
                f"TrainingArguments that has no setting here; {reason}. Leave it out."
            )
        if isinstance(known[name].default, int | float) and isinstance(value, str):
            raise ValueError(
                f"`--trainer` ({name}={value}) must be a number or true or false, "
                f"because transformers has {known[name].default} there. Set it so."
            )
    schedulers = [scheduler.value for scheduler in SchedulerType]
    if settings.lr_scheduler not in schedulers:
        raise ValueError(
            f"`lr_scheduler` ({settings.lr_scheduler}) must be one of {schedulers}, "
            "because transformers makes it. Set --lr-scheduler cosine."
        )
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": lr,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulation(settings, num_processes),
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.adam_beta2,
        "warmup_steps": settings.warmup,
        "lr_scheduler_type": settings.lr_scheduler,
        "max_grad_norm": settings.max_grad_norm,
        "logging_steps": settings.log_every,
        "seed": settings.seed,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        # Said, or accelerate would take each of several processes for the only one.
        "use_cpu": not torch.accelerator.is_available(),
    }
    if deepspeed is not None:
        config = read_deepspeed_config(deepspeed)
        arguments |= {"use_cpu": False, "deepspeed": config} | start_processes()
    try:
        built = TrainingArguments(**(arguments | dict(extra or {})))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`--trainer` ({dict(extra or {})}) must hold values that transformers' "
            f"TrainingArguments takes; it says: {error} Change or leave out the one "
            "that is meant."
        ) from error
    if deepspeed is not None:
        check_agreement(deepspeed, built.hf_deepspeed_config)
    return built
