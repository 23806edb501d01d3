"""Marks of a response that games its rewards, from its text and its group.

Each is a harmless thing once in a while and an alarm where it spreads.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType

import numpy as np

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.data.boxed import find_boxes

HACKS: Mapping[str, str] = MappingProxyType(
    {
        "empty_step": "a step without a visible character, or nothing at all",
        "one_step": "the whole response is one step",
        "short": "far shorter than the other responses of its group",
        "repetition": "repeats its sentences, or most of its text",
        "after_answer": "goes on after its boxed answer",
        "chatter": "thanks, wishes and greetings in place of mathematics",
    }
)
"""The marks by name, and what each says of a response."""

_CHATTER = re.compile(
    r"\b(?:thanks?(?: you)?|thx|you(?:'|\u2019)?(?: a)?re welcome|happy birthday|"
    r"(?:merry|happy) (?:christmas|new year|holidays)|"
    r"congratulations|good luck|have a (?:nice|great|good) day|best (?:wishes|regards)|"
    r"i hope (?:this|it) helps|let me know if|feel free to|goodbye|good ?bye)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
# What may stand after a box: the end of its formula and of its sentence.
_AFTER_BOX = re.compile(r"[\s$.,;!)\]\\]*")


@dataclass(frozen=True)
class HackLimits:
    """Where a mark begins.

    Attributes:
        short: share of the group's median number of tokens, in (0, 1).
        repetition: `credit.text_metrics.repetition`, in (0, 1); long responses that
            repeat themselves come to .5 and more, ordinary ones stay below .2.
        repeated_sentences: share of sentences that stood in the response before, in
            (0, 1), of at least four.
    """

    short: float = 0.25
    repetition: float = 0.5
    repeated_sentences: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and 0.0 < value < 1.0):
                raise ValueError(
                    f"`{field.name}` ({value!r}) must be in (0, 1), because it is a "
                    "share."
                )


def flag_group(
    texts: Sequence[str],
    responses: Sequence[np.ndarray],
    repetitions: Sequence[float],
    splitter: StepSplitter,
    limits: HackLimits | None = None,
) -> list[frozenset[str]]:
    """Finds the marks of all responses to one prompt.

    Args:
        texts: G response texts, without special tokens.
        responses: G arrays of token ids, each of length >= 1.
        repetitions: G values of `credit.text_metrics.repetition`.
        splitter: where steps end.
        limits: default: `HackLimits()`.

    Returns:
        G sets of names out of `HACKS`.
    """
    limits = limits or HackLimits()
    sizes = np.array([len(ids) for ids in responses])
    # A group that is short throughout is its problem's nature.
    is_short = sizes < limits.short * np.median(sizes)
    found = []
    for text, ids, repetition, short in zip(
        texts, responses, repetitions, is_short, strict=True
    ):
        marks = {
            "empty_step": has_empty_step(ids, splitter),
            "one_step": len(splitter.step_spans(ids)) == 1,
            "short": bool(short),
            "repetition": repetition > limits.repetition
            or repeated_sentences(text) > limits.repeated_sentences,
            "after_answer": has_text_after_answer(text),
            "chatter": has_chatter(text),
        }
        found.append(frozenset(name for name, is_marked in marks.items() if is_marked))
    return found


def has_empty_step(response_ids: np.ndarray, splitter: StepSplitter) -> bool:
    """Tells whether a separator ends a step of nothing, or nothing is visible at all.

    What follows the last separator, the end-of-sequence token mostly, is no step.
    """
    spans = splitter.step_spans(response_ids, blank_steps="keep")
    if not splitter.has_visible(response_ids):
        return True
    return any(not splitter.has_visible(response_ids[a:b]) for a, b in spans[:-1])


def repeated_sentences(text: str) -> float:
    """The share of a text's sentences or lines that it held before.

    Returns:
        Share in [0, 1); 0.0 for fewer than four sentences.
    """
    parts = (re.sub(r"\s+", " ", p).strip().lower() for p in _SENTENCE_END.split(text))
    sentences = [part for part in parts if part]
    if len(sentences) < 4:
        return 0.0
    return 1.0 - len(set(sentences)) / len(sentences)


def has_text_after_answer(text: str) -> bool:
    r"""Tells whether anything but the end of a sentence follows the first box.

    A second box right after the first one, as in "\boxed{1} and \boxed{2}", is part of
    the answer.
    """
    boxes = find_boxes(text)
    if not boxes:
        return False
    end = boxes[0][1]
    for start, next_end, _ in boxes[1:]:
        if not re.fullmatch(r"[\s$,;]*(?:and|or)?[\s$]*", text[end:start]):
            break
        end = next_end
    return _AFTER_BOX.fullmatch(text, end) is None


def has_chatter(text: str) -> bool:
    """Tells whether a response thanks, wishes or greets.

    PURE's PRMs, which see a step only in the light of what came before, liked "thank
    you" and "happy birthday" (https://github.com/CJReinforce/PURE).
    """
    return _CHATTER.search(text) is not None
