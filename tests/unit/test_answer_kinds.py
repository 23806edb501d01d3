"""Each kind of answer with pairs that are the same and pairs that are not."""

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from pure_rllib.data.boxed import answer_text, gold_text, last_box
from pure_rllib.data.files import read_rows
from pure_rllib.rewards.base import Verdict
from pure_rllib.rewards.verifier.checker import Checker
from pure_rllib.rewards.verifier.kinds.choice import Choice
from pure_rllib.rewards.verifier.kinds.collection import Collection
from pure_rllib.rewards.verifier.kinds.expression import Expression
from pure_rllib.rewards.verifier.kinds.interval import Region
from pure_rllib.rewards.verifier.kinds.matrix import Matrix
from pure_rllib.rewards.verifier.kinds.number import Number
from pure_rllib.rewards.verifier.kinds.quantity import Quantity
from pure_rllib.rewards.verifier.kinds.relation import Relation
from pure_rllib.rewards.verifier.kinds.text import Text
from pure_rllib.rewards.verifier.latex import BeyondError, UnreadableError
from pure_rllib.rewards.verifier.read import read
from pure_rllib.rewards.verifier.stress import stress

# Rows of a kind, a gold answer, a response and whether it is right.
ROWS = json.loads(Path(__file__).with_name("answer_kinds.json").read_text())
KINDS = list(dict.fromkeys(row["kind"] for row in ROWS))


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    yield Checker()


class InProcess:
    """A verifier without workers, for many pairs."""

    def __init__(self, checker: Checker):
        self.checker = checker

    def verify(self, golds, responses) -> list[Verdict]:
        """See `Verifier.verify`."""
        return [
            Verdict(outcome(self.checker, gold, response))
            for gold, response in zip(golds, responses, strict=True)
        ]


def outcome(checker: Checker, gold: str, response: str):
    text = answer_text(response, max_chars=10_000)
    if not text:
        return "no_answer"
    return checker.check(gold_text(gold), text)["outcome"]


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_of_a_kind(checker: Checker, kind: str):
    rows = [row for row in ROWS if row["kind"] == kind]
    assert {row["expected"] for row in rows} == {True, False}
    wrong = [
        row
        for row in rows
        if (outcome(checker, row["gold"], row["pred"]) == "correct") != row["expected"]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1,234", Number),
        ("2 1/2", Number),
        (r"0.\overline{3}", Number),
        ("52_8", Number),
        (r"5\text{ cm}", Quantity),
        (r"\$5", Quantity),
        ("7 apples", Quantity),
        ("2 n", Expression),
        (r"1+2\mathrm{i}", Expression),
        ("y=2x", Relation),
        ("1<x<2", Relation),
        ("[1,2)", Collection),
        (r"[0,1)\cup(1,2]", Region),
        (r"\{x \mid x>0\}", Region),
        ("1,2", Collection),
        (r"\pm 3", Collection),
        (r"\begin{pmatrix}1\\[2pt]2\end{pmatrix}", Matrix),
        (r"\textbf{(C)} 12", Choice),
        (r"\text{right triangle}", Text),
        ("June 20", Text),
    ],
)
def test_what_kind_a_text_is(text: str, kind: type):
    assert isinstance(read(text), kind)


def test_a_number_keeps_what_was_written():
    assert read("1.50") == Number(Fraction(3, 2), places=2)
    assert read(r"12.5\%") == Number(Fraction(25, 2), places=1, percent=True)
    assert read("4e-2") == Number(Fraction(1, 25))


def test_a_letter_is_a_unit_only_where_it_is_asked_for():
    assert isinstance(read("5 m"), Expression)
    assert isinstance(read("5 m", letters=True), Quantity)
    for product in ("5m", "5 n", "5 x", "5 a t"):
        assert isinstance(read(product, letters=True), Expression), product


@pytest.mark.parametrize("text", ["???", r"\frac{1}{", "4 5/0", "", "2 3", "1 +"])
def test_what_is_no_answer(text: str):
    with pytest.raises(UnreadableError):
        read(text)


@pytest.mark.parametrize(
    "text",
    [r"\sum_{k=1}^n k", r"\int_0^1 x dx", "{" * 50 + "1" + "}" * 50, "1+" * 600 + "1"],
)
def test_what_is_left_to_math_verify(text: str):
    with pytest.raises(BeyondError):
        read(text)


def test_a_bare_list_may_be_a_tuple(checker: Checker):
    ordered = Checker(bare_lists="tuple")
    pairs = [("1,2", "2,1"), ("1,2", "1,2"), (r"\{1,2\}", "2,1"), ("1,2", "1,2,2")]
    found = [
        [outcome(judge, gold, f"\\boxed{{{answer}}}") for gold, answer in pairs]
        for judge in (checker, ordered)
    ]
    assert found[0] == ["correct", "correct", "correct", "correct"]
    assert found[1] == ["incorrect", "correct", "correct", "incorrect"]


def test_of_a_worked_solution_only_what_follows_the_mark_counts(checker: Checker):
    solution = "She has 1,500 - 24 = 1,476 left.\nThat is 3 #### no.\n#### 1,476"
    assert outcome(checker, solution, r"\boxed{1476}") == "correct"
    assert outcome(checker, solution, r"\boxed{24}") == "incorrect"


@pytest.mark.slow
def test_a_single_wrong_step_of_a_changed_gold_is_seen(checker: Checker):
    # Golds of every kind, changed at seeded places: the shares that are aimed at.
    golds = sorted({row["gold"] for row in ROWS})
    rewrites, edits = stress(InProcess(checker), golds, seed=0)
    assert sum(rewrites.total.values()) > 400 and sum(edits.total.values()) > 200
    assert rewrites.share(rewrites.total) >= 0.99, rewrites.wrong
    assert edits.share(edits.total) >= 0.995, edits.wrong


BENCHMARKS = ("aime24", "amc23", "math500", "minerva_math", "olympiadbench", "gsm8k")


def benchmark_golds(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Yields the gold answers of all data files, and the raw fields that hold them."""
    for name in BENCHMARKS:
        for row in read_rows(
            str(folder / name / "test.jsonl"), split="train", subset=None, limit=None
        ):
            solution = row.get("solution")
            solution = solution if isinstance(solution, str) else None
            if name == "gsm8k":
                yield row["answer"].rpartition("####")[2].strip(), row["answer"]
            elif name == "minerva_math":
                yield last_box(solution or "") or "", solution
            elif name == "olympiadbench":
                yield row["final_answer"][0], None
            else:
                yield str(row["answer"]), solution if name == "math500" else None


@pytest.mark.slow
def test_golds_of_the_benchmarks(checker: Checker, shared_dir: Path):
    folder = shared_dir / "data" / "eval"
    if not folder.is_dir():
        pytest.skip(f"no benchmarks at {folder}: their gold answers were not tried")
    golds = list(benchmark_golds(folder))
    # Each against itself, also where the gold is the whole field.
    refused = [
        gold
        for gold, raw in golds
        for field in (gold, raw)
        if field and outcome(checker, field, f"\\boxed{{{gold}}}") != "correct"
    ]
    assert refused == []
    signs_only = [
        gold
        for gold, _ in golds
        if checker.check(gold_text(gold), None)["outcome"] != "correct"
    ]
    # A typing error of the data: a sign is missing between `t` and the interval.
    assert signs_only == ["$t(0,4]$"]
    unique = list(dict.fromkeys(gold for gold, _ in golds))
    rewrites, edits = stress(InProcess(checker), unique, seed=0)
    assert rewrites.share(rewrites.total) >= 0.99, rewrites.wrong
    assert edits.share(edits.total) >= 0.995, edits.wrong


def test_golden_forms(checker: Checker, shared_dir: Path):
    path = shared_dir / "reference" / "golden_eval" / "gold_forms.json"
    if not path.exists():
        pytest.skip(f"no file at {path}: the forms of gold answers were not tried")
    rows = json.loads(path.read_text())
    wrong = [
        row
        for row in rows
        if (outcome(checker, row["gold"], row["pred"]) == "correct") != row["expected"]
    ]
    assert wrong == []
