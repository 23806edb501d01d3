"""`pure-rllib verify`: how well the verifier does on labelled pairs of answers."""

import argparse
import json
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Measures the verifier on labelled pairs of answers.

A file of pairs holds rows {"gold": text, "pred": text, "expected": true or false};
other keys are ignored. Printed are precision, recall, the outcomes, the time, and each
row where verifier and label differ:

  pure-rllib verify --pairs pairs.json --workers 2 --json verdicts.json
"""


def add_command(commands: Any) -> None:
    """Adds `verify` to the subparsers of the command line."""
    parser = commands.add_parser(
        "verify",
        help="measure the verifier on labelled pairs of answers",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_run)
    parser.add_argument(
        "--pairs", required=True, metavar="FILE", help="JSON, JSON Lines or Parquet"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    parser.add_argument(
        "--limit-s", type=float, default=5.0, metavar="S", help="seconds per pair"
    )
    parser.add_argument("--json", metavar="OUT", help="write all figures to a file")
    parser.add_argument(
        "--traceback", action="store_true", help="show tracebacks of errors"
    )


def _run(options: argparse.Namespace) -> int:
    # The command line shows its help without waiting for these.
    from pure_rllib.cli.labelled_pairs import load_pairs, measure, summary
    from pure_rllib.rewards.verifier.math_verifier import MathVerifier

    out = None if options.json is None else Path(options.json)
    if out is not None and not out.parent.is_dir():
        raise ValueError(
            f"`--json` ({out}) must lie in a folder that exists, because the figures "
            "are written there. Make the folder or set another path."
        )
    pairs = load_pairs(options.pairs)
    with MathVerifier(options.workers, options.limit_s) as verifier:
        report = measure(verifier, pairs)
    print(
        f"{len(pairs)} pairs of {options.pairs}, {options.workers} worker(s), "
        f"limit {options.limit_s:g} s"
    )
    print(summary(report))
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")
    return 0
