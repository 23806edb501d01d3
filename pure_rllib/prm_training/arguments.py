"""The arguments of PRM training: transformers' own, with the defaults of the paper."""

import argparse
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import torch
import yaml
from pydantic import Field
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import SchedulerType

from pure_rllib.prm_training.losses import LossName
from pure_rllib.prm_training.prm800k import Neutral
from pure_rllib.prm_training.solutions import AfterFirstError
from pure_rllib.prm_training.zero import (
    check_agreement,
    read_deepspeed_config,
    start_processes,
)
from pure_rllib.setting_types import (
    Count,
    NaturalNumber,
    NonNegativeFloat,
    PositiveFloat,
    check_setting,
)

_Share = Annotated[float, Field(ge=0, lt=1)]
_NAMES = {
    "neutral": get_args(Neutral),
    "after_first_error": get_args(AfterFirstError),
    "loss": get_args(LossName),
    "lr_scheduler_type": tuple(scheduler.value for scheduler in SchedulerType),
}


def _setting(default: Any, text: str, *aliases: str) -> Any:
    """Makes a field with what `HfArgumentParser` reads, as argparse takes it."""
    metadata = {"help": text, "aliases": list(aliases)}
    return field(default=default, metadata=metadata, kw_only=default is MISSING)


@dataclass
class PRMTrainingArguments(TrainingArguments):
    """How a PRM is trained: first its head alone, then all weights.

    Learning rates, epochs, batch size and AdamW's numbers are those of PURE's PRM
    (arXiv 2504.15275 and the scripts in its `PRM` folder). What transformers calls
    otherwise has the option's name as an alias, which errors and `settings` use. Each
    field says in its metadata what it means; `pure-rllib prm-train --help` prints that.
    All other arguments of transformers' Trainer can be set as well.

    Raises:
        FileNotFoundError: there is no DeepSpeed config.
        ValueError: a setting cannot be, transformers refuses one, or the DeepSpeed
            config does not fit.
    """

    model: str = _setting(MISSING, "folder or hub id that the PRM starts from")
    output_dir: str = _setting(MISSING, "new folder of the PRM", "--out")
    format: str = _setting(
        "auto", "newline or extra_0; auto: as the checkpoint will be read"
    )
    template: str = _setting(
        "plain", "prompt template of the policies to be judged: plain, pure, or a text"
    )
    neutral: str = _setting("good", "what PRM800K's rating 0 means: good, bad, ignore")
    after_first_error: str = _setting(
        "drop", "keep or drop the steps after the first wrong one"
    )
    loss: str = _setting("cross_entropy", "cross_entropy or taylor")
    taylor_order: Count = _setting(2, "terms of the Taylor cross-entropy")
    label_smoothing_factor: _Share = _setting(
        0.0, "weight of the uniform target, in [0, 1)", "--label-smoothing"
    )
    head_dropout: _Share = _setting(0.1, "dropout before the head while training")
    head_lr: PositiveFloat = _setting(1e-4, "learning rate of stage 1, the head alone")
    head_epochs: NonNegativeFloat = _setting(3.0, "epochs of stage 1; 0 leaves it out")
    learning_rate: PositiveFloat = _setting(
        1e-6, "learning rate of stage 2, all weights", "--lr"
    )
    num_train_epochs: NonNegativeFloat = _setting(
        1.0, "epochs of stage 2; 0 leaves it out", "--epochs"
    )
    batch_size: Count = _setting(128, "solutions per update, over all processes")
    per_device_train_batch_size: Count = _setting(
        16, "solutions per process and forward pass", "--micro-batch-size"
    )
    max_length: Count = _setting(2048, "tokens per row; steps beyond are cut off")
    weight_decay: NonNegativeFloat = _setting(0.1, "of AdamW")
    adam_beta2: _Share = _setting(0.95, "of AdamW")
    warmup_steps: _Share = _setting(
        0.03, "share of a stage's updates with a rising rate", "--warmup"
    )
    lr_scheduler_type: str = _setting(
        "cosine", "as transformers names it", "--lr-scheduler"
    )
    max_grad_norm: PositiveFloat = _setting(1.0, "gradients are clipped to it")
    holdout: _Share = _setting(0.0, "share of the problems kept to measure the PRM on")
    limit: NaturalNumber = _setting(0, "use so many solutions, drawn at random; 0: all")
    logging_steps: Count = _setting(
        10, "updates between lines of progress", "--log-every"
    )
    seed: int = _setting(0, "of the head, the order and the held-out problems")

    deepspeed: dict[str, Any] | str | None = _setting(None, "DeepSpeed config file")
    # It follows from the batch size.
    gradient_accumulation_steps: int = field(default=1, init=False)
    use_cpu: bool = False
    save_strategy: str = "no"
    disable_tqdm: bool = True
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = False

    def __post_init__(self) -> None:
        if importlib.util.find_spec("accelerate") is None:
            raise ValueError(
                "`accelerate` (not installed) must be there, because transformers' "
                "Trainer needs it. Run `pip install 'pure-rllib[prm]'`."
            )
        self._check()
        num_processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.gradient_accumulation_steps = self.passes_per_update(num_processes)
        source = self.deepspeed
        if source is None:
            # Said, or accelerate would take each of several processes for the only one.
            self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        else:
            self.deepspeed = read_deepspeed_config(str(source))
            started = start_processes()
            if started:
                self.accelerator_config = started
        try:
            super().__post_init__()
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`--trainer` and transformers' own options must hold values that "
                f"TrainingArguments takes; it says: {error} Change or leave out the "
                "one that is meant."
            ) from error
        # The file's name, from which the arguments of each stage are made.
        self.deepspeed = source

    @property
    def settings(self) -> dict[str, Any]:
        """The settings above by their options' names."""
        values = {option: getattr(self, name) for name, option in OPTIONS.items()}
        del values["out"], values["deepspeed"]
        return values | {"lr_scheduler": SchedulerType(self.lr_scheduler_type).value}

    def passes_per_update(self, num_processes: int) -> int:
        """Works out the forward passes of each process per update.

        Raises:
            ValueError: the batch is no multiple of what the processes take at once.
        """
        at_once = self.per_device_train_batch_size * num_processes
        if self.batch_size % at_once:
            whole = max(at_once, self.batch_size // at_once * at_once)
            raise ValueError(
                f"`batch_size` ({self.batch_size}) must be a multiple of "
                f"`micro_batch_size` ({self.per_device_train_batch_size}) times the "
                f"processes ({num_processes}), because gradients of whole passes are "
                f"summed. Set --batch-size {whole}."
            )
        return self.batch_size // at_once

    def stages(self) -> Iterator[tuple[str, "PRMTrainingArguments"]]:
        """Yields the name and the arguments of each stage that is not left out.

        A stage's arguments are made when it begins: DeepSpeed is started with them.

        Raises:
            ValueError: numbers of the DeepSpeed config differ from the stage's.
        """
        stages = (
            ("head", self.head_lr, self.head_epochs),
            ("all", self.learning_rate, self.num_train_epochs),
        )
        for stage, learning_rate, epochs in stages:
            if epochs:
                made = replace(
                    self,
                    output_dir=str(Path(self.output_dir) / "trainer"),
                    learning_rate=learning_rate,
                    num_train_epochs=epochs,
                )
                if self.deepspeed is not None:
                    check_agreement(str(self.deepspeed), made.hf_deepspeed_config)
                yield stage, made

    def _check(self) -> None:
        if not self.model:
            raise ValueError(
                "`model` ('') must name what the PRM starts from, because it is not "
                "trained from nothing. Set --model FOLDER."
            )
        rules = get_type_hints(PRMTrainingArguments, include_extras=True)
        for name, option in OPTIONS.items():
            value, rule = getattr(self, name), rules[name]
            if name in _NAMES:
                # As a type of the field these would be argparse's choices.
                rule = Literal[_NAMES[name]]
            try:
                check_setting(option, value, rule)
            except ValueError as error:
                default = self.__dataclass_fields__[name].default
                raise ValueError(
                    f"{error} The default is {default!r}: set "
                    f"--{option.replace('_', '-')} {default}."
                ) from None
        if self.head_epochs == self.num_train_epochs == 0:
            raise ValueError(
                "`epochs` (0) must be > 0 where `head_epochs` is 0, because nothing "
                "would be trained. Set one of them."
            )


OPTIONS: Mapping[str, str] = {
    name: alias.removeprefix("--").replace("-", "_")
    for name in get_annotations(PRMTrainingArguments)
    if "help" in (metadata := PRMTrainingArguments.__dataclass_fields__[name].metadata)
    for alias in metadata["aliases"] or [name]
}
"""Field of a setting -> the name of its option; others are as transformers has them."""
_SET_BY = {**OPTIONS, "gradient_accumulation_steps": "batch_size"}
_SET_BY |= {"learning_rate": "lr or head_lr"}
_SET_BY |= {"num_train_epochs": "epochs or head_epochs"}


class PRMArgumentParser(HfArgumentParser):
    """Reads `PRMTrainingArguments`, and what is added beside them.

    The help shows our settings. Transformers' other arguments are options too, and
    `--trainer NAME=VALUE` sets them by YAML, mappings as well.

    Args:
        **kwargs: as for `argparse.ArgumentParser`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(PRMTrainingArguments, **kwargs)
        self.add_argument(
            "--trainer",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="any argument of transformers' TrainingArguments",
        )

    def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
        """See `argparse.ArgumentParser.add_argument`."""
        name = kwargs.get("dest", names[0].removeprefix("--"))
        if name in OPTIONS:
            # The alias first: errors and the help name an option so.
            names, kwargs["dest"] = names[::-1], name
            kwargs.setdefault("metavar", kwargs["type"].__name__.upper())
            if kwargs.get("default") is not None:
                kwargs["help"] += " (default: %(default)s)"
        elif name in PRMTrainingArguments.__dataclass_fields__:
            kwargs["help"] = argparse.SUPPRESS
        return super().add_argument(*names, **kwargs)

    def to_arguments(self, given: argparse.Namespace) -> PRMTrainingArguments:
        """Makes the arguments of what `parse_args` found.

        Raises:
            FileNotFoundError: there is no DeepSpeed config.
            ValueError: a setting cannot be, or `--trainer` is wrong.
        """
        values = vars(given) | dict(map(_trainer_argument, given.trainer))
        return self.parse_dict(values, allow_extra_keys=True)[0]


def _trainer_argument(text: str) -> tuple[str, Any]:
    name, found, written = text.partition("=")
    if not found or not name:
        raise ValueError(
            f"`--trainer` ({text}) must read NAME=VALUE, such as bf16=true."
        )
    known = {f.name: f.default for f in fields(TrainingArguments)}
    if name in _SET_BY or name not in known:
        own = _SET_BY.get(name)
        reason = f"it is set by {own}" if own else "transformers has no such one"
        raise ValueError(
            f"`--trainer` ({name}) must be an argument of transformers' "
            f"TrainingArguments that has no setting here; {reason}. Leave it out."
        )
    value = yaml.safe_load(written)
    if isinstance(known[name], int | float) and isinstance(value, str):
        raise ValueError(
            f"`--trainer` ({text}) must be a number or true or false, because "
            f"transformers has {known[name]} there. Set it so."
        )
    return name, value
