"""Worked solutions with known errors, as a PRM reads them.

They teach PRMs and measure them. L tokens of a trace, S steps.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pure_rllib.arithmetic.checker import Kind, StepChecker
from pure_rllib.arithmetic.task import ArithmeticTask, Chain, apply
from pure_rllib.arithmetic.tokenizer import PRM_SEPARATOR

# The index that torch's cross entropy leaves out.
IGNORED = -100

# How often each error is tried in a corrupt step. Errors against the prompt (operands,
# order) are the ones that a small PRM learns last and a policy finds first.
_CORRUPTIONS = {
    "result": 20,
    "operand_a": 16,
    "operand_b": 16,
    "operator": 8,
    "skipped": 10,
    "repeated": 5,
    "random": 5,
    "plan": 4,
    "recap": 4,
    "early_box": 9,
    "wrong_box": 5,
    "extra": 3,
    "malformed": 4,
}
_NAMES, _WEIGHTS = list(_CORRUPTIONS), list(_CORRUPTIONS.values())


@dataclass(frozen=True, slots=True)
class Trace:
    """A response in the form in which the PRM reads it.

    Attributes:
        ids: L token ids: the prompt, then each step's tokens and one newline.
        labels: L numbers: 1 (right) or 0 (wrong) at the newlines, `IGNORED` elsewhere.
        kinds: S kinds.
    """

    ids: list[int]
    labels: list[int]
    kinds: tuple[Kind, ...]


class TraceMaker:
    """Makes traces for one task.

    Args:
        task: the family of problems.
        vocabulary: token ids by token text.
    """

    def __init__(self, task: ArithmeticTask, vocabulary: dict[str, int]):
        self.task, self.vocabulary = task, vocabulary
        # Sorted: a tokenizer gives its vocabulary in another order each time.
        words = sorted(word for word in vocabulary if not word.startswith("<"))
        self._words = [word for word in words if word.strip()]
        longest_first = sorted(words, key=len, reverse=True)
        self._pieces = re.compile("|".join(re.escape(w) for w in longest_first))

    def trace(self, prompt: str, steps: Sequence[str]) -> Trace:
        """Labels given steps, each judged on the written prefix.

        Args:
            prompt: the problem's text.
            steps: S texts made of the tokenizer's words.
        """
        checker = StepChecker(prompt, self.task.modulus)
        ids = [self.vocabulary[piece] for piece in self.pieces(prompt)]
        labels = [IGNORED] * len(ids)
        kinds = []
        for step in steps:
            pieces = [*self.pieces(step), PRM_SEPARATOR]
            kinds.append(checker.judge(step))
            ids += [self.vocabulary[piece] for piece in pieces]
            labels += [IGNORED] * (len(pieces) - 1) + [int(kinds[-1] == "right")]
        return Trace(ids, labels, tuple(kinds))

    def pieces(self, text: str) -> list[str]:
        """Cuts a text into the tokenizer's words."""
        return self._pieces.findall(text)

    def corrupt_steps(self, prompt: str, rng: random.Random, share: float) -> list[str]:
        """Writes steps of which about `share` are corrupt.

        After an error the trace goes on from what was written, as a policy would.

        Args:
            prompt: the problem's text.
            rng: decides everything.
            share: of corrupt steps; in [0, 1).
        """
        checker = StepChecker(prompt, self.task.modulus)
        steps: list[str] = []
        # A corrupt trace may go on after its box or repeat itself, but not for ever.
        for _ in range(4 * len(checker.chain.operations) + 4):
            if rng.random() < share:
                step = self._corrupt_step(checker, rng)
            else:
                step = self._right_step(checker, rng)
            steps.append(step)
            checker.judge(step)
            if checker.finished and (share == 0.0 or rng.random() < 0.95):
                break
        return steps

    def _right_step(self, checker: StepChecker, rng: random.Random) -> str:
        filler = self.task.filler
        if checker.last is not None and rng.random() < filler / 2:
            a, operator, b, _ = checker.last
            return f"chk {a}{operator}{b}={apply(a, operator, b, self.task.modulus)}"
        if checker.pending is None:
            return f"\\boxed{{{checker.value}}}"
        operator, b = checker.pending
        term = f"{checker.value}{operator}{b}"
        if rng.random() < filler:
            return f"now {term}"
        value = apply(checker.value, operator, b, self.task.modulus)
        return f"{term}={value}"

    def _corrupt_step(self, checker: StepChecker, rng: random.Random) -> str:
        """Writes a step that is wrong in most cases; the checker has the last word."""
        modulus = self.task.modulus
        operations = checker.chain.operations
        kind = rng.choices(_NAMES, _WEIGHTS)[0]
        pending = checker.pending
        if pending is None and kind not in ("repeated", "recap", "extra", "malformed"):
            kind = rng.choice(["wrong_box", "wrong_box", "extra", "random"])
        a = checker.value
        operator, b = pending or rng.choice(operations)
        if kind in ("early_box", "wrong_box"):
            early = pending is not None and rng.random() < 0.4
            value = a if early else self._other(a, modulus, rng)
            return f"\\boxed{{{value}}}"
        if kind == "malformed":
            return self._garble(self.pieces(self._right_step(checker, rng)), rng)
        if kind in ("repeated", "recap") and checker.last is not None:
            a, operator, b, value = checker.last
            if kind == "repeated":
                return f"{a}{operator}{b}={value}"
        if kind == "skipped":
            after = operations[checker.position + 1 : checker.position + 2]
            operator, b = after[0] if after else (operator, b)
        if kind in ("operand_a", "random"):
            a = self._other(a, modulus, rng)
        if kind in ("operand_b", "random"):
            b = self._operand(b, rng)
        if kind == "operator" or (kind == "random" and rng.random() < 0.5):
            operator = "-" if operator == "+" else "+"
        if kind in ("plan", "recap"):
            error = rng.randrange(3)
            a = self._other(a, modulus, rng) if error == 0 else a
            b = self._operand(b, rng) if error == 1 else b
            operator = ("-" if operator == "+" else "+") if error == 2 else operator
        if kind == "plan":
            return f"now {a}{operator}{b}"
        value = apply(a, operator, b, modulus)
        if kind == "result" or (kind in ("recap", "random") and rng.random() < 0.3):
            value = self._other(value, modulus, rng)
        word = "chk " if kind == "recap" else ""
        return f"{word}{a}{operator}{b}={value}"

    def _operand(self, b: int, rng: random.Random) -> int:
        low, high = self.task.operands
        if low < high and rng.random() < 0.8:
            return rng.choice([n for n in range(low, high + 1) if n != b])
        return self._other(b, self.task.modulus, rng)

    def _other(self, number: int, modulus: int, rng: random.Random) -> int:
        # Slips by one are the commonest and the hardest to see.
        shift = rng.choice((1, -1)) if rng.random() < 0.3 else rng.randrange(1, modulus)
        return (number + shift) % modulus

    def _garble(self, pieces: list[str], rng: random.Random) -> str:
        place = rng.randrange(len(pieces))
        action = rng.randrange(3)
        if action == 0 and len(pieces) > 1:
            del pieces[place]
        elif action == 1:
            pieces.insert(place, rng.choice(self._words))
        else:
            pieces[place] = rng.choice(self._words)
        return "".join(pieces)


def generated_steps(
    maker: TraceMaker,
    rng: random.Random,
    *,
    seed: int,
    corrupt_share: float = 0.45,
    repeated_share: float = 0.3,
    clean_share: float = 0.3,
) -> Iterator[tuple[str, list[str]]]:
    """Yields prompts with steps, many of them corrupt, without end.

    Args:
        maker: writes the steps, and knows the task.
        rng: decides which shares a trace belongs to, and its errors.
        seed: names the sequence of problems.
        corrupt_share: of the steps in a corrupt trace.
        repeated_share: of the traces whose prompt must have one operation twice
            running: there the place in the prompt can only be counted.
        clean_share: of the traces without a wanted error.
    """
    index = 0
    while True:
        repeated = rng.random() < repeated_share
        while True:
            prompt = maker.task.problem(index, seed).prompt
            index += 1
            if not repeated or _repeats(prompt):
                break
        share = 0.0 if rng.random() < clean_share else corrupt_share
        yield prompt, maker.corrupt_steps(prompt, rng, share)


def _repeats(prompt: str) -> bool:
    return any(a == b for a, b in pairwise(Chain.parse(prompt).operations))
