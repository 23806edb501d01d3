"""What a right step would have said in the place of each token of a trace.

L tokens of a trace, S steps.
"""

from collections.abc import Sequence

from pure_rllib.arithmetic.checker import StepChecker
from pure_rllib.arithmetic.task import apply
from pure_rllib.arithmetic.traces import IGNORED, TraceMaker


def teacher_ids(maker: TraceMaker, prompt: str, steps: Sequence[str]) -> list[int]:
    """Finds the targets of a trace's teacher loss.

    Args:
        maker: of the trace.
        prompt: the problem's text.
        steps: S texts made of the tokenizer's words.

    Returns:
        L token ids: what a right step has at the *next* place, given what was written
        so far, `IGNORED` where that is not one certain token.
    """
    checker = StepChecker(prompt, maker.task.modulus)
    ids = [IGNORED] * (len(maker.pieces(prompt)) - 1)
    for step in steps:
        pieces = maker.pieces(step)
        wanted = [] if checker.finished else _wanted(checker, pieces)
        wanted = (wanted + [None] * len(pieces))[: len(pieces)]
        ids += [IGNORED if w is None else maker.vocabulary[w] for w in wanted]
        ids.append(IGNORED)
        checker.judge(step)
    return [*ids, IGNORED]


def _wanted(checker: StepChecker, pieces: Sequence[str]) -> list[str | None]:
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
