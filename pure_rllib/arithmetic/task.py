"""Chain arithmetic: a task small enough to learn in seconds, with checkable steps.

A prompt such as `3-2-2+4=?` is worked from left to right, modulo a number, one
operation per step, steps separated by a blank line, the last step holding the boxed
answer:

    3-2=1        an operation
    now 1-2      a plan: true but redundant, may be repeated
    1-2=9
    chk 1-2=9    a recap: true but redundant, may be repeated
    9+4=3
    \\boxed{3}
"""

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar, Literal, get_args

from pure_rllib.data.problems import Problem

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)

STEP_SEPARATOR = "\n\n"
_HELD_OUT_SHARE = 1 / 16
_PROMPT = re.compile(r"(\d+)((?:[+-]\d+)+)=\?")
_OPERATION = re.compile(r"([+-])(\d+)")

Compute = Callable[[int, str, int, random.Random], int]


def text_fraction(text: str, salt: str) -> float:
    """Maps a text to a number in [0, 1) that is the same on every machine.

    Args:
        text: what is hashed.
        salt: names the use, so that two uses are independent of each other.
    """
    digest = blake2b(f"{salt}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def apply(a: int, operator: str, b: int, modulus: int) -> int:
    """Computes `a + b` or `a - b` modulo `modulus`."""
    return (a + b if operator == "+" else a - b) % modulus


@dataclass(frozen=True, slots=True)
class Chain:
    """What a prompt asks for.

    Attributes:
        first: the number that the chain starts from.
        operations: (operator, operand) pairs, left to right; at least one.
    """

    first: int
    operations: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, prompt: str) -> "Chain":
        """Reads a prompt's text.

        Raises:
            ValueError: if the text is not a prompt of chain arithmetic.
        """
        match = _PROMPT.fullmatch(prompt.strip())
        if match is None:
            raise ValueError(
                f"`prompt` ({prompt!r}) must be chain arithmetic such as '3-2+4=?'; "
                "because its steps are checked exactly. Set the problems to "
                "ArithmeticProblems."
            )
        operations = _OPERATION.findall(match[2])
        return cls(int(match[1]), tuple((sign, int(b)) for sign, b in operations))

    @property
    def prompt(self) -> str:
        """The chain as a prompt's text."""
        return f"{self.first}" + "".join(f"{o}{b}" for o, b in self.operations) + "=?"

    def value(self, modulus: int) -> int:
        """The final value, in [0, modulus)."""
        value = self.first
        for operator, operand in self.operations:
            value = apply(value, operator, operand, modulus)
        return value


class ProceduralTask(ABC):
    """Problems that are drawn, each from its number, in two splits.

    Attributes:
        name: begins the problems' names.
    """

    __slots__ = ()
    name: ClassVar[str]

    @abstractmethod
    def draw(self, rng: random.Random) -> tuple[str, str]:
        """Draws a prompt and its answer."""

    def problem(self, index: int, seed: int = 0, split: Split = "train") -> Problem:
        """Makes problem number `index`, the same one each time.

        A prompt belongs to one split by the hash of its text, so a training problem
        never equals a held-out one, whatever the seeds.

        Args:
            index: any number >= 0.
            seed: names the sequence of problems.
            split: the split to draw from.
        """
        rng = random.Random(f"{split}/{seed}/{index}")
        while True:
            prompt, answer = self.draw(rng)
            if split_of(prompt) == split:
                return Problem(prompt, answer, f"{self.name}-{split}-{seed}-{index}")

    def held_out(self, count: int = 200, seed: int = 0) -> list[Problem]:
        """Makes `count` different held-out problems.

        Raises:
            ValueError: if the task has too few different prompts.
        """
        problems: dict[str, Problem] = {}
        for index in range(100 * count + 1000):
            if len(problems) == count:
                break
            problem = self.problem(index, seed, "held_out")
            problems.setdefault(problem.prompt, problem)
        if len(problems) < count:
            raise ValueError(
                f"`count` ({count}) must be at most about {len(problems)}; because the "
                "task has so few held-out prompts. Set a smaller count or a longer "
                "task."
            )
        return list(problems.values())


@dataclass(frozen=True, slots=True)
class ArithmeticTask(ProceduralTask):
    """A family of chain-arithmetic problems.

    Attributes:
        num_operations: fewest and most operations of a chain, both possible; >= 1.
        operators: the signs that occur, out of "+-".
        operands: smallest and largest number in a prompt; 0 <= both < modulus.
        modulus: all values are taken modulo this number; in [2, 100]. The tokenizer
            has one token for each number below it.
        filler: in [0, 1): before each operation a plan step is written with this
            probability, again and again until it fails; after it, a recap with half
            of this probability.
    """

    name: ClassVar[str] = "arithmetic"
    num_operations: tuple[int, int] = (3, 4)
    operators: str = "+-"
    operands: tuple[int, int] = (1, 5)
    modulus: int = 10
    filler: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.num_operations
        if not 1 <= low <= high:
            raise ValueError(
                f"`num_operations` ({self.num_operations}) must be two rising numbers "
                ">= 1; because a chain has that many operations. Set it to (3, 4)."
            )
        if not self.operators or not set(self.operators) <= {"+", "-"}:
            raise ValueError(
                f"`operators` ({self.operators!r}) must be made of '+' and '-'; "
                "because no other operation is defined. Set it to '+-'."
            )
        if not 2 <= self.modulus <= 100:
            raise ValueError(
                f"`modulus` ({self.modulus}) must be in [2, 100]; because each number "
                "below it is one token. Set it to 10."
            )
        low, high = self.operands
        if not 0 <= low <= high < self.modulus:
            raise ValueError(
                f"`operands` ({self.operands}) must be two rising numbers in "
                f"[0, {self.modulus}); because values are taken modulo "
                f"{self.modulus}. Set it to (1, {min(5, self.modulus - 1)})."
            )
        if not 0 <= self.filler < 1:
            raise ValueError(
                f"`filler` ({self.filler}) must be in [0, 1); because plan steps are "
                "repeated with this probability. Set it to 0.1."
            )

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """Draws a prompt and its answer."""
        length = rng.randint(*self.num_operations)
        operations = tuple(
            (rng.choice(self.operators), rng.randint(*self.operands))
            for _ in range(length)
        )
        chain = Chain(rng.randint(*self.operands), operations)
        return chain.prompt, str(chain.value(self.modulus))

    def solution_steps(
        self, prompt: str, rng: random.Random, compute: Compute | None = None
    ) -> list[str]:
        """Writes a worked solution.

        Args:
            prompt: a prompt's text.
            rng: decides where plans and recaps stand.
            compute: replaces the operation `(a, operator, b, rng) -> value`; later
                steps go on from what it returned.

        Returns:
            The texts of the steps.
        """
        chain = Chain.parse(prompt)
        value, steps = chain.first, []
        for operator, operand in chain.operations:
            term = f"{value}{operator}{operand}"
            while rng.random() < self.filler:
                steps.append(f"now {term}")
            if compute is None:
                value = apply(value, operator, operand, self.modulus)
            else:
                value = compute(value, operator, operand, rng)
            steps.append(f"{term}={value}")
            while rng.random() < self.filler / 2:
                steps.append(f"chk {term}={value}")
        return [*steps, f"\\boxed{{{value}}}"]


def split_of(prompt: str) -> Split:
    """Names the split that a prompt's text belongs to."""
    held_out = text_fraction(prompt, "split") < _HELD_OUT_SHARE
    return "held_out" if held_out else "train"


def steps_of(text: str) -> list[str]:
    """Splits a response's text into its steps; blank ones are not steps."""
    return [step for step in text.split(STEP_SEPARATOR) if step.strip()]


def is_correct(problem: Problem, text: str) -> bool:
    """Says whether a response ends with the boxed gold answer."""
    return text.rstrip().endswith(f"\\boxed{{{problem.answer}}}")


class ArithmeticProblems:
    """A task as a problem source.

    Args:
        task: draws the problems.
        num_problems: how many there are; >= 1. Training problems may repeat, held-out
            problems differ from each other.
        seed: names the sequence of problems.
        split: "train" or "held_out".
    """

    def __init__(
        self,
        task: ProceduralTask,
        num_problems: int = 200,
        seed: int = 0,
        split: Split = "train",
    ):
        if num_problems < 1:
            raise ValueError(
                f"`num_problems` ({num_problems}) must be >= 1; because there is "
                "nothing to ask otherwise. Set num_problems=200."
            )
        if split not in SPLITS:
            raise ValueError(
                f"`split` ({split!r}) must be one of {SPLITS}; because prompts are "
                'divided in these two. Set split="train".'
            )
        self.task, self.seed, self.split = task, seed, split
        self.num_problems = num_problems
        self._held_out = (
            task.held_out(num_problems, seed) if split == "held_out" else None
        )

    def __len__(self) -> int:
        return self.num_problems

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < self.num_problems:
            raise IndexError(f"Problem {index} of {self.num_problems} does not exist.")
        if self._held_out is not None:
            return self._held_out[index]
        return self.task.problem(index, self.seed, self.split)

    @property
    def num_answers(self) -> int:
        """How many of the problems have a gold answer: all."""
        return self.num_problems


TASK_Z = ArithmeticTask()
TASK_Y = ArithmeticTask(filler=0.3)
TASK_M20B = ArithmeticTask(num_operations=(7, 9), modulus=20)
TASK_M100 = ArithmeticTask(num_operations=(5, 6), modulus=100)
