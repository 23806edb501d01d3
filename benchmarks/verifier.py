"""Verifications per second: through worker processes, and by Math-Verify directly.

The direct way is one process that calls Math-Verify's parse and verify pair by pair,
without time limits. Both ways check the same pairs, in turns; the best round counts.
Rounds, not seconds, can be compared: the machine is the same for both.

    python benchmarks/verifier.py [--pairs FILE.json] [--answers long] [--workers 1 2]

Made-up answers are usual, long or hard ones. With labelled pairs it first prints
precision and recall of Math-Verify alone, called in several ways, and per kind of the
rows how many pairs both judge wrong; `--rounds 0` prints only that.
"""

import argparse
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import math_verify
from math_verify import parse

from pure_rllib.cli.verify import load_pairs, measure
from pure_rllib.data.boxed import gold_text
from pure_rllib.reporting.tables import format_table
from pure_rllib.rewards.base import Verdict
from pure_rllib.rewards.verifier.math_verifier import MathVerifier

# How gold answer and response are parsed before Math-Verify compares them.
WAYS: dict[str, Callable[[str, str], tuple[Any, Any]]] = {
    "defaults": lambda gold, pred: (parse(gold), parse(pred)),
    "gold in a box": lambda gold, pred: (parse(gold_text(gold)), parse(pred)),
    "both in a box": lambda gold, pred: (
        parse(gold_text(gold)),
        parse(gold_text(pred)),
    ),
    "gold in a box, first match": lambda gold, pred: (
        parse(gold_text(gold), extraction_mode="first_match"),
        parse(pred, extraction_mode="first_match"),
    ),
}


class MathVerifyAlone:
    """A verifier that calls Math-Verify directly.

    Args:
        way: parses a pair.
    """

    def __init__(self, way: Callable[[str, str], tuple[Any, Any]]):
        self.way = way

    def verify(self, golds: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """See `Verifier.verify`."""
        return [
            Verdict("correct" if math_verify.verify(*self.way(g, r)) else "incorrect")
            for g, r in zip(golds, responses, strict=True)
        ]


def print_quality(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints precision and recall on labelled pairs, for each way of calling."""
    print(f"Math-Verify alone, {len(rows)} pairs")
    print(f"{'parsed with':28}{'precision':>10}{'recall':>8}")
    for name, way in WAYS.items():
        report = measure(MathVerifyAlone(way), rows)
        shares = [report[key] or 0.0 for key in ("precision", "recall")]
        print(f"{name:28}{shares[0]:10.3f}{shares[1]:8.3f}")


def print_kinds(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints per kind what the verifier and Math-Verify alone get wrong."""
    with MathVerifier(time_limit_s=20.0) as verifier:
        ours = measure(verifier, rows)["kinds"]
    alone = measure(MathVerifyAlone(WAYS["gold in a box"]), rows)["kinds"]
    table = [
        [kind, total, accepted, refused, *alone[kind][1:]]
        for kind, (total, accepted, refused) in ours.items()
    ]
    table.append(
        ["all", *(sum(column) for column in list(zip(*table, strict=True))[1:])]
    )
    headers = ["kind", "pairs", "accepted", "refused", "alone: accepted", "refused"]
    print(format_table(headers, table, markdown=True))


def make_long_pairs(count: int) -> tuple[list[str], list[str]]:
    """Makes sums, lists and matrices of dozens of parts."""
    rng = random.Random(1)
    golds, responses = [], []
    for _ in range(count):
        numbers = [rng.randint(2, 999) for _ in range(25)]
        gold = rng.choice(
            [
                "+".join(f"{n}x^{{{i}}}" for i, n in enumerate(numbers, 2)),
                ", ".join(map(str, numbers)),
                r"\begin{pmatrix}"
                + r"\\".join("&".join(map(str, numbers[i::5])) for i in range(5))
                + r"\end{pmatrix}",
                "+".join(
                    rf"\frac{{{n}}}{{{i}}}\sqrt{{{i}}}"
                    for i, n in enumerate(numbers, 2)
                ),
            ]
        )
        changed = gold.replace(str(numbers[7]), str(numbers[7] + 1), 1)
        golds.append(gold)
        responses.append(f"\\boxed{{{gold if rng.random() < 0.5 else changed}}}")
    return golds, responses


def make_hard_pairs(count: int) -> tuple[list[str], list[str]]:
    """Makes pairs that only algebra can tell apart."""
    rng = random.Random(2)
    golds, responses = [], []
    for _ in range(count):
        a, b, n = rng.randint(2, 99), rng.randint(2, 99), rng.randint(3, 9)
        gold, same, other = rng.choice(
            [
                (rf"\sin({n}x)^2", rf"1-\cos^2({n}x)", rf"1-\cos^2({n + 1}x)"),
                (f"(x+{a})^{n}", f"(x+{a})^{{{n - 1}}}(x+{a})", f"(x+{a})^{{{n + 1}}}"),
                (
                    rf"\sqrt{{{a}}}+\sqrt{{{b}}}",
                    rf"\sqrt{{{a + b}+2\sqrt{{{a * b}}}}}",
                    "3",
                ),
                (
                    rf"\frac{{1}}{{\sqrt{{{a}}}+{b}}}",
                    rf"({b}+\sqrt{{{a}}})^{{-1}}",
                    "x",
                ),
                (rf"e^{{{n}\ln x}}", f"x^{n}", f"x^{{{n + 1}}}"),
                (
                    rf"\binom{{{a + 50}}}{{{n}}}",
                    rf"\frac{{({a + 50})!}}{{{n}!({a + 50 - n})!}}",
                    "1",
                ),
            ]
        )
        golds.append(gold)
        responses.append(f"\\boxed{{{same if rng.random() < 0.5 else other}}}")
    return golds, responses


def make_pairs(count: int) -> tuple[list[str], list[str]]:
    """Makes gold answers and boxed responses such as those of mathematics data sets."""
    rng = random.Random(0)
    golds, responses = [], []
    for _ in range(count):
        a, b = rng.randint(2, 9999), rng.randint(2, 99)
        gold = rng.choice(
            [
                f"{a}",
                rf"\frac{{{a}}}{{{b}}}",
                rf"{b}\sqrt{{{a}}}",
                rf"x^2+{b}x-{a}",
                rf"\left({a},{b}\right)",
                rf"[{b},{a + 100})",
                rf"\frac{{{a}\pi}}{{{b}}}",
            ]
        )
        answer = gold if rng.random() < 0.5 else gold.replace(str(b), str(b + 1))
        golds.append(gold)
        responses.append(f"So the answer is $\\boxed{{{answer}}}$.")
    return golds, responses


MAKERS = {"usual": make_pairs, "long": make_long_pairs, "hard": make_hard_pairs}


def directly(golds: list[str], responses: list[str]) -> float:
    """Returns the seconds that Math-Verify takes when it is called directly."""
    start = time.perf_counter()
    for gold, response in zip(golds, responses, strict=True):
        parsed = math_verify.parse(gold_text(gold), parsing_timeout=None)
        answer = math_verify.parse(response, parsing_timeout=None)
        math_verify.verify(parsed, answer, timeout_seconds=None)
    return time.perf_counter() - start


def through_workers(
    verifier: MathVerifier, golds: list[str], responses: list[str]
) -> float:
    """Returns the seconds that a verifier takes, its workers started."""
    start = time.perf_counter()
    verifier.verify(golds, responses)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", help="labelled pairs; default: made up")
    parser.add_argument("--answers", choices=MAKERS, default="usual", help="made up")
    parser.add_argument("--count", type=int, default=1500, help="pairs to make up")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    if args.pairs is None:
        golds, responses = MAKERS[args.answers](args.count)
    else:
        rows = load_pairs(args.pairs)
        print_quality(rows)
        if "kind" in rows[0]:
            print_kinds(rows)
        golds, responses = ([row[key] for row in rows] for key in ("gold", "pred"))
    if args.rounds == 0:
        return
    # Equal pairs are checked once by a verifier: they would make it look fast.
    distinct = list(dict.fromkeys(zip(golds, responses, strict=True)))
    golds, responses = ([pair[i] for pair in distinct] for i in range(2))

    best = {"directly": float("inf")}
    directly(golds[:50], responses[:50])  # warm-up
    for _ in range(args.rounds):
        best["directly"] = min(best["directly"], directly(golds, responses))
        for num_workers in args.workers:
            name = f"{num_workers} worker(s)"
            with MathVerifier(num_workers, 60.0, cache_size=0) as verifier:
                for n in range(num_workers):
                    verifier.verify(["0"] * (n + 1), [f"\\boxed{{{n}}}"] * (n + 1))
                # A few more than workers, so that each of them starts.
                warm = [str(n) for n in range(8 * num_workers)]
                verifier.verify(warm, [f"\\boxed{{{n}}}" for n in warm])
                seconds = through_workers(verifier, golds, responses)
            best[name] = min(best.get(name, float("inf")), seconds)
    print(f"{len(golds)} distinct pairs, best of {args.rounds} rounds")
    print(f"{'':14}{'pairs/s':>10}{'ratio':>8}{'per worker':>12}")
    for name, seconds in best.items():
        ratio = best["directly"] / seconds
        num = 1 if name == "directly" else int(name.split()[0])
        print(f"{name:14}{len(golds) / seconds:10.0f}{ratio:8.2f}{ratio / num:12.2f}")


if __name__ == "__main__":
    main()
