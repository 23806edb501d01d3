"""The two stages of PRM training on transformers' Trainer."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    set_seed,
)

from pure_rllib.data.prompts import PromptTemplate, make_template
from pure_rllib.models.loading import check_model_folder, read_config, resolve_model
from pure_rllib.prm_training.arguments import PRMTrainingArguments
from pure_rllib.prm_training.dataset import Collator, StepRows, step_rows
from pure_rllib.prm_training.losses import StepLoss
from pure_rllib.prm_training.progress import StageProgress
from pure_rllib.prm_training.solutions import (
    LabelledSolution,
    prepared,
    split_by_prompt,
)
from pure_rllib.rewards.prm.formats import PRMFormat, format_ids, make_format
from pure_rllib.rewards.prm.rows import (
    PRMInputBuilder,
    PRMTextBuilder,
    make_builder,
)

SETTINGS_FILE = "prm_training.json"
_LABELS = {0: "bad", 1: "good"}
_ARCHITECTURE = "ForTokenClassification"


@dataclass(frozen=True, slots=True)
class PRMBase:
    """What a PRM starts from, before weights are loaded.

    Attributes:
        path: folder or hub id.
        format: how steps are shown.
        builder: of its rows; holds its tokenizer.
        columns: class numbers of good and bad.
        template: makes the policy's prompt of a problem.
        is_prm: whether it has a trained head of two labels already.
    """

    path: str
    format: PRMFormat
    builder: PRMInputBuilder | PRMTextBuilder
    columns: tuple[int, int]
    template: PromptTemplate
    is_prm: bool


def read_base(arguments: PRMTrainingArguments) -> PRMBase:
    """Checks the base model without loading weights.

    Raises:
        ValueError: there is no model, or template or format do not fit it.
    """
    template = make_template(arguments.template)
    files = check_model_folder(resolve_model(arguments.model), "model")
    config = read_config(files)
    architecture = next(iter(config.get("architectures") or []), "")
    if architecture.endswith("ForProcessRewardModel"):
        raise ValueError(
            f"`model` ({arguments.model}) must be a language model or a token "
            f"classifier, because a head of its own class ({architecture}) would be "
            "lost. Set the model that it was made of."
        )
    tokenizer = AutoTokenizer.from_pretrained(files.path)
    is_prm = architecture.endswith(_ARCHITECTURE)
    if not is_prm:
        config |= {"num_labels": 2, "id2label": _LABELS}
    read_as = make_format(None, architecture=_ARCHITECTURE, tokenizer=tokenizer)
    name = None if arguments.format == "auto" else arguments.format
    chosen = make_format(name, architecture=_ARCHITECTURE, tokenizer=tokenizer)
    if chosen.head != "labels" or chosen.name != read_as.name:
        raise ValueError(
            f"`format` ({chosen.name}) must be {read_as.name}, because a token "
            "classifier with this tokenizer is read so when it is loaded. Set --format "
            f"{read_as.name}."
        )
    separator_id, columns = format_ids(chosen, tokenizer, config)
    builder = make_builder(
        chosen,
        tokenizer,
        separator_id=separator_id,
        policy_tokenizer=None,
        input_format="pure_rllib",
        retokenize=True,
        vocab_size=config.get("text_config", config)["vocab_size"],
    )
    return PRMBase(files.path, chosen, builder, columns, template, is_prm)


def training_rows(
    arguments: PRMTrainingArguments,
    base: PRMBase,
    solutions: Sequence[LabelledSolution],
) -> tuple[StepRows, list[LabelledSolution]]:
    """Prepares what is trained on and what is held out."""
    taken = list(solutions)
    if arguments.limit and arguments.limit < len(taken):
        taken = random.Random(arguments.seed).sample(taken, arguments.limit)
    kept, held_out = split_by_prompt(taken, arguments.holdout, arguments.seed)
    if not kept:
        raise ValueError(
            f"`holdout` ({arguments.holdout}) must leave problems to train on, because "
            f"all {len(taken)} solutions would be held out. Set --holdout 0.05."
        )
    rows = step_rows(
        prepared(kept, cast(Any, arguments.after_first_error)),
        base.builder,
        template=base.template,
        columns=base.columns,
        max_length=arguments.max_length,
    )
    return rows, held_out


def train(
    arguments: PRMTrainingArguments, base: PRMBase, rows: StepRows
) -> dict[str, Any]:
    """Trains a PRM and writes it, with its tokenizer, after each stage.

    Args:
        arguments: of both stages; afterwards `ProcessRewardModel.from_pretrained` loads
            the PRM from their `output_dir`.
        base: from `read_base`.
        rows: from `training_rows`.

    Returns:
        The settings, the data's counts and each stage's history of losses; also in
        `prm_training.json`.
    """
    out = Path(arguments.output_dir)
    path, history = base.path, {}
    tokenizer = base.builder.tokenizer
    pad = tokenizer.pad_token_id
    loss_name: Any = arguments.loss
    loss = StepLoss(loss_name, arguments.taylor_order, arguments.label_smoothing_factor)
    # Before each model: DeepSpeed's ZeRO 3 loads weights straight into shards.
    for stage, stage_arguments in arguments.stages():
        model = _load(path, base, arguments)
        if stage == "head":
            body = f"{model.base_model_prefix}."
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not name.startswith(body))
        progress = StageProgress(stage)
        trainer = Trainer(
            model=model,
            args=stage_arguments,
            data_collator=Collator(base.builder.separator_id if pad is None else pad),
            train_dataset=rows.rows,  # type: ignore[arg-type]
            compute_loss_func=loss,
            processing_class=tokenizer,
            callbacks=[progress],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        finally:
            progress.close()
        history[stage] = [entry for entry in trainer.state.log_history if entry]
        trainer.save_model(str(out))
        trainer.accelerator.wait_for_everyone()
        path = str(out)
    summary = {
        "settings": arguments.settings,
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


def _load(path: str, base: PRMBase, arguments: PRMTrainingArguments) -> Any:
    set_seed(arguments.seed)
    config = AutoConfig.from_pretrained(path)
    if not base.is_prm:
        # A new head in the first stage; in the second it is there already.
        config.id2label = dict(_LABELS)
        config.label2id = {label: number for number, label in _LABELS.items()}
    config.classifier_dropout = arguments.head_dropout
    config.use_cache = False
    return AutoModelForTokenClassification.from_pretrained(
        path, config=config, dtype="float32"
    )
