"""`pure-rllib prm-eval`: how good a process reward model is."""

import argparse
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Measures a process reward model (PRM), of any format but the generative one, on what is
given:

  --processbench  ProcessBench's folder or a file of it: is the first error found?
  --prmbench      a file of PRMBench: is each step judged right?
  --steps         labelled steps as for prm-train: accuracy and calibration
  --arithmetic    held-out chain arithmetic, by kind of error

  pure-rllib prm-eval --prm prm/ --processbench ProcessBench/ --out prm_quality/

With --gate, figures of --steps and --arithmetic are held against what PRMs needed to
survive RL as the only reward; the exit status is 1 if one is missed.

Written are prm_eval.json, a figure, and every score in predictions.jsonl.
"""


def add_command(commands: Any) -> None:
    """Adds `prm-eval` to the subparsers of the command line."""
    parser = commands.add_parser(
        "prm-eval",
        help="measure a process reward model on its benchmarks",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_run)
    parser.add_argument(
        "--prm",
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="folder, hub id or embedded:NAME; of several the lowest score counts",
    )
    parser.add_argument("--processbench", metavar="PATH")
    parser.add_argument("--prmbench", metavar="FILE")
    parser.add_argument("--steps", nargs="+", default=[], metavar="SOURCE")
    parser.add_argument("--arithmetic", action="store_true")
    parser.add_argument(
        "--gate", action="store_true", help="say whether RL is likely to hack the PRM"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for figures and scores")
    parser.add_argument(
        "--threshold-subset",
        metavar="NAME",
        help="subset of ProcessBench that the threshold is chosen on (default: gsm8k)",
    )
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="fixed instead, in [-1, 1]"
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="score N solutions per subset, drawn at random",
    )
    parser.add_argument(
        "--template", default="plain", help="prompt template: plain, pure, or a text"
    )
    parser.add_argument("--neutral", default="good", choices=["good", "bad", "ignore"])
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", default="auto", choices=dtypes)
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument(
        "--prm-format",
        type=_format,
        metavar="FORMAT",
        help="a name, or a mapping as in docs/rewards.md (default: by checkpoint)",
    )


def _run(options: argparse.Namespace) -> int:
    _check(options)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The command line shows its help without waiting for these.
    from transformers.utils.logging import disable_progress_bar

    from pure_rllib.data.prompts import make_template
    from pure_rllib.models.loading import resolve_model
    from pure_rllib.prm_training.benchmarks import read_prmbench, read_processbench
    from pure_rllib.prm_training.gate import gate_checks, gate_summary
    from pure_rllib.prm_training.measure import (
        measure,
        measure_on_arithmetic,
        summary,
        write,
    )
    from pure_rllib.prm_training.solutions import read_solutions
    from pure_rllib.reporting.progress import working
    from pure_rllib.rewards.prm.model import ProcessRewardModel
    from pure_rllib.rewards.prm.scoring import MinimumScorer

    disable_progress_bar()
    template = make_template(options.template)
    bench = read_processbench(options.processbench) if options.processbench else []
    processbench = _drawn(bench, options.limit)
    prmbench = read_prmbench(options.prmbench) if options.prmbench else []
    names = list(dict.fromkeys(item.subset for item in processbench))
    if options.threshold_subset not in (None, *names):
        raise ValueError(
            f"`--threshold-subset` ({options.threshold_subset}) must be one of "
            f"{names}, because the threshold is chosen on its rows. Leave it out."
        )
    steps = [
        solution
        for source in options.steps
        for solution in read_solutions(
            source, neutral=options.neutral, setting="--steps"
        )
    ]
    if options.limit and len(steps) > options.limit:
        steps = random.Random(0).sample(steps, options.limit)
    prms: list[ProcessRewardModel] = []
    for name in options.prm:
        prms.append(
            ProcessRewardModel.from_pretrained(
                resolve_model(name),
                # All score what the first one's tokenizer encodes.
                tokenizer=prms[0].tokenizer if prms else None,
                prm_format=options.prm_format,
                dtype=options.dtype,
                device=options.device,
            )
        )
    scorer = MinimumScorer(prms)
    measured = measure(
        scorer,
        prms[0].tokenizer,
        template=template,
        processbench=processbench,
        prmbench=_drawn(prmbench, options.limit),
        steps=steps,
        threshold_subset=options.threshold_subset,
        threshold=options.threshold,
    )
    if options.arithmetic:
        with working("measuring on chain arithmetic"):
            measured.figures["arithmetic"] = measure_on_arithmetic(prms)
    print(summary(measured.figures))
    num_overlong = scorer.counts["overlong"]
    if num_overlong:
        print(f"{num_overlong} solutions are longer than the PRM's context")
    if options.out is not None:
        settings = {k: v for k, v in vars(options).items() if k != "function"}
        write(measured, Path(options.out), settings)
        print(f"written to {options.out}")
    if not options.gate:
        return 0
    checks = gate_checks(measured.figures)
    print("\n" + gate_summary(checks))
    return 0 if all(check.passed for check in checks) else 1


def _check(options: argparse.Namespace) -> None:
    if not (options.steps or options.arithmetic):
        if options.gate:
            raise ValueError(
                "`--gate` needs --steps or --arithmetic, because it looks at how well "
                "each step is judged."
            )
        if not (options.processbench or options.prmbench):
            raise ValueError(
                "`--processbench`, `--prmbench`, `--steps` or `--arithmetic` must be "
                "given, because a PRM is measured on labelled solutions."
            )
    if options.threshold is not None and not -1.0 <= options.threshold <= 1.0:
        raise ValueError(
            f"`--threshold` ({options.threshold}) must lie in [-1, 1], because scores "
            "do. Set it to 0.0, or leave it out to have it chosen."
        )
    if options.threshold is not None and options.threshold_subset is not None:
        raise ValueError(
            f"`--threshold-subset` ({options.threshold_subset}) must be left out with "
            "--threshold, because nothing is chosen then."
        )
    if options.limit is not None and options.limit < 1:
        raise ValueError(
            f"`--limit` ({options.limit}) must be >= 1. Leave it out to score all."
        )
    if options.out is not None and Path(options.out).is_file():
        raise ValueError(f"`--out` ({options.out}) must be a folder, and is a file.")


def _format(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        # argparse names the option and the text.
        raise argparse.ArgumentTypeError(f"{text!r} is no name and no JSON") from error


def _drawn(items: Sequence[Any], limit: int | None) -> list[Any]:
    """Draws up to `limit` items of each subset, always the same ones."""
    if limit is None:
        return list(items)
    subsets: dict[str, list[Any]] = {}
    for item in items:
        subsets.setdefault(item.subset, []).append(item)
    rng = random.Random(0)
    return [
        item
        for part in subsets.values()
        for item in (part if len(part) <= limit else rng.sample(part, limit))
    ]
