import random
from dataclasses import replace

import pytest

from pure_rllib.arithmetic.task import (
    TASK_M20B,
    TASK_Y,
    TASK_Z,
    ArithmeticProblems,
    ArithmeticTask,
    Chain,
    is_correct,
    split_of,
    steps_of,
)


def test_prompts_are_worked_from_left_to_right_modulo_ten():
    # 3-2=1, 1-2=-1 -> 9, 9+4=13 -> 3
    plain = replace(TASK_Z, filler=0.0)
    steps = plain.solution_steps("3-2-2+4=?", random.Random(0))
    assert steps == ["3-2=1", "1-2=9", "9+4=3", "\\boxed{3}"]


def test_a_chain_prints_as_the_prompt_it_was_read_from():
    assert Chain.parse("3-12+4=?").prompt == "3-12+4=?"
    assert Chain.parse("3-12+4=?").value(20) == 15


@pytest.mark.parametrize("prompt", ["", "3=?", "3-2", "3*2=?", "a+1=?"])
def test_other_texts_are_not_prompts(prompt):
    with pytest.raises(ValueError, match="chain arithmetic"):
        Chain.parse(prompt)


@pytest.mark.parametrize("task", [TASK_Z, TASK_Y, TASK_M20B])
def test_problems_follow_the_task_and_repeat_exactly(task):
    for index in range(50):
        problem = task.problem(index, seed=3)
        assert problem == task.problem(index, seed=3)
        chain = Chain.parse(problem.prompt)
        low, high = task.num_operations
        assert low <= len(chain.operations) <= high
        assert all(1 <= operand <= 5 for _, operand in chain.operations)
        assert problem.answer == str(chain.value(task.modulus))
    assert task.problem(0, seed=3) != task.problem(0, seed=4)


def test_no_training_problem_is_ever_held_out():
    training = {TASK_Z.problem(i, seed=s).prompt for i in range(300) for s in (0, 1)}
    held_out = {p.prompt for p in TASK_Z.held_out(200, seed=0)}
    assert len(held_out) == 200
    assert not training & held_out
    assert all(split_of(prompt) == "train" for prompt in training)


def test_filler_adds_plans_and_half_as_many_recaps():
    rng = random.Random(0)
    steps = [
        step
        for i in range(400)
        for step in TASK_Y.solution_steps(TASK_Y.problem(i).prompt, rng)
    ]
    operations = sum(step[0].isdigit() for step in steps)
    plans = sum(step.startswith("now") for step in steps) / operations
    recaps = sum(step.startswith("chk") for step in steps) / operations
    # Geometric: p / (1 - p) = .3 / .7 = .43 and .15 / .85 = .18 per operation.
    assert plans == pytest.approx(0.43, abs=0.05)
    assert recaps == pytest.approx(0.18, abs=0.05)


def test_a_problem_source_is_finite_and_stable():
    source = ArithmeticProblems(TASK_Z, num_problems=20, seed=1)
    assert len(source) == source.num_answers == 20
    assert [source[i] for i in range(20)] == [TASK_Z.problem(i, 1) for i in range(20)]
    held_out = ArithmeticProblems(TASK_Z, num_problems=20, seed=1, split="held_out")
    assert [held_out[i] for i in range(20)] == TASK_Z.held_out(20, seed=1)
    with pytest.raises(IndexError):
        source[20]


def test_answers_are_read_from_the_last_box():
    problem = TASK_M20B.problem(0)
    assert is_correct(problem, f"1+1=2\n\n\\boxed{{{problem.answer}}}\n")
    assert not is_correct(problem, f"\\boxed{{{problem.answer}}}\n\n1+1=2")
    assert steps_of("1+1=2\n\n\n\n \n\n\\boxed{2}") == ["1+1=2", "\\boxed{2}"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_operations", (4, 3)),
        ("operators", "*"),
        ("operands", (1, 10)),
        ("modulus", 1),
        ("filler", 1.0),
    ],
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises(ValueError, match=f"`{setting}`"):
        ArithmeticTask(**{setting: value})
