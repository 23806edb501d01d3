r"""Verifies labels by rules: CLS-RL and No-Thinking-CLS-RL (arXiv 2503.16188).

A response thinks in `<think>...</think>` and answers in `<answer>...</answer>`, or it
is the label and nothing else. Nothing here looks for a label *inside* of an answer,
which pays for "A or B", nor reads names as mathematics, where "737-800" of one maker
equals that of another.
"""

import re
from collections.abc import Sequence

from pure_rllib.rewards.base import Verdict

_FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
# Thinking that is never closed goes on to the end; some chat templates open it.
_THINKING = re.compile(
    r"\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z)", re.DOTALL
)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_PUBLISHED_ANSWER = re.compile(r"<answer>(.*?)</answer>")


def has_format(text: str) -> bool:
    """Whether a text is thinking, then an answer, and nothing else."""
    return _FORMAT.fullmatch(text) is not None


def answer_in(text: str) -> str:
    """Returns the first answer outside of the thinking, or all of the text there."""
    rest = _THINKING.sub("", text)
    found = _ANSWER.search(rest)
    return (found[1] if found else rest).strip()


def published_answer_in(text: str) -> str:
    """Returns the first answer on one line, inside of the thinking too, or the text."""
    found = _PUBLISHED_ANSWER.search(text)
    return (found[1] if found else text).strip()


class LabelVerifier:
    """Rewards the right label and the right format, half each.

    Args:
        thinking: the response thinks, then answers: half a point for the label, in any
            case, and half for the format. False: a point for a text that is the label,
            exactly, and nothing for anything else.
        published: look for the answer as the published code does, where an answer
            inside of the thinking counts, and compare in lower case, where "STRASSE" is
            not "Straße". Its verification by mathematics is left out.
    """

    def __init__(self, *, thinking: bool = True, published: bool = False):
        self.thinking, self.published = thinking, published

    def verify(self, golds: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Checks each pair on its own. See `Verifier.verify`.

        A verdict is correct where the label is, whatever the format.
        """
        pairs = zip(golds, responses, strict=True)
        return [self._verdict(gold.strip(), text) for gold, text in pairs]

    def _verdict(self, label: str, text: str) -> Verdict:
        if not self.thinking:
            return Verdict("correct" if text == label else "incorrect", answer=text)
        if self.published:
            answer = published_answer_in(text)
            is_right = answer.lower() == label.lower()
        else:
            answer = answer_in(text)
            is_right = answer.casefold() == label.casefold()
        parts = {"accuracy": float(is_right), "format": float(has_format(text))}
        return Verdict(
            "correct" if is_right else "incorrect" if answer else "no_answer",
            answer=answer or None,
            score=sum(parts.values()) / 2.0,
            parts=parts,
        )
