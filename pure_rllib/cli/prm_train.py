"""`pure-rllib prm-train`: a process reward model from labelled steps."""

import argparse
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pure_rllib.prm_training.settings import PRMTrainingSettings

DESCRIPTION = """\
Trains a process reward model (PRM) on solutions whose steps are labelled.

First the new head alone is trained, then all weights. Data may be as TRL stores it
(prompt, completions, labels), PRM800K's phase files, or JSON Lines with prompt, steps
and labels; a folder of such files, or several sources:

  pure-rllib prm-train --model Qwen/Qwen2.5-Math-7B --data steps/ --out prm/
  torchrun --nproc-per-node 8 -m pure_rllib.cli prm-train ... --deepspeed zero2.json

With --rollouts RUN the responses that a run kept are labelled by its environment's
checker, or by --labeller, and added: train, let a policy hack the PRM, train on. A run
that is named twice counts twice.

The folder is loaded by `prm: FOLDER` in an experiment. `--trainer` takes any argument
of transformers' TrainingArguments, such as bf16=true or gradient_checkpointing=true.
"""


def add_command(commands: Any) -> None:
    """Adds `prm-train` to the subparsers of the command line."""
    parser = commands.add_parser(
        "prm-train",
        help="train a process reward model on labelled steps",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_run)
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="labelled steps; embedded:arithmetic-steps are made on the spot",
    )
    parser.add_argument(
        "--rollouts",
        nargs="+",
        default=[],
        metavar="RUN",
        help="folders of runs whose responses are labelled and added",
    )
    parser.add_argument(
        "--labeller",
        metavar="MODULE:NAME",
        help="labels rollouts; default: the exact checker of the run's environment",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="new folder of the PRM"
    )
    parser.add_argument(
        "--ensemble",
        type=int,
        default=1,
        metavar="N",
        help="train N PRMs with seeds that follow each other, in DIR/0, DIR/1, ...; "
        "`prm: [DIR/0, DIR/1]` scores with their minimum (default: 1, in DIR)",
    )
    for setting in fields(PRMTrainingSettings):
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=type(setting.default),
            default=setting.default,
            required=setting.default == "",
            metavar=type(setting.default).__name__.upper(),
            # argparse formats help texts with %.
            help=f"{setting.metadata['help']} (default: {setting.default})".replace(
                "%", "%%"
            ),
        )
    parser.add_argument("--deepspeed", metavar="FILE", help="DeepSpeed config")
    parser.add_argument(
        "--trainer",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any argument of transformers' TrainingArguments",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show tracebacks of errors"
    )


def _run(options: argparse.Namespace) -> int:
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"`--out` ({out}) must be a new or empty folder, because the PRM's files "
            "would mix with those in it. Choose another --out."
        )
    if not (options.data or options.rollouts):
        raise ValueError(
            "`--data` or `--rollouts` must be given, because a PRM is trained on "
            "labelled steps."
        )
    if options.labeller is not None and not options.rollouts:
        raise ValueError(
            f"`--labeller` ({options.labeller}) must be left out without --rollouts, "
            "because --data is labelled already."
        )
    if options.ensemble < 1:
        raise ValueError(
            f"`--ensemble` ({options.ensemble}) must be >= 1, because so many PRMs are "
            "trained. Leave it out for one."
        )
    extra = dict(_parse(text) for text in options.trainer)
    settings = PRMTrainingSettings(
        **{f.name: getattr(options, f.name) for f in fields(PRMTrainingSettings)}
    )
    settings.check()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The command line shows its help without waiting for these.
    from transformers.utils.logging import disable_progress_bar

    from pure_rllib.cli.labelled_rollouts import labelled_rollouts
    from pure_rllib.models.loading import EMBEDDED, resolve_model
    from pure_rllib.prm_training.arguments import stage_arguments
    from pure_rllib.prm_training.arithmetic_steps import (
        ARITHMETIC_STEPS,
        arithmetic_steps,
    )
    from pure_rllib.prm_training.measure import measure_held_out
    from pure_rllib.prm_training.solutions import read_solutions
    from pure_rllib.prm_training.trainer import read_base, train, training_rows

    disable_progress_bar()
    # Wrong arguments are found before data and weights are read.
    list(stage_arguments(settings, out, options.deepspeed, extra))
    if settings.model.startswith(EMBEDDED):
        settings = replace(settings, model=resolve_model(settings.model))
    base = read_base(settings)
    neutral: Any = settings.neutral
    solutions = [
        solution
        for source in options.data
        for solution in (
            arithmetic_steps()
            if source == ARITHMETIC_STEPS
            else read_solutions(source, neutral=neutral)
        )
    ]
    for run in options.rollouts:
        rollouts = labelled_rollouts(run, options.labeller)
        print(
            f"{len(rollouts.solutions)} different responses of {run}, "
            f"{rollouts.num_left_out} left out"
        )
        solutions += rollouts.solutions
    rows, held_out = training_rows(settings, base, solutions)
    is_first = os.environ.get("RANK", "0") == "0"
    if is_first:
        print(
            f"{len(rows.rows)} solutions with {rows.num_labels} labelled steps "
            f"({rows.num_cut} cut, {rows.num_dropped} dropped, {len(held_out)} held "
            f"out), format {base.format.name}",
            flush=True,
        )
    several = options.ensemble > 1
    folders = [out / str(k) for k in range(options.ensemble)] if several else [out]
    for k, folder in enumerate(folders):
        train(
            replace(settings, seed=settings.seed + k),
            base,
            rows,
            folder,
            deepspeed=options.deepspeed,
            extra=extra,
            report=lambda line: print(line, flush=True),
        )
        if is_first and held_out:
            print(measure_held_out(folder, held_out, settings.template))
    if is_first:
        names = " ".join(map(str, folders))
        print(
            f"PRM written to {names}; measure it with pure-rllib prm-eval --prm {names}"
        )
    return 0


def _parse(text: str) -> tuple[str, Any]:
    import yaml

    name, found, value = text.partition("=")
    if not found or not name:
        raise ValueError(
            f"`--trainer` ({text}) must read NAME=VALUE, such as bf16=true."
        )
    return name, yaml.safe_load(value)
