"""The generated solutions of chain arithmetic."""

from pure_rllib.arithmetic.checker import ERROR_KINDS, check_steps
from pure_rllib.arithmetic.task import split_of
from pure_rllib.prm_training.arithmetic_steps import arithmetic_steps


def test_steps_are_labelled_and_hold_errors_of_every_kind():
    solutions = arithmetic_steps(600)
    assert len(solutions) == 600
    kinds = set()
    for s in solutions:
        check = check_steps(s.prompt, s.steps)
        assert s.labels == tuple(check.labels)
        kinds |= set(check.kinds)
    assert kinds >= set(ERROR_KINDS)
    flawed = sum(False in s.labels for s in solutions) / len(solutions)
    assert 0.4 < flawed < 0.8
    assert arithmetic_steps(20) == solutions[:20]


def test_no_solution_is_of_a_held_out_problem():
    assert {split_of(s.prompt) for s in arithmetic_steps(300)} == {"train"}
