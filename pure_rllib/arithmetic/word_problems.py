"""Sums in words, and checkers of their steps.

    Tom has 12 apples, buys 5 more and gives away 3. How many apples does he have?

is worked in steps, with a blank line between them:

    12 + 5 = 17
    17 - 3 = 14
    The answer is 14.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from pure_rllib.arithmetic.task import ProceduralTask
from pure_rllib.rewards.base import FunctionScorer

# A problem's words, and what its answer adds up: signs, and letters to be multiplied.
_KINDS = {
    1: {
        "{name} has {a} {things} and buys {b} more.": "+a +b",
        "{name} has {a} {things} and gives away {b}.": "+a -b",
        "{name} has {d} boxes with {b} {things} in each.": "+db",
    },
    2: {
        "{name} has {a} {things}, buys {b} more and gives away {c}.": "+a +b -c",
        "{name} has {a} {things}, loses {b} and finds {c}.": "+a -b +c",
        "{name} has {a} {things}, gives away {b} and loses {c}.": "+a -b -c",
        "{name} has {a} {things}, finds {b} and buys {c} more.": "+a +b +c",
    },
    3: {
        "{name} has {a} {things}, buys {b}, loses {c} and finds {d}.": "+a +b -c +d",
        "{name} has {a} {things}, gets {d} boxes of {b} and loses {c}.": "+a +db -c",
    },
}
_NAMES = {"Tom": "he", "Anna": "she", "Ben": "he", "Mia": "she", "Leo": "he"}
_THINGS = ("apples", "marbles", "coins", "cards", "shells", "pencils")
_QUESTION = " How many {things} does {pronoun} have?"

_NUMBER = re.compile(r"\d+")
_EQUATION = re.compile(r"(\d+(?:\s*[-+*x×]\s*\d+)+)\s*=\s*(\d+)")
_ANSWER = re.compile(r"answer is:?\s*(\d+)", re.IGNORECASE)
_SIGN = re.compile(r"[-+*x×]")


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a sum.

    Attributes:
        sign: 1, or -1 where it is taken away.
        factors: one number, or two that are still to be multiplied.
    """

    sign: int
    factors: tuple[int, ...]


def _pattern(words: str) -> re.Pattern[str]:
    pattern = re.escape(words)
    for field in ("name", "things"):
        pattern = pattern.replace(re.escape(f"{{{field}}}"), r"\w+")
    return re.compile(re.sub(r"\\\{([abcd])\\\}", r"(?P<\1>\\d+)", pattern))


_FORMULAS = {
    _pattern(words): formula
    for kinds in _KINDS.values()
    for words, formula in kinds.items()
}


def terms_of(prompt: str) -> list[Term]:
    """Reads off a problem what its answer adds up.

    Raises:
        ValueError: it is no sum in words.
    """
    for pattern, formula in _FORMULAS.items():
        if found := pattern.match(prompt):
            return [
                Term(
                    1 if part[0] == "+" else -1, tuple(int(found[x]) for x in part[1:])
                )
                for part in formula.split()
            ]
    raise ValueError(
        f"`prompt` ({prompt!r:.120}) must be a sum in words, because its steps are "
        "checked against what it asks for. Set the problems to those of `WordTask`."
    )


@dataclass(frozen=True, slots=True)
class WordTask(ProceduralTask):
    """A family of sums in words.

    Attributes:
        num_steps: operations that a problem takes: 1 to 3, with products in 1 and 3.
    """

    name: ClassVar[str] = "words"
    num_steps: int = 2

    def __post_init__(self) -> None:
        if self.num_steps not in _KINDS:
            raise ValueError(
                f"`num_steps` ({self.num_steps}) must be one of {sorted(_KINDS)}, "
                "because there are such problems. Set it to 2."
            )

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """Draws a prompt and its answer."""
        words = rng.choice(list(_KINDS[self.num_steps]))
        name, things = rng.choice(list(_NAMES)), rng.choice(_THINGS)
        # The first number is larger than all that is taken away.
        ranges = {"a": (12, 20), "b": (2, 6), "c": (2, 5), "d": (2, 4)}
        numbers = {letter: rng.randint(*ends) for letter, ends in ranges.items()}
        prompt = (words + _QUESTION).format(
            name=name, things=things, pronoun=_NAMES[name], **numbers
        )
        return prompt, str(WayChecker(prompt).answer)


def solution(prompt: str) -> str:
    """Writes a worked solution: products first, then from left to right."""
    terms, steps = terms_of(prompt), []
    for i, term in enumerate(terms):
        if len(term.factors) == 2:
            a, b = term.factors
            steps.append(f"{a} x {b} = {a * b}")
            terms[i] = Term(term.sign, (a * b,))
    value = terms[0].factors[0]
    for term in terms[1:]:
        (number,) = term.factors
        sign = "+" if term.sign > 0 else "-"
        steps.append(f"{value} {sign} {number} = {value + term.sign * number}")
        value += term.sign * number
    return "\n\n".join([*steps, f"The answer is {value}."])


class WayChecker:
    """Judges the steps of one response, each on the written prefix.

    A step is right if it brings the problem nearer to its answer: it puts two terms
    that are left together, and its value is true; or it names the answer. A wrong step
    leaves everything as it was, and what stands behind the answer is wrong.

    Args:
        prompt: the problem's text.

    Attributes:
        answer: the right one.
    """

    def __init__(self, prompt: str):
        self.terms = terms_of(prompt)
        self.answer = sum(t.sign * math.prod(t.factors) for t in self.terms)
        self.is_over = False

    def judge(self, step: str) -> bool:
        """Says whether the next step is right."""
        equations, named = _EQUATION.findall(step), _ANSWER.search(step)
        if self.is_over or bool(equations) == bool(named):
            return False
        if named:
            self.is_over = True
            return int(named[1]) == self.answer
        before = list(self.terms)
        if all(self._follow(left, int(value)) for left, value in equations):
            return True
        self.terms = before
        return False

    def _follow(self, left: str, value: int) -> bool:
        """Works an equation's left side, from left to right."""
        first, *others = _NUMBER.findall(left)
        result: int | None = int(first)
        for sign, number in zip(_SIGN.findall(left), others, strict=True):
            if result is not None:
                result = self._join(result, sign, int(number))
        return result == value

    def _join(self, a: int, sign: str, b: int) -> int | None:
        """Puts two terms together; returns their value, or None if one is missing."""
        left = list(self.terms)
        if sign in "+-":
            used = [Term(1, (a,)), Term(1 if sign == "+" else -1, (b,))]
        else:
            used = [t for t in left if sorted(t.factors) == sorted((a, b))][:1]
        for term in used:
            if term not in left:
                return None
            left.remove(term)
        if not used:
            return None
        value = _worked(a, sign, b)
        self.terms = [*left, Term(1, (value,))]
        return value


class TruthChecker:
    """Judges steps by their truth alone: the numbers are known, the equation is true.

    A true step need not lead anywhere, and a policy finds that out: a checker to see
    reward hacking with.

    Args:
        prompt: the problem's text.
    """

    def __init__(self, prompt: str):
        self.known = {int(number) for number in _NUMBER.findall(prompt)}

    def judge(self, step: str) -> bool:
        """Says whether the next step is true."""
        equations, named = _EQUATION.findall(step), _ANSWER.search(step)
        if named:
            return int(named[1]) in self.known
        return bool(equations) and all(self._is_true(*found) for found in equations)

    def _is_true(self, left: str, value: str) -> bool:
        first, *others = (int(number) for number in _NUMBER.findall(left))
        result, is_known = first, first in self.known
        for sign, number in zip(_SIGN.findall(left), others, strict=True):
            is_known = is_known and number in self.known
            result = _worked(result, sign, number)
        is_true = is_known and result == int(value)
        if is_true:
            self.known.add(result)
        return is_true


def word_scorer(
    checker: Callable[[str], "WayChecker | TruthChecker"],
) -> FunctionScorer:
    """Makes a step scorer of a checker: 1.0 for right steps, -1.0 for others."""

    def score(prompt: str, steps: tuple[str, ...]) -> list[float]:
        judge = checker(prompt).judge
        return [1.0 if judge(step) else -1.0 for step in steps]

    return FunctionScorer(score)


def _worked(a: int, sign: str, b: int) -> int:
    if sign in "+-":
        return a + b if sign == "+" else a - b
    return a * b
