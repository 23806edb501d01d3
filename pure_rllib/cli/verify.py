"""`pure-rllib verify`: how well the verifier does on labelled pairs of answers."""

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pure_rllib.data.boxed import last_box
from pure_rllib.data.files import FILE_SUFFIXES, read_rows
from pure_rllib.data.rows import ANSWER_FIELDS
from pure_rllib.reporting.tables import format_table

if TYPE_CHECKING:
    from pure_rllib.rewards.base import Verifier

DESCRIPTION = """\
Measures the verifier on labelled pairs of answers.

A file of pairs holds rows {"gold": text, "pred": text, "expected": true or false};
a "kind" is counted apart, other keys are ignored. Printed are precision, recall, the
outcomes, the time, and each row where verifier and label differ:

  pure-rllib verify --pairs pairs.json --workers 2 --json verdicts.json

Or it makes, of the gold answers of files of problems, rewrites that keep the value,
which should be accepted, and edits that change it, which should be refused:

  pure-rllib verify --stress data/math500/test.jsonl data/gsm8k/test.jsonl --seed 0
"""
_KEYS: dict[str, type] = {"gold": str, "pred": str, "expected": bool}
_MAX_SHOWN_CHARS = 60


def add_command(commands: Any) -> None:
    """Adds `verify` to the subparsers of the command line."""
    parser = commands.add_parser(
        "verify",
        help="measure the verifier on labelled pairs of answers",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_run)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--pairs", metavar="FILE", help="labelled pairs: JSON, JSON Lines or Parquet"
    )
    source.add_argument(
        "--stress",
        nargs="+",
        metavar="FILE",
        help="problems whose gold answers are rewritten and edited",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the changes of --stress"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    parser.add_argument(
        "--limit-s", type=float, default=5.0, metavar="S", help="seconds per pair"
    )
    parser.add_argument("--json", metavar="OUT", help="write all figures to a file")


def _run(options: argparse.Namespace) -> int:
    # The command line shows its help without waiting for these.
    from pure_rllib.reporting.progress import working
    from pure_rllib.rewards.verifier.math_verifier import MathVerifier

    out = None if options.json is None else Path(options.json)
    if out is not None and not out.parent.is_dir():
        raise ValueError(
            f"`--json` ({out}) must lie in a folder that exists, because the figures "
            "are written there. Make the folder or set another path."
        )
    if options.stress:
        golds = [gold for file in options.stress for gold in load_golds(file)]
        with MathVerifier(options.workers, options.limit_s) as verifier:
            figures = measure_stress(verifier, golds, seed=options.seed)
        print(stress_summary(figures))
        if out is not None:
            out.write_text(json.dumps(figures, indent=1) + "\n")
        return 0
    pairs = load_pairs(options.pairs)
    with (
        MathVerifier(options.workers, options.limit_s) as verifier,
        working(f"verifying {len(pairs)} pairs"),
    ):
        report = measure(verifier, pairs)
    print(
        f"{len(pairs)} pairs of {options.pairs}, {options.workers} worker(s), "
        f"limit {options.limit_s:g} s"
    )
    print(summary(report))
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def load_pairs(source: str) -> list[dict[str, Any]]:
    """Reads labelled pairs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or a row misses a key or has a wrong type.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"`--pairs` ({source}) must be a file, because the labelled pairs are read "
            f"from it; there is none. Set it to one of {', '.join(FILE_SUFFIXES)}."
        )
    rows = read_rows(str(path), split="train", subset=None, limit=None)
    for number, row in enumerate(rows):
        for key, kind in _KEYS.items():
            if not isinstance(row.get(key), kind):
                given = f"{row[key]!r:.80}" if key in row else "missing"
                raise ValueError(
                    f"`{key}` ({given}) of row {number} in {source} must be a "
                    f"{kind.__name__}, because a pair is a gold answer, a response "
                    "and whether it is right. Set gold, pred and expected in each row."
                )
    return rows


def load_golds(source: str) -> list[str]:
    """Reads the gold answers of a file of problems, each once.

    Args:
        source: rows with one of the usual fields of answers, or a worked `solution`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or no row has an answer.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"`--stress` ({source}) must be files, because gold answers are read from "
            f"them; there is none. Set it to some of {', '.join(FILE_SUFFIXES)}."
        )
    golds = []
    for row in read_rows(str(path), split="train", subset=None, limit=None):
        fields = [row[name] for name in ANSWER_FIELDS if row.get(name) is not None]
        answer = fields[0] if fields else last_box(str(row.get("solution", "")))
        if isinstance(answer, list):
            answer = answer[0] if len(answer) == 1 else None
        if answer is not None:
            golds.append(str(answer).rpartition("####")[2].strip())
    if not golds:
        raise ValueError(
            f"`--stress` ({source}) must hold gold answers, because they are changed; "
            f"no row has one. Name the field {' or '.join(ANSWER_FIELDS)}, or solution."
        )
    return list(dict.fromkeys(golds))


def measure_stress(
    verifier: "Verifier", golds: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Verifies changed gold answers.

    Returns:
        For `rewrites` and `edits` the `share` that was judged right, `counts` of right
        and all per change, and the `wrong` ones. All of it fits JSON.
    """
    from pure_rllib.rewards.verifier.stress import stress

    rewrites, edits = stress(verifier, golds, seed=seed)
    return {
        "num_golds": len(golds),
        "seed": seed,
        **{
            name: {
                "share": report.share(report.total),
                "counts": {k: [report.right[k], n] for k, n in report.total.items()},
                "wrong": report.wrong,
            }
            for name, report in (("rewrites", rewrites), ("edits", edits))
        },
    }


def stress_summary(figures: Mapping[str, Any]) -> str:
    """Lays out what `measure_stress` returned."""
    lines = [f"{figures['num_golds']} gold answers, seed {figures['seed']}"]
    for name, right in (("rewrites", "accepted"), ("edits", "refused")):
        found = figures[name]
        rows = [[change, *counts] for change, counts in sorted(found["counts"].items())]
        lines += ["", f"{name}: {found['share']:.4f} {right}"]
        lines += [format_table(["change", right, "of"], rows)]
        lines += [" | ".join(map(_shown, wrong)) for wrong in found["wrong"]]
    return "\n".join(lines)


def measure(verifier: "Verifier", pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Verifies labelled pairs and compares the verdicts with the labels.

    Args:
        verifier: gives the verdicts.
        pairs: rows with `gold`, `pred` and `expected`.

    Returns:
        `precision` and `recall` (None where nothing is divided by), `outcomes`, counts,
        `seconds` with the start of the workers, the `wrong` rows, and per `kind` of the
        rows, where they name one, how many there are and how many are wrongly accepted
        and refused. All of it fits JSON.
    """
    from pure_rllib.rewards.base import OUTCOMES

    start = time.perf_counter()
    verdicts = verifier.verify([p["gold"] for p in pairs], [p["pred"] for p in pairs])
    seconds = time.perf_counter() - start
    accepted = [verdict.outcome == "correct" for verdict in verdicts]
    num_both = sum(a and p["expected"] for a, p in zip(accepted, pairs, strict=True))
    num_expected = sum(pair["expected"] for pair in pairs)
    counts = Counter(verdict.outcome for verdict in verdicts)
    kinds: dict[str, list[int]] = {}
    for a, pair in zip(accepted, pairs, strict=True):
        if "kind" in pair:
            kind = kinds.setdefault(str(pair["kind"]), [0, 0, 0])
            kind[0] += 1
            kind[1] += a and not pair["expected"]
            kind[2] += pair["expected"] and not a
    return {
        "num_pairs": len(pairs),
        "num_expected": num_expected,
        "num_correct": sum(accepted),
        "num_both": num_both,
        "precision": num_both / sum(accepted) if any(accepted) else None,
        "recall": num_both / num_expected if num_expected else None,
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
        "seconds": seconds,
        "kinds": kinds,
        "wrong": [
            {"row": number, **{key: pair[key] for key in _KEYS}}
            | {"outcome": verdict.outcome, "answer": verdict.answer}
            for number, (pair, verdict) in enumerate(zip(pairs, verdicts, strict=True))
            if (verdict.outcome == "correct") != pair["expected"]
        ],
    }


def summary(report: Mapping[str, Any]) -> str:
    """Lays out what `measure` returned."""
    shares = [
        "-" if report[name] is None else f"{report[name]:.4f}"
        for name in ("precision", "recall")
    ]
    num_false = report["num_correct"] - report["num_both"]
    lines = [
        f"precision  {shares[0]}  ({num_false} of {report['num_correct']} accepted "
        "are labelled false)",
        f"recall     {shares[1]}  ({report['num_expected'] - report['num_both']} of "
        f"{report['num_expected']} labelled true are not accepted)",
        "outcomes   " + ", ".join(f"{k} {v}" for k, v in report["outcomes"].items()),
        f"time       {report['seconds']:.2f} s, start of the workers included",
    ]
    if report["kinds"]:
        rows = [[kind, *counts] for kind, counts in report["kinds"].items()]
        headers = ["kind", "pairs", "wrongly accepted", "wrongly refused"]
        lines += ["", format_table(headers, rows)]
    if report["wrong"]:
        rows = [
            [w["row"], str(w["expected"]).lower(), w["outcome"]]
            + [_shown(w[key]) for key in ("gold", "pred", "answer")]
            for w in report["wrong"]
        ]
        headers = ["row", "expected", "outcome", "gold", "pred", "read as"]
        lines += ["", format_table(headers, rows)]
    return "\n".join(lines)


def _shown(text: str | None) -> str:
    # The end, where answers are; control characters must not reach a terminal.
    shown = (
        "-"
        if text is None
        else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    )
    return shown if len(shown) <= _MAX_SHOWN_CHARS else "…" + shown[-_MAX_SHOWN_CHARS:]
