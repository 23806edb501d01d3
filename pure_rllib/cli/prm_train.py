"""`pure-rllib prm-train`: a process reward model from labelled steps."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pure_rllib.prm_training.arguments import (
        PRMArgumentParser,
        PRMTrainingArguments,
    )
    from pure_rllib.prm_training.solutions import LabelledSolution

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

The folder is loaded by `prm: FOLDER` in an experiment. Any argument of transformers'
TrainingArguments is an option as well, such as --bf16 or --gradient-checkpointing.
"""
_NAME = "prm-train"


def add_command(commands: Any) -> None:
    """Adds `prm-train` to the subparsers of the command line."""
    # Its options are those of transformers, which takes seconds to import: here nothing
    # is an option, and all words go to a parser of their own.
    parser = commands.add_parser(
        _NAME,
        help="train a process reward model on labelled steps",
        prefix_chars="\0",
        add_help=False,
    )
    parser.add_argument("words", nargs=argparse.REMAINDER)
    parser.set_defaults(function=_run)


def _parser() -> "PRMArgumentParser":
    from pure_rllib.prm_training.arguments import PRMArgumentParser

    parser = PRMArgumentParser(
        prog=f"pure-rllib {_NAME}",
        usage="%(prog)s --model FOLDER --data SOURCE [SOURCE ...] --out DIR ...",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
        "--ensemble",
        type=int,
        default=1,
        metavar="N",
        help="train N PRMs with seeds that follow each other, in DIR/0, DIR/1, ...; "
        "`prm: [DIR/0, DIR/1]` scores with their minimum (default: 1, in DIR)",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show tracebacks of errors"
    )
    return parser


def _run(command: argparse.Namespace) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = _parser()
    options = parser.parse_args(command.words)
    command.traceback = options.traceback
    _check(options)
    # The command line shows its help without waiting for these.
    from transformers.utils.logging import disable_progress_bar

    from pure_rllib.prm_training.measure import measure_held_out
    from pure_rllib.prm_training.trainer import read_base, train, training_rows
    from pure_rllib.reporting.progress import working

    disable_progress_bar()
    # Wrong arguments are found before data and weights are read.
    arguments = parser.to_arguments(options)
    list(arguments.stages())
    base = read_base(arguments)
    with working("reading labelled steps"):
        rows, held_out = training_rows(arguments, base, _solutions(options))
    is_first = os.environ.get("RANK", "0") == "0"
    if is_first:
        print(
            f"{len(rows.rows)} solutions with {rows.num_labels} labelled steps "
            f"({rows.num_cut} cut, {rows.num_dropped} dropped, {len(held_out)} held "
            f"out), format {base.format.name}",
            flush=True,
        )
    members = _members(arguments, options.ensemble)
    for member in members:
        train(member, base, rows)
        if is_first and held_out:
            out = Path(member.output_dir)
            print(measure_held_out(out, held_out, member.template))
    if is_first:
        names = " ".join(member.output_dir for member in members)
        print(
            f"PRM written to {names}; measure it with pure-rllib prm-eval --prm {names}"
        )
    return 0


def _check(options: argparse.Namespace) -> None:
    out = Path(options.output_dir)
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


def _solutions(options: argparse.Namespace) -> "list[LabelledSolution]":
    from pure_rllib.cli.labelled_rollouts import labelled_rollouts
    from pure_rllib.prm_training.solutions import read_solutions

    solutions = [
        solution
        for source in options.data
        for solution in read_solutions(source, neutral=options.neutral)
    ]
    for run in options.rollouts:
        labelled, num_left_out = labelled_rollouts(run, options.labeller)
        print(f"{len(labelled)} different responses of {run}, {num_left_out} left out")
        solutions += labelled
    return solutions


def _members(
    arguments: "PRMTrainingArguments", number: int
) -> "list[PRMTrainingArguments]":
    """Returns the arguments of each PRM of an ensemble."""
    if number == 1:
        return [arguments]
    return [
        replace(
            arguments,
            seed=arguments.seed + k,
            output_dir=str(Path(arguments.output_dir) / str(k)),
        )
        for k in range(number)
    ]
