"""Sums in words: problems, solutions and the two checkers of steps."""

import pytest

from pure_rllib.arithmetic.task import split_of
from pure_rllib.arithmetic.word_problems import (
    TruthChecker,
    WayChecker,
    WordTask,
    solution,
    terms_of,
    word_scorer,
)

PROMPT = (
    "Tom has 12 apples, buys 5 more and gives away 3. How many apples does he have?"
)
BOXES = "Mia has 10 coins, gets 3 boxes of 7 and loses 4. How many coins does she have?"


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_solutions_are_right_by_the_checker(num_steps: int) -> None:
    task = WordTask(num_steps)
    for index in range(300):
        problem = task.problem(index)
        *steps, last = solution(problem.prompt).split("\n\n")
        checker = WayChecker(problem.prompt)
        assert len(steps) == num_steps
        assert all(checker.judge(step) for step in [*steps, last])
        assert last == f"The answer is {problem.answer}."
        assert int(problem.answer or "-1") > 0


def test_held_out_problems_are_others_than_those_of_training() -> None:
    task = WordTask()
    held_out = {problem.prompt for problem in task.held_out(100)}
    assert len(held_out) == 100
    assert {split_of(prompt) for prompt in held_out} == {"held_out"}
    assert not held_out & {task.problem(i).prompt for i in range(1000)}


@pytest.mark.parametrize(
    ("prompt", "steps", "by_way", "by_truth"),
    [
        pytest.param(
            PROMPT, ["12 - 3 = 9", "9 + 5 = 14", "The answer is 14."], "+++", "+++"
        ),
        pytest.param(
            PROMPT, ["5 - 3 = 2", "12 + 2 = 14"], "++", "++", id="inner first"
        ),
        pytest.param(PROMPT, ["So 5 + 12 = 17 apples."], "+", "+", id="in words"),
        pytest.param(PROMPT, ["12 + 5 - 3 = 14"], "+", "+", id="two at once"),
        pytest.param(PROMPT, ["The answer is 14."], "+", "-", id="at once"),
        pytest.param(BOXES, ["3 x 7 = 21", "10 + 21 = 31"], "++", "++"),
        pytest.param(
            BOXES, ["7*3=21", "21-4=17", "17+10=27", "answer is 27"], "++++", "++++"
        ),
        # True, and beside the point.
        pytest.param(PROMPT, ["12 + 3 = 15", "The answer is 15."], "--", "++"),
        pytest.param(PROMPT, ["12 + 5 = 17", "The answer is 17."], "+-", "++"),
        pytest.param(BOXES, ["3 + 7 = 10", "10 + 10 = 20"], "--", "++"),
        pytest.param(PROMPT, ["12 + 5 = 17", "12 + 5 = 17"], "+-", "++", id="repeated"),
        # A wrong step leaves all as it was.
        pytest.param(PROMPT, ["12 + 5 = 16", "16 - 3 = 13"], "--", "--", id="false"),
        pytest.param(PROMPT, ["12 + 5 = 16", "12 + 5 = 17"], "-+", "-+", id="mended"),
        pytest.param(
            PROMPT, ["12 + 5 = 17 and 17 + 3 = 20", "12 + 5 = 17"], "-+", "++"
        ),
        pytest.param(PROMPT, ["Let us see.", "3 - 12 = -9"], "--", "--", id="none"),
        pytest.param(
            PROMPT, ["The answer is 14.", "12 + 5 = 17"], "+-", "-+", id="behind"
        ),
    ],
)
def test_steps_are_judged_on_what_stands_before(
    prompt: str, steps: list[str], by_way: str, by_truth: str
) -> None:
    for checker, expected in ((WayChecker, by_way), (TruthChecker, by_truth)):
        scores = word_scorer(checker).function(prompt, tuple(steps))
        assert "".join("+" if score > 0 else "-" for score in scores) == expected


@pytest.mark.parametrize("prompt", ["3-2+4=?", "Tom has apples.", ""])
def test_other_problems_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="sum in words"):
        terms_of(prompt)


def test_an_unknown_number_of_steps_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`num_steps` \(4\) must be one of \[1, 2, 3\]"
    ):
        WordTask(4)
