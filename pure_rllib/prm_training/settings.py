"""Every setting of PRM training, with the defaults of the paper."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True)
class PRMTrainingSettings:
    """How a PRM is trained: first its head alone, then all weights.

    Learning rates, epochs, batch size and AdamW's numbers are those of PURE's PRM
    (arXiv 2504.15275 and the scripts in its `PRM` folder). Each field says in its
    metadata what it means; `pure-rllib prm-train --help` prints that.
    """

    model: str = _setting("", "folder or hub id that the PRM starts from")
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
    taylor_order: int = _setting(2, "terms of the Taylor cross-entropy")
    label_smoothing: float = _setting(0.0, "weight of the uniform target, in [0, 1)")
    head_dropout: float = _setting(0.1, "dropout before the head while training")
    head_lr: float = _setting(1e-4, "learning rate of stage 1, the head alone")
    head_epochs: float = _setting(3.0, "epochs of stage 1; 0 leaves it out")
    lr: float = _setting(1e-6, "learning rate of stage 2, all weights")
    epochs: float = _setting(1.0, "epochs of stage 2; 0 leaves it out")
    batch_size: int = _setting(128, "solutions per update, over all processes")
    micro_batch_size: int = _setting(16, "solutions per process and forward pass")
    max_length: int = _setting(2048, "tokens per row; steps beyond are cut off")
    weight_decay: float = _setting(0.1, "of AdamW")
    adam_beta2: float = _setting(0.95, "of AdamW")
    warmup: float = _setting(0.03, "share of a stage's updates with a rising rate")
    lr_scheduler: str = _setting("cosine", "as transformers names it")
    max_grad_norm: float = _setting(1.0, "gradients are clipped to it")
    holdout: float = _setting(0.0, "share of the problems kept to measure the PRM on")
    limit: int = _setting(0, "use so many solutions, drawn at random; 0: all")
    log_every: int = _setting(10, "updates between lines of progress")
    seed: int = _setting(0, "of the head, the order and the held-out problems")

    def check(self) -> None:
        """Checks numbers and names.

        Raises:
            ValueError: a setting cannot be.
        """
        if not self.model:
            raise ValueError(
                "`model` ('') must name what the PRM starts from, because it is not "
                "trained from nothing. Set --model FOLDER."
            )
        for name in ("head_lr", "lr", "max_grad_norm"):
            self._need(name, getattr(self, name) > 0, "be > 0")
        for name in ("head_epochs", "epochs", "weight_decay", "limit"):
            self._need(name, getattr(self, name) >= 0, "be >= 0")
        for name in ("batch_size", "micro_batch_size", "max_length", "log_every"):
            self._need(name, getattr(self, name) >= 1, "be >= 1")
        for name in ("warmup", "holdout", "adam_beta2", "head_dropout"):
            self._need(name, 0 <= getattr(self, name) < 1, "lie in [0, 1)")
        for name, allowed in (
            ("after_first_error", ("keep", "drop")),
            ("neutral", ("good", "bad", "ignore")),
        ):
            self._need(name, getattr(self, name) in allowed, f"be one of {allowed}")
        if self.head_epochs == self.epochs == 0:
            raise ValueError(
                "`epochs` (0) must be > 0 where `head_epochs` is 0, because nothing "
                "would be trained. Set one of them."
            )

    def _need(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            default = next(f.default for f in fields(self) if f.name == name)
            raise ValueError(
                f"`{name}` ({getattr(self, name)!r}) must {rule}. The default is "
                f"{default!r}: set --{name.replace('_', '-')} {default}."
            )


def accumulation(settings: PRMTrainingSettings, num_processes: int) -> int:
    """Works out forward passes per update.

    Raises:
        ValueError: the batch is no multiple of what the processes take at once.
    """
    at_once = settings.micro_batch_size * num_processes
    if settings.batch_size % at_once:
        raise ValueError(
            f"`batch_size` ({settings.batch_size}) must be a multiple of "
            f"`micro_batch_size` ({settings.micro_batch_size}) times the processes "
            f"({num_processes}), because gradients of whole passes are summed. Set "
            f"--batch-size {max(at_once, settings.batch_size // at_once * at_once)}."
        )
    return settings.batch_size // at_once


OWN_ARGUMENTS: Mapping[str, str] = {
    "learning_rate": "lr or head_lr",
    "num_train_epochs": "epochs or head_epochs",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "batch_size",
    "weight_decay": "weight_decay",
    "adam_beta2": "adam_beta2",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "lr_scheduler",
    "max_grad_norm": "max_grad_norm",
    "seed": "seed",
    "logging_steps": "log_every",
    "output_dir": "out",
    "deepspeed": "deepspeed",
}
"""Arguments of transformers' `TrainingArguments` that have a setting here."""
