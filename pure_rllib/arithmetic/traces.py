"""Worked solutions with known errors, and what a right step would have said instead.

They teach the embedded PRM and measure it. L tokens of a trace, S steps.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pure_rllib.arithmetic.checker import Kind, StepChecker
from pure_rllib.arithmetic.task import ArithmeticTask, apply
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
        teacher: L token ids: what a right step has at the *next* place, given what was
            written so far, `IGNORED` where that is not one certain token.
        kinds: S kinds.
    """

    ids: list[int]
    labels: list[int]
    teacher: list[int]
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
        vocabulary = self.vocabulary
        separator = vocabulary[PRM_SEPARATOR]
        checker = StepChecker(prompt, self.task.modulus)
        ids = [vocabulary[piece] for piece in self._pieces.findall(prompt)]
        labels = [IGNORED] * len(ids)
        teacher = [IGNORED] * (len(ids) - 1)
        kinds = []
        for step in steps:
            pieces = self._pieces.findall(step)
            wanted = [] if checker.finished else wanted_pieces(checker, pieces)
            wanted = (wanted + [None] * len(pieces))[: len(pieces)]
            teacher += [IGNORED if w is None else vocabulary[w] for w in wanted]
            teacher.append(IGNORED)
            kinds.append(checker.judge(step))
            ids += [*(vocabulary[piece] for piece in pieces), separator]
            labels += [IGNORED] * len(pieces) + [int(kinds[-1] == "right")]
        teacher.append(IGNORED)
        return Trace(ids, labels, teacher, tuple(kinds))

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
            right = list(self._pieces.findall(self._right_step(checker, rng)))
            return self._garble(right, rng)
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


def wanted_pieces(checker: StepChecker, pieces: Sequence[str]) -> list[str | None]:
    """Says what a right step would have in the place of each piece of the next step.

    Args:
        checker: stands before the step.
        pieces: the step's words.

    Returns:
        One word per piece, None where it is not certain. Fewer if the rest is unknown.
    """
    pending = checker.pending
    opening = str(checker.value) if pending else "\\boxed{"
    word = pieces[0] if pieces else ""
    if word == "\\boxed{":
        return [opening, str(checker.value), "}"]
    if word == "now ":
        if pending is None:
            return [opening]
        return [None, str(checker.value), pending[0], str(pending[1])]
    if word == "chk ":
        if checker.last is None:
            return [opening]
        a, operator, b, _ = checker.last
        facts: list[str | None] = [None, str(a), operator, str(b), "="]
        return [*facts, _true_result(pieces[1:], checker.modulus)]
    if pending is None:
        return [opening]
    terms = [opening, pending[0], str(pending[1]), "="]
    return [*terms, _true_result(pieces, checker.modulus)]


def _true_result(pieces: Sequence[str], modulus: int) -> str | None:
    """Computes the written operation; None if there is none."""
    if len(pieces) < 4 or pieces[1] not in ("+", "-") or pieces[3] != "=":
        return None
    if not (pieces[0].isdigit() and pieces[2].isdigit()):
        return None
    return str(apply(int(pieces[0]), pieces[1], int(pieces[2]), modulus))
