import random

import numpy as np
import pytest

from pure_rllib.arithmetic.checker import check_steps, exact_scorer
from pure_rllib.arithmetic.task import TASK_M20B, TASK_Y, TASK_Z
from pure_rllib.rewards.base import ScoringRequest, StepScorer


def kinds_of(prompt, text):
    return check_steps(prompt, text.split("|")).kinds


@pytest.mark.parametrize("task", [TASK_Z, TASK_Y, TASK_M20B])
def test_every_worked_solution_is_right(task):
    rng = random.Random(0)
    for index in range(200):
        problem = task.problem(index)
        steps = task.solution_steps(problem.prompt, rng)
        check = check_steps(problem.prompt, steps, modulus=task.modulus)
        assert check.labels.all(), (problem.prompt, steps, check.kinds)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        # The prompt is 3-2+4+1=?: values 3, 1, 5, 6.
        ("now 3-2|now 3-2|3-2=1|chk 3-2=1|chk 3-2=1", ["right"] * 5),
        ("3-2=2|2+4=6|6+1=7|\\boxed{7}", ["result", "right", "right", "right"]),
        ("3-2=2|chk 3-2=2|chk 3-2=1", ["result", "bad_recap", "bad_recap"]),
        ("4-2=2|2+4=6", ["operand_a", "right"]),
        ("3-5=8|8+4=2", ["operand_b", "right"]),
        ("3+2=5|5+4=9", ["operator", "right"]),
        ("3+4=7|7+1=8|\\boxed{8}", ["skipped", "right", "right"]),
        ("3-2=1|3-2=1|1+4=5", ["right", "repeated", "right"]),
        ("3-2=1|1+4=5|5+1=6|6+1=7", ["right"] * 3 + ["extra_operation"]),
        ("now 1+4|3-2=1|now 3-2|now 1+4", ["bad_plan", "right", "bad_plan", "right"]),
        ("chk 3-2=1|3-2=1|\\boxed{1}", ["bad_recap", "right", "early_box"]),
        (
            "3-2=1|1+4=5|5+1=6|\\boxed{5}|\\boxed{6}",
            ["right"] * 3 + ["wrong_box", "after_box"],
        ),
        ("|3-2|now 3-2=1|3-2=11|\\boxed{}|3-2=01", ["malformed"] * 6),
    ],
)
def test_each_kind_of_error_is_named(text, kinds):
    check = check_steps("3-2+4+1=?", text.split("|"))
    assert list(check.kinds) == kinds
    assert check.labels.tolist() == [kind == "right" for kind in kinds]


def test_a_repeated_operand_is_not_a_repetition():
    text = "1+2=3|3+2=5|5+2=7|\\boxed{7}"
    assert kinds_of("1+2+2+2=?", text) == ("right",) * 4
    assert kinds_of("1+2+2+2=?", "1+2=3|1+2=3") == ("right", "repeated")


def test_the_exact_scorer_gives_one_for_right_and_minus_one_for_wrong():
    scorer = exact_scorer()
    assert isinstance(scorer, StepScorer)
    steps = ("3-2=1", "1+4=6", "6+1=7")
    empty = np.zeros(0, np.int64)
    request = ScoringRequest("3-2+4+1=?", None, empty, empty, empty, steps)
    assert scorer.score([request])[0].tolist() == [1.0, -1.0, 1.0]
