"""Marks of responses that game their rewards."""

import numpy as np
import pytest

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.credit.text_metrics import repetition
from pure_rllib.hacking.flags import (
    HACKS,
    HackLimits,
    flag_group,
    has_chatter,
    has_empty_step,
    has_text_after_answer,
    repeated_sentences,
)
from pure_rllib.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()
SPLITTER = StepSplitter.from_tokenizer(TOKENIZER)


def ids_of(text: str) -> np.ndarray:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return np.array([*ids, TOKENIZER.eos_token_id])


def marks(*texts: str, limits: HackLimits | None = None) -> list[frozenset[str]]:
    ids = [ids_of(text) for text in texts]
    return flag_group(texts, ids, [repetition(t) for t in texts], SPLITTER, limits)


GOOD = "First we add two and three.\n\nThat makes five.\n\nSo \\boxed{5}."


def test_an_ordinary_response_bears_no_mark() -> None:
    assert marks(GOOD, GOOD) == [frozenset(), frozenset()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two steps.\n\n\n\nMore.\n\n\\boxed{5}", {"empty_step"}),
        (" ", {"empty_step", "one_step", "short"}),
        ("So the answer to all of it is \\boxed{5}.", {"one_step"}),
        ("So.\n\n\\boxed{5}", {"short"}),
        ("now 0+2. " * 12 + "\n\n\\boxed{5}", {"repetition"}),
        (GOOD + "\n\nI double it to get ten.", {"after_answer"}),
        ("We add two and three.\n\nHappy Birthday, and thank you!", {"chatter"}),
    ],
)
def test_each_mark_alone(text: str, expected: set[str]) -> None:
    assert marks(GOOD, text, GOOD)[1] == expected


def test_every_mark_is_tested_and_named() -> None:
    assert len(HACKS) == 6


def test_limits_move_the_marks() -> None:
    half = GOOD[: len(GOOD) // 2]
    assert "short" not in marks(GOOD, half, GOOD)[1]
    assert "short" in marks(GOOD, half, GOOD, limits=HackLimits(short=0.6))[1]


@pytest.mark.parametrize("value", [0.0, 1.0, True, "a"])
def test_a_limit_is_a_share(value: object) -> None:
    with pytest.raises(ValueError, match=r"`short` .* must be in \(0, 1\)"):
        HackLimits(short=value)  # type: ignore[arg-type]


def test_a_separator_at_the_end_leaves_no_empty_step() -> None:
    assert not has_empty_step(ids_of("A.\n\nB.\n\n"), SPLITTER)
    assert has_empty_step(ids_of("\n\nA."), SPLITTER)


@pytest.mark.parametrize(
    ("text", "is_after"),
    [
        ("no box, much text", False),
        (r"so $\boxed{5}$.", False),
        (r"\[ \boxed{5} \]", False),
        (r"\boxed{1} and \boxed{2}.", False),
        (r"\boxed{1}, \boxed{2}", False),
        (r"\boxed{5} apples", True),
        (r"$\boxed{5}$ cm", True),
        ("\\boxed{5}\n\nnow 2+3", True),
        (r"\boxed{5} Thanks! \boxed{5}", True),
    ],
)
def test_text_after_the_answer(text: str, is_after: bool) -> None:
    assert has_text_after_answer(text) is is_after


@pytest.mark.parametrize(
    ("text", "is_chatter"),
    [
        ("Thank you.", True),
        ("THANKS", True),
        ("Thx!", True),
        ("Merry Christmas", True),
        ("You're welcome!", True),
        ("I hope this helps", True),
        ("Thanksgiving falls on a Thursday", False),
        ("We are done, as 2 + 2 = 4.", False),
    ],
)
def test_chatter(text: str, is_chatter: bool) -> None:
    assert has_chatter(text) is is_chatter


def test_repeated_sentences_by_hand() -> None:
    # Six sentences, two of them distinct.
    assert repeated_sentences("A b. C. a  B. c.\nA b.\n\nC.") == pytest.approx(4 / 6)
    assert repeated_sentences("A. A. A.") == 0.0
