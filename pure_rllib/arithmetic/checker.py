"""An exact checker of the steps of chain arithmetic.

What is legal: the operation that comes next in the prompt, on the running value, with
its true result; a plan (`now a+b`) of that very operation, any number of times; a recap
(`chk a+b=c`) of the operation just done, any number of times; the boxed running value
after the last operation, once, as the last step. Everything else is an error of a kind.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pure_rllib.arithmetic.task import Chain, apply
from pure_rllib.rewards.base import FunctionScorer

Kind = Literal[
    "right",
    "result",
    "operand_a",
    "operand_b",
    "operator",
    "skipped",
    "repeated",
    "extra_operation",
    "bad_plan",
    "bad_recap",
    "early_box",
    "wrong_box",
    "after_box",
    "malformed",
]
ERROR_KINDS: tuple[Kind, ...] = get_args(Kind)[1:]

_STEP = re.compile(r"(now |chk |)(\d+)([+-])(\d+)(?:=(\d+))?")
_BOX = re.compile(r"\\boxed\{(\d+)\}")


class StepChecker:
    """Follows one response step by step.

    A wrong step is taken at its word: what follows is judged on the running value and
    the place in the prompt that were written. A skipped operation moves the place on by
    two, a repeated one not at all.

    Attributes:
        chain: what the prompt asks for.
        value: the running value as written.
        position: how many of the prompt's operations are behind; in [0, operations].
        last: the operation written last, (a, operator, b, c), or None.
        finished: True after a box.
    """

    def __init__(self, prompt: str, modulus: int):
        self.chain = Chain.parse(prompt)
        self.modulus = modulus
        self.value = self.chain.first
        self.position = 0
        self.last: tuple[int, str, int, int] | None = None
        self.finished = False

    @property
    def pending(self) -> tuple[str, int] | None:
        """The operation that comes next, (operator, operand), None after the last."""
        left = self.chain.operations[self.position :]
        return left[0] if left else None

    def judge(self, text: str) -> Kind:
        """Judges the next step and goes past it.

        Args:
            text: the step's text; white space at both ends is ignored.
        """
        text = text.strip()
        if self.finished:
            return "after_box"
        if box := _BOX.fullmatch(text):
            self.finished = True
            if self.pending is not None:
                return "early_box"
            return "right" if box[1] == str(self.value) else "wrong_box"
        step = _STEP.fullmatch(text)
        if step is None or self._has_bad_number(step):
            return "malformed"
        word, a, operator, b = step[1], int(step[2]), step[3], int(step[4])
        if (word == "now ") != (step[5] is None):
            return "malformed"
        if word == "now ":
            right = a == self.value and (operator, b) == self.pending
            return "right" if right else "bad_plan"
        fact = (a, operator, b, int(step[5]))
        true = apply(a, operator, b, self.modulus) == fact[3]
        if word == "chk ":
            return "right" if true and fact == self.last else "bad_recap"
        kind = self._judge_operation(fact, true)
        if kind != "repeated":
            self.value, self.last = fact[3], fact
        return kind

    def _has_bad_number(self, step: re.Match[str]) -> bool:
        numbers = [step[2], step[4], *([step[5]] if step[5] else [])]
        return any(n != str(int(n)) or int(n) >= self.modulus for n in numbers)

    def _judge_operation(self, fact: tuple[int, str, int, int], true: bool) -> Kind:
        a, operator, b, _ = fact
        pending = self.pending
        if (operator, b) == pending and (a == self.value or fact != self.last):
            self.position += 1
            if a != self.value:
                return "operand_a"
            return "right" if true else "result"
        if fact == self.last:
            return "repeated"
        if pending is None:
            return "extra_operation"
        after = self.chain.operations[self.position + 1 : self.position + 2]
        if after == ((operator, b),):
            self.position += 2
            return "skipped"
        self.position += 1
        return "operator" if b == pending[1] else "operand_b"


@dataclass(frozen=True, slots=True)
class StepCheck:
    """What the checker says of one response.

    Attributes:
        labels: `[S]` bool, True where the step is right.
        kinds: S kinds, each judged on the written prefix.
    """

    labels: np.ndarray
    kinds: tuple[Kind, ...]


def check_steps(
    prompt: str, step_texts: Sequence[str], *, modulus: int = 10
) -> StepCheck:
    """Checks the steps of one response, each on the written prefix.

    Args:
        prompt: the problem's text.
        step_texts: S texts.
        modulus: of the task.

    Raises:
        ValueError: if the prompt is not chain arithmetic.
    """
    checker = StepChecker(prompt, modulus)
    kinds = tuple(checker.judge(text) for text in step_texts)
    return StepCheck(np.array([kind == "right" for kind in kinds], dtype=bool), kinds)


def exact_scorer(modulus: int = 10) -> FunctionScorer:
    """Makes a step scorer that is never wrong: 1.0 for right steps, -1.0 for others."""

    def score(prompt: str, step_texts: tuple[str, ...]) -> list[float]:
        check = check_steps(prompt, step_texts, modulus=modulus)
        return [1.0 if right else -1.0 for right in check.labels]

    return FunctionScorer(score)
