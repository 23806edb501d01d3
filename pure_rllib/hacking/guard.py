"""Marks responses that game their rewards, caps those, and checks the settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.credit.text_metrics import repetition
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.generation.base import Response
from pure_rllib.hacking.detector import HackingThresholds
from pure_rllib.hacking.flags import HACKS, HackLimits, flag_group

ACTIONS = ("warn", "stop", "go_back")
"""What `hacking_monitor` can be told to do about an alarm."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What a response's text says about it.

    Attributes:
        repetition: share of the text that repeats itself, in [0, 1].
        hacks: names out of `HACKS`.
    """

    repetition: float = 0.0
    hacks: frozenset[str] = frozenset()


def mark_group(
    judged: Sequence[JudgedResponse],
    responses: Sequence[Response],
    splitter: StepSplitter,
    limits: HackLimits,
) -> list[Marks]:
    """Finds the marks of the G responses to one prompt."""
    texts = [j.text for j in judged]
    repetitions = [repetition(text) for text in texts]
    ids = [np.asarray(response.token_ids) for response in responses]
    hacks = flag_group(texts, ids, repetitions, splitter, limits)
    return [Marks(*fields) for fields in zip(repetitions, hacks, strict=True)]


def cap_rewards(
    judged: JudgedResponse, hacks: frozenset[str], caps: Mapping[str, float]
) -> JudgedResponse:
    """Lowers the process rewards of a marked response to the lowest of its caps.

    The verifiable reward stays: a right answer is right. A cap, unlike a fee, weighs
    the same in the min form and in the sum, however many steps there are to share it.
    """
    cap = min((caps[name] for name in hacks if name in caps), default=None)
    if cap is None:
        return judged
    return replace(
        judged, step_rewards=np.minimum(judged.step_rewards, np.float32(cap))
    )


def check_hack_settings(config: Any) -> None:
    """Raises a ValueError that names the first of these settings that cannot work."""
    for name in ("hack_caps", "hack_limits", "hacking_thresholds"):
        if not isinstance(getattr(config, name), Mapping):
            raise ValueError(
                f"`{name}` ({getattr(config, name)!r}) must be a dict. Set it to {{}} "
                "for the defaults."
            )
    for name, cap in config.hack_caps.items():
        if name not in HACKS:
            raise ValueError(
                f"`hack_caps` ({name!r}) must name a mark; it may hold {sorted(HACKS)}."
            )
        is_number = isinstance(cap, int | float) and not isinstance(cap, bool)
        if not (is_number and -1.0 <= cap <= 1.0):
            raise ValueError(
                f"`hack_caps` ({name!r}: {cap!r}) must be in [-1, 1], because process "
                "rewards are. Set it to -1.0, the lowest there is."
            )
    if config.hack_caps and not config.process_reward_coeff:
        raise ValueError(
            f"`hack_caps` ({dict(config.hack_caps)}) has no effect with "
            f"`process_reward_coeff` ({config.process_reward_coeff}), because it caps "
            "process rewards. Leave it out."
        )
    _check_fields("hack_limits", HackLimits, config.hack_limits)
    _check_fields("hacking_thresholds", HackingThresholds, config.hacking_thresholds)
    if config.hacking_monitor not in (None, *ACTIONS):
        raise ValueError(
            f"`hacking_monitor` ({config.hacking_monitor!r}) must be None or one of "
            f'{ACTIONS}. Set `.reporting(hacking_monitor="warn")`.'
        )


def _check_fields(setting: str, settings_class: type, values: Any) -> None:
    known = sorted(settings_class.__dataclass_fields__)  # type: ignore[attr-defined]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"`{setting}` has unknown keys {unknown}; it may hold {known}."
        )
    try:
        settings_class(**values)
    except ValueError as error:
        raise ValueError(f"`{setting}`: {error}") from error
