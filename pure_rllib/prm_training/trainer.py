"""The two stages of PRM training on transformers' Trainer."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)

from pure_rllib.data.prompts import PromptTemplate, make_template
from pure_rllib.models.loading import check_model_folder, read_config
from pure_rllib.prm_training.arguments import stage_arguments
from pure_rllib.prm_training.dataset import Collator, StepRows, step_rows
from pure_rllib.prm_training.losses import StepLoss
from pure_rllib.prm_training.settings import PRMTrainingSettings
from pure_rllib.prm_training.solutions import (
    LabelledSolution,
    prepared,
    split_by_prompt,
)
from pure_rllib.rewards.prm.formats import PRMFormat, format_ids, make_format
from pure_rllib.rewards.prm.model import make_builder

SETTINGS_FILE = "prm_training.json"
_LABELS = {0: "bad", 1: "good"}
_ARCHITECTURE = "ForTokenClassification"
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PRMBase:
    """What a PRM starts from, before weights are loaded.

    Attributes:
        path: folder or hub id.
        tokenizer: its own.
        format: how steps are shown.
        separator_id: follows each step.
        columns: class numbers of good and bad.
        vocab_size: ids that have an embedding.
        template: makes the policy's prompt of a problem.
        is_prm: whether it has a trained head of two labels already.
    """

    path: str
    tokenizer: Any
    format: PRMFormat
    separator_id: int
    columns: tuple[int, int]
    vocab_size: int
    template: PromptTemplate
    is_prm: bool


def read_base(settings: PRMTrainingSettings) -> PRMBase:
    """Checks the settings and the base model without loading weights.

    Raises:
        ValueError: a setting is wrong, there is no model, or the format does not fit.
    """
    settings.check()
    make_loss(settings)
    template = make_template(settings.template)
    files = check_model_folder(settings.model, "model")
    config = read_config(files)
    architecture = next(iter(config.get("architectures") or []), "")
    if architecture.endswith("ForProcessRewardModel"):
        raise ValueError(
            f"`model` ({settings.model}) must be a language model or a token "
            f"classifier, because a head of its own class ({architecture}) would be "
            "lost. Set the model that it was made of."
        )
    tokenizer = AutoTokenizer.from_pretrained(files.path)
    is_prm = architecture.endswith(_ARCHITECTURE)
    if not is_prm:
        config |= {"num_labels": 2, "id2label": _LABELS}
    read_as = make_format(None, architecture=_ARCHITECTURE, tokenizer=tokenizer)
    name = None if settings.format == "auto" else settings.format
    chosen = make_format(name, architecture=_ARCHITECTURE, tokenizer=tokenizer)
    if chosen.head != "labels" or chosen.name != read_as.name:
        raise ValueError(
            f"`format` ({chosen.name}) must be {read_as.name}, because a token "
            "classifier with this tokenizer is read so when it is loaded. Set --format "
            f"{read_as.name}."
        )
    separator_id, columns = format_ids(chosen, tokenizer, config)
    return PRMBase(
        path=files.path,
        tokenizer=tokenizer,
        format=chosen,
        separator_id=separator_id,
        columns=columns,
        vocab_size=config.get("text_config", config)["vocab_size"],
        template=template,
        is_prm=is_prm,
    )


def make_loss(settings: PRMTrainingSettings) -> StepLoss:
    """Returns the loss that the settings name."""
    name: Any = settings.loss
    return StepLoss(name, settings.taylor_order, settings.label_smoothing)


def training_rows(
    settings: PRMTrainingSettings,
    base: PRMBase,
    solutions: Sequence[LabelledSolution],
) -> tuple[StepRows, list[LabelledSolution]]:
    """Prepares what is trained on and what is held out."""
    taken = list(solutions)
    if settings.limit and settings.limit < len(taken):
        taken = random.Random(settings.seed).sample(taken, settings.limit)
    after_first_error: Any = settings.after_first_error
    kept, held_out = split_by_prompt(taken, settings.holdout, settings.seed)
    if not kept:
        raise ValueError(
            f"`holdout` ({settings.holdout}) must leave problems to train on, because "
            f"all {len(taken)} solutions would be held out. Set --holdout 0.05."
        )
    builder = make_builder(
        base.format,
        base.tokenizer,
        separator_id=base.separator_id,
        policy_tokenizer=None,
        input_format="pure_rllib",
        retokenize=True,
        vocab_size=base.vocab_size,
    )
    rows = step_rows(
        prepared(kept, after_first_error),
        builder,
        template=base.template,
        columns=base.columns,
        max_length=settings.max_length,
    )
    return rows, held_out


def train(
    settings: PRMTrainingSettings,
    base: PRMBase,
    rows: StepRows,
    out: Path,
    *,
    deepspeed: str | None = None,
    extra: Mapping[str, Any] | None = None,
    report: Report = print,
) -> dict[str, Any]:
    """Trains a PRM and writes it, with its tokenizer, after each stage.

    Args:
        settings: all settings.
        base: from `read_base`.
        rows: from `training_rows`.
        out: a folder; afterwards `ProcessRewardModel.from_pretrained` loads it.
        deepspeed: a DeepSpeed config file, passed to the Trainer.
        extra: further arguments of the Trainer.
        report: takes lines of progress.

    Returns:
        The settings, the data's counts and each stage's history of losses; also in
        `prm_training.json`.

    Raises:
        ValueError: an argument of the Trainer is wrong.
    """
    path, history = base.path, {}
    # Before each model: DeepSpeed's ZeRO 3 loads weights straight into shards.
    for stage, arguments in stage_arguments(settings, out, deepspeed, extra):
        model = _load(path, base, settings)
        if stage == "head":
            _freeze_body(model)
        trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=Collator(_pad_id(base)),
            train_dataset=rows.rows,  # type: ignore[arg-type]
            compute_loss_func=make_loss(settings),
            processing_class=base.tokenizer,
            callbacks=[_Lines(stage, report)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        history[stage] = [entry for entry in trainer.state.log_history if entry]
        trainer.save_model(str(out))
        trainer.accelerator.wait_for_everyone()
        path = str(out)
    summary = {
        "settings": asdict(settings),
        "format": base.format.name,
        "num_rows": len(rows.rows),
        "num_labels": rows.num_labels,
        "num_cut": rows.num_cut,
        "num_dropped": rows.num_dropped,
        "history": history,
    }
    if trainer.is_world_process_zero():
        text = json.dumps(summary, indent=1) + "\n"
        (out / SETTINGS_FILE).write_text(text, encoding="utf-8")
        # What the Trainer writes for itself says nothing more than our file.
        (out / "training_args.bin").unlink(missing_ok=True)
        folder = out / "trainer"
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return summary


def _load(path: str, base: PRMBase, settings: PRMTrainingSettings) -> Any:
    set_seed(settings.seed)
    config = AutoConfig.from_pretrained(path)
    if not base.is_prm:
        # A new head in the first stage; in the second it is there already.
        config.id2label = dict(_LABELS)
        config.label2id = {label: number for number, label in _LABELS.items()}
    config.classifier_dropout = settings.head_dropout
    config.use_cache = False
    return AutoModelForTokenClassification.from_pretrained(
        path, config=config, dtype="float32"
    )


def _freeze_body(model: Any) -> None:
    body = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(body))


def _pad_id(base: PRMBase) -> int:
    pad = base.tokenizer.pad_token_id
    return base.separator_id if pad is None else pad


class _Lines(TrainerCallback):
    """Prints one line per logged update."""

    def __init__(self, stage: str, report: Report):
        self.stage, self.report = stage, report

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        """See `TrainerCallback.on_log`."""
        if state.is_world_process_zero and logs and "loss" in logs:
            self.report(
                f"{self.stage:<4} {state.global_step}/{state.max_steps} | "
                f"loss {float(logs['loss']):.4f} | lr {logs['learning_rate']:.2e} | "
                f"gradient norm {float(logs.get('grad_norm', float('nan'))):.3f}"
            )
