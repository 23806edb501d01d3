"""Flags of responses that game their rewards, and caps on what these earn.

Each is a harmless thing once in a while and an alarm where it spreads. G responses per
group, T response tokens.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field, FiniteFloat

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.credit.text_metrics import repetition
from pure_rllib.data.boxed import find_boxes
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.setting_types import check_fields

FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "empty_step": "a step without a visible character, or nothing at all",
        "one_step": "the whole response is one step",
        "short": "far shorter than the other responses of its group",
        "repetition": "repeats its sentences, or most of its text",
        "after_answer": "goes on after its boxed answer",
        "chatter": "thanks, wishes and greetings in place of mathematics",
    }
)
"""The flags by name, and what each says of a response."""

SHARES = {f"hacking/{name}_share": name for name in FLAGS if name != "one_step"}
"""The flags' metrics; the share of one-step responses has a metric of its own."""

FLAG_METRICS = "".join(
    f"{metric} [share, 0 to 1]\n"
    f"    Responses with the flag {name}: {FLAGS[name]}.\n"
    "    Such responses / responses; see hack_limits.\n"
    for metric, name in SHARES.items()
)
"""These metrics, in the form of `reporting.metrics`."""

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
_Share = Annotated[FiniteFloat, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class HackLimits:
    """Where a flag begins.

    Attributes:
        short: share of the group's median number of tokens, in (0, 1).
        repetition: `credit.text_metrics.repetition`, in (0, 1); long responses that
            repeat themselves come to .5 and more, ordinary ones stay below .2.
        repeated_sentences: share of sentences that stood in the response before, in
            (0, 1), of at least four.
    """

    short: _Share = 0.25
    repetition: _Share = 0.5
    repeated_sentences: _Share = 0.5

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True)
class Flags:
    """What a response's text says about it.

    Attributes:
        repetition: share of the text that repeats itself, in [0, 1].
        names: out of `FLAGS`.
    """

    repetition: float = 0.0
    names: frozenset[str] = frozenset()


def flag_group(
    texts: Sequence[str],
    responses: Sequence[np.ndarray],
    splitter: StepSplitter,
    limits: HackLimits,
    num_steps: Sequence[int] | None = None,
) -> list[Flags]:
    """Finds the flags of all responses to one prompt.

    Args:
        texts: G response texts, without special tokens.
        responses: G arrays of token ids, each `[T]` with T >= 1.
        splitter: where steps end.
        limits: where flags begin.
        num_steps: G numbers, where steps are not the splitter's, as turns.
    """
    if num_steps is None:
        num_steps = [len(splitter.step_spans(ids)) for ids in responses]
    sizes = np.array([len(ids) for ids in responses])
    # A group that is short throughout is its problem's nature.
    is_short = sizes < limits.short * np.median(sizes)
    found = []
    for text, ids, short, steps in zip(
        texts, responses, is_short, num_steps, strict=True
    ):
        repeated = repetition(text)
        flags = {
            "empty_step": has_empty_step(ids, splitter),
            "one_step": steps == 1,
            "short": short,
            "repetition": repeated > limits.repetition
            or repeated_sentences(text) > limits.repeated_sentences,
            "after_answer": has_text_after_answer(text),
            "chatter": has_chatter(text),
        }
        names = frozenset(name for name, is_flagged in flags.items() if is_flagged)
        found.append(Flags(repeated, names))
    return found


def cap_rewards(
    judged: JudgedResponse, flags: Flags, caps: Mapping[str, float]
) -> JudgedResponse:
    """Lowers the process rewards of a flagged response to the lowest of its caps.

    The verifiable reward stays: a right answer is right. A cap, unlike a fee, weighs
    the same in the min form and in the sum, however many steps there are to share it.
    """
    cap = min((caps[name] for name in flags.names if name in caps), default=None)
    if cap is None:
        return judged
    return replace(
        judged, step_rewards=np.minimum(judged.step_rewards, np.float32(cap))
    )


def has_empty_step(response_ids: np.ndarray, splitter: StepSplitter) -> bool:
    """Tells whether a blank line ends a step of nothing, or nothing is visible at all.

    What follows the last blank line, the end-of-sequence token mostly, is no step.
    """
    if not splitter.has_visible(response_ids):
        return True
    ends = np.flatnonzero(splitter.separators(response_ids)[:-1]) + 1
    return not all(map(splitter.has_visible, np.split(response_ids, ends)[:-1]))


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


def check_caps(config: Any) -> None:
    """Raises a ValueError if `hack_caps` or `hack_limits` cannot work."""
    caps = config.hack_caps
    if unknown := [name for name in caps if name not in FLAGS]:
        raise ValueError(
            f"`hack_caps` ({unknown[0]!r}) must name a flag; it may hold "
            f"{sorted(FLAGS)}."
        )
    if caps and not config.process_reward_coeff:
        raise ValueError(
            f"`hack_caps` ({dict(caps)}) has no effect with `process_reward_coeff` "
            f"({config.process_reward_coeff}), because it caps process rewards. Leave "
            "it out."
        )
    settings_from(HackLimits, "hack_limits", config.hack_limits)


_Settings = TypeVar("_Settings", bound=Any)


def settings_from(
    cls: type[_Settings], name: str, values: Mapping[str, Any]
) -> _Settings:
    """Makes a dataclass of a setting's dict; errors name the setting."""
    known = sorted(field.name for field in fields(cls))
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"`{name}` has unknown keys {unknown}; it may hold {known}.")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from error
