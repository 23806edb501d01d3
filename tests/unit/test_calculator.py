"""The calculator: calls, their results, answers, and what is wrong with them."""

from typing import Any

import pytest

from pure_rllib.envs.calculator import Calculator, CalculatorEnv

SEED = 3


def played(*turns: str, noise: bool = False) -> tuple[list[Any], Any]:
    """What the environment said to each turn, and its last info."""
    env = Calculator(noise)
    env.reset(seed=SEED)
    steps = [env.step(turn) for turn in turns]
    return [step[:3] for step in steps], steps[-1][4]


def asked() -> str:
    return Calculator().reset(seed=SEED)[0].removesuffix("=?")


def test_a_call_and_its_result_earn_all() -> None:
    product = eval(asked())
    steps, info = played(f"calc({asked()})", f"\\boxed{{{product}}}")
    assert steps == [(str(product), 1.0, False), ("", 1.0, True)]
    assert info == {"verifiable_reward": 1.0, "parts": {"calls": 1}}


def test_another_call_is_answered_but_earns_nothing() -> None:
    steps, info = played("calc(10*11)", "\\boxed{110}")
    assert steps == [("110", -1.0, False), ("", -1.0, True)]
    assert info["verifiable_reward"] == 0.0


@pytest.mark.parametrize(
    "call", ["calc(", "calc()", "calc(1+1)", "calc(1*1))", f"calc({'9' * 5000}*2)"]
)
def test_11_a_call_that_cannot_be_read_is_told_so(call: str) -> None:
    (step,), _ = played(call)
    assert step == ("error", -1.0, False)


@pytest.mark.parametrize("answer", ["", "7", "\\boxed{}", f"\\boxed{{{'9' * 5000}}}"])
def test_11_what_is_no_answer_ends_the_game(answer: str) -> None:
    (step,), info = played(answer)
    assert step == ("", -1.0, True)
    assert info["outcome"] == "no_answer" and info["parts"] == {"calls": 0}


def test_noise_does_not_depend_on_the_call() -> None:
    (first, *_), _ = played("calc(10*11)", noise=True)
    (second, *_), _ = played("calc(99*99)", noise=True)
    assert first[0] == second[0] != "110"


def test_games_fit_their_budget() -> None:
    env = CalculatorEnv()
    for text in ("99*99=?", "calc(99*99)", "\\boxed{9801}", "error"):
        ids = env.tokenizer.encode(text)
        assert len(ids) <= 8 and env.tokenizer.decode(ids) == text
