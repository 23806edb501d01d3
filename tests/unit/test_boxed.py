"""Tests of finding the final answer in a text."""

import time

import pytest

from pure_rllib.data.boxed import answer_text, find_boxes, gold_text, last_box


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"so \boxed{5}.", ["5"]),
        (r"\boxed{\frac{1}{2}} or \fbox{ 0.5 }", [r"\frac{1}{2}", "0.5"]),
        (r"\boxed{a \boxed{b} c}", [r"a \boxed{b} c"]),
        (r"\boxed{\boxed{a} \boxed{b}} \boxed{c}", [r"\boxed{a} \boxed{b}", "c"]),
        (r"\boxed{3} and \boxed{4", ["3"]),
        (r"\boxed{{{ \boxed{4}", ["4"]),
        (r"}}} \boxed {7}", ["7"]),
        (r"\boxed{}", [""]),
        (r"\boxed 5", []),
        ("no box {5}", []),
        ("", []),
    ],
)
def test_outermost_complete_boxes_are_found(text: str, contents: list[str]):
    assert [content for _, _, content in find_boxes(text)] == contents
    assert last_box(text) == (contents[-1] if contents else None)


def test_positions_span_the_whole_box():
    text = r"a \boxed{b{c}} d"
    ((start, end, _),) = find_boxes(text)
    assert text[start:end] == r"\boxed{b{c}}"


@pytest.mark.parametrize(
    "text",
    [
        "{" * 300_000,
        r"\boxed{" * 100_000,
        r"\boxed{" * 100_000 + "}" * 100_000,
        r"\boxed{1}" * 50_000,
    ],
)
def test_hostile_texts_take_linear_time(text: str):
    start = time.process_time()
    answer_text(text, max_chars=1000)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"x=3 so $\boxed{ 5 }$. Bye 9.", r"\boxed{5}"),
        # Far from one another: the last one counts.
        (r"\boxed{1}" + "." * 80 + r"\boxed{2}", r"\boxed{2}"),
        # Close to one another: one answer of two parts.
        (r"in \boxed{1} and \boxed{2}!", r"\boxed{1} and \boxed{2}"),
        (r"a) \boxed{1} b) \boxed{2}", r"\boxed{1} b) \boxed{2}"),
        (r"\boxed{1}, y=\boxed{2}", r"\boxed{1}, y=\boxed{2}"),
        # More than that between them: the later one corrects the other.
        (r"\boxed{1}. No, \boxed{2}", r"\boxed{2}"),
        (r"\boxed{1}, so \boxed{2}", r"\boxed{2}"),
        # The same answer twice.
        (r"\boxed{1} \boxed{1}", r"\boxed{1}"),
        (r"\boxed{}", ""),
        (r"\boxed{" + "1" * 30 + "}", ""),
        ("the answer is 12345678901234567890", "345678901234567890"),
        ("   ", ""),
    ],
)
def test_answer_text(response: str, expected: str):
    # Only the text without any box is cut, to its last characters.
    max_chars = 18 if "12345" in response else 29
    assert answer_text(response, max_chars=max_chars) == expected


def test_many_equal_boxes_are_one_answer_within_the_limit():
    assert answer_text(r"\boxed{7} " * 5000, max_chars=100) == r"\boxed{7}"


def test_boxed_only_takes_nothing_else():
    assert answer_text("so it is 5", max_chars=100, boxed_only=True) == ""
    assert answer_text(r"\boxed{5}", max_chars=100, boxed_only=True) == r"\boxed{5}"


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ("5", r"\boxed{5}"),
        (r" $\frac12$ ", r"\boxed{\frac12}"),
        (r"\(x\)", r"\boxed{x}"),
        (r"the \boxed{5}", r"the \boxed{5}"),
        ("$1$ or $2$", r"\boxed{$1$ or $2$}"),
        ("$5", r"\boxed{$5}"),
        ("3 + 4 = 7\n#### 7", r"\boxed{7}"),
        (r"\\frac{1}{2}", r"\boxed{\frac{1}{2}}"),
        ("", ""),
    ],
)
def test_gold_text(gold: str, expected: str):
    assert gold_text(gold) == expected
