"""Repetition and reflection."""

from itertools import pairwise, takewhile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pure_rllib.credit.text_metrics import (
    num_text_steps,
    reflection,
    reflection_counts,
    repetition,
)


def slow_repetition(text):
    """Sorts all suffixes and compares neighbours character by character."""
    n = len(text)
    if n <= 1:
        return 0.0
    suffixes = sorted(text[i:] for i in range(n))
    common = 0
    for left, right in pairwise(suffixes):
        both = zip(left, right, strict=False)
        common += len(list(takewhile(lambda pair: pair[0] == pair[1], both)))
    return 2 * common / (n * (n + 1))


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab\n\U0001f600", max_size=40))
@example("a" * 33)
@example("ab" * 16)
def test_repetition_equals_the_plain_way(text):
    assert repetition(text) == slow_repetition(text)


def test_repetition_by_hand():
    # Suffixes of "aaa": a, aa, aaa; common prefixes 1 + 2, of 6 substrings.
    assert repetition("aaa") == pytest.approx(3 / 6)
    assert repetition("abc") == 0.0
    assert repetition("a") == repetition("") == 0.0


def test_reflection():
    text = "Wait, let's check. HOWEVER, I retry\nand try again; await, please. Waiting."
    assert reflection(text) == 6  # wait, twice: "await," counts as it does upstream
    assert reflection_counts(text.lower()) == [2, 0, 1, 1, 0, 1, 0, 1, 0]
    assert sum(reflection_counts(text)) == 4


def test_num_text_steps():
    assert num_text_steps("a\n\nb\n\n") == 3
