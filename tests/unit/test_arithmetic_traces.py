import random
from collections import Counter

import pytest

from pure_rllib.arithmetic.checker import ERROR_KINDS, check_steps
from pure_rllib.arithmetic.task import TASK_M20B, TASK_Y, TASK_Z
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.arithmetic.traces import IGNORED, TraceMaker


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TASK_Z)


@pytest.fixture(scope="module")
def maker(tokenizer):
    return TraceMaker(TASK_Z, tokenizer.get_vocab())


def test_a_trace_is_the_prompt_and_each_step_with_a_newline(tokenizer, maker):
    trace = maker.trace("3-2+4=?", ["3-2=2", "\\boxed{2}"])
    assert tokenizer.decode(trace.ids) == "3-2+4=?3-2=2\n\\boxed{2}\n"
    # 3 - 2 + 4 = ? 3 - 2 = 2 n  \boxed{ 2 } n
    # the steps end at places 12 (wrong result) and 16 (box too early)
    assert [i for i, label in enumerate(trace.labels) if label != IGNORED] == [12, 16]
    assert [trace.labels[12], trace.labels[16]] == [0, 0]
    assert trace.kinds == ("result", "early_box")


@pytest.mark.parametrize("task", [TASK_Z, TASK_Y, TASK_M20B])
def test_corrupt_traces_have_errors_of_every_kind(task):
    tokenizer = build_tokenizer(task)
    maker, rng = TraceMaker(task, tokenizer.get_vocab()), random.Random(0)
    kinds: Counter[str] = Counter()
    for index in range(2000):
        prompt = task.problem(index).prompt
        steps = maker.corrupt_steps(prompt, rng, 0.45)
        trace = maker.trace(prompt, steps)
        assert len(trace.ids) == len(trace.labels)
        assert trace.kinds == check_steps(prompt, steps, modulus=task.modulus).kinds
        assert tokenizer.decode(trace.ids) == prompt + "\n".join([*steps, ""])
        kinds.update(trace.kinds)
    assert set(ERROR_KINDS) < set(kinds)
    assert all(kinds[kind] >= 30 for kind in ERROR_KINDS), kinds
    assert 0.4 < kinds["right"] / kinds.total() < 0.75


def test_traces_without_corruption_are_right(maker):
    rng = random.Random(0)
    for index in range(200):
        prompt = TASK_Z.problem(index).prompt
        trace = maker.trace(prompt, maker.corrupt_steps(prompt, rng, 0.0))
        assert set(trace.kinds) == {"right"}
