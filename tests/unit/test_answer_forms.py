"""Each rule of notation with answers that it accepts and answers that it must not."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pure_rllib.data.boxed import answer_text, gold_text
from pure_rllib.rewards.verifier.checker import Checker

# Rule: pairs of gold answer and boxed answer that are the same, and that differ.
NOTATIONS = json.loads(Path(__file__).with_name("answer_notations.json").read_text())

# Gold answer and a response without a box.
BARE_SAME = [
    ("60", "The angle is [60]."),
    ("2.5", "so the length is [2.5 cm]"),
    ("40/9", "The answer is 4 4/9."),
    ("2", "4 4/9 2"),
    ("5", "11\u20285/6"),
    ("1000.99", "1 000,99"),
    ("1000.99", "1,000.99$"),
    ("1000", "1 000"),
    ("5", "5 apples"),
    ("-40/9", "-4 4/9"),
    ("1234", "#### 1,234"),
    ("5", "x = 5"),
    ("Evelyn", "Evelyn"),
    ("C", "C) 12"),
    ("4a-2", "4a-2"),
    (r"12\frac{3}{5}", r"12\frac{3}{5}"),
    ("2490", "2500 - 10 = 2490"),
    ("18", "She makes $18."),
    ("3", "1+2"),
    ("[3,4]", "[3, 4]"),
    ("143", r"$$\boxed{20}$$ \boxed{143}"),
    ("1,2", r"\boxed{1} or \boxed{2}"),
    ("42", "42<|im_end|>"),
]
BARE_DIFFERENT = [
    ("90", "The angle is [60]."),
    ("4", "The answer is 4 4/9."),
    ("71/6", "11\u20285/6"),
    ("0", "0 1/0"),
    ("4a-2", "4"),
    ("2500", "2500 - 10 = 2490"),
    ("12", "[3,4]"),
    ("no", "yes"),
    ("20", r"$$\boxed{20}$$ \boxed{143}"),
]


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    yield Checker()


def verdict(checker: Checker, gold: str, response: str) -> str:
    text = answer_text(response, max_chars=10_000)
    return checker.check(gold_text(gold), text)["outcome"]


def boxed_verdicts(checker: Checker, pairs: list[list[str]]) -> dict[tuple, str]:
    return {
        (gold, answer): verdict(checker, gold, f"So \\boxed{{{answer}}}.")
        for gold, answer in pairs
    }


@pytest.mark.parametrize("rule", NOTATIONS)
def test_one_value_in_two_notations_is_correct(checker: Checker, rule: str):
    found = boxed_verdicts(checker, NOTATIONS[rule]["same"])
    assert len(found) >= 5
    assert {p: outcome for p, outcome in found.items() if outcome != "correct"} == {}


@pytest.mark.parametrize("rule", NOTATIONS)
def test_two_values_in_like_notations_are_not(checker: Checker, rule: str):
    found = boxed_verdicts(checker, NOTATIONS[rule]["different"])
    assert len(found) >= 2
    assert {p: outcome for p, outcome in found.items() if outcome == "correct"} == {}


def test_responses_without_a_box(checker: Checker):
    same = {pair: verdict(checker, *pair) for pair in BARE_SAME}
    assert set(same.values()) == {"correct"}, same
    different = {pair: verdict(checker, *pair) for pair in BARE_DIFFERENT}
    assert "correct" not in different.values(), different


def test_an_answer_is_correct_against_itself(checker: Checker):
    golds = {gold for rule in NOTATIONS.values() for gold, _ in rule["same"]}
    found = {gold: verdict(checker, gold, f"\\boxed{{{gold}}}") for gold in golds}
    assert {gold for gold, outcome in found.items() if outcome != "correct"} == set()


def test_golds_that_cannot_be_read_are_told(checker: Checker):
    for gold in ("5", r"\text{Evelyn}", "C", "[1,2)", r"1\frac{1}{2}", "x = 5"):
        assert checker.check(gold_text(gold), None)["outcome"] == "correct", gold
    for gold in ("", "4 5/0", r"\frac{1}{", "???"):
        assert checker.check(gold_text(gold), None)["outcome"] == "error", gold
