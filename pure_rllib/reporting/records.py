"""What is kept of a response for metrics and reports. T response tokens, S steps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pure_rllib.rewards.base import Outcome

Numbers = Sequence[float] | np.ndarray


@dataclass(slots=True)
class ResponseRecord:
    """One response with everything that was found out about it.

    Attributes:
        group_id: names the group; the same for all responses to one prompt.
        prompt: the problem's text, before any template.
        answer: the gold answer, or None where it is unknown.
        response_text: the decoded response.
        response_tokens: T strings, each token decoded on its own; None until a report
            needs them.
        token_ids: T ids.
        step_spans: `[S, 2]` half-open token ranges, in order.
        step_rewards: S process rewards in [-1, 1], or None where nothing scored them.
        verifiable_reward: 0.0 or 1.0; None where the gold answer is unknown.
        outcome: the verifier's verdict; None where it was not asked.
        extracted_answer: the answer that the verifier found.
        terminated: False if the token budget ran out.
        num_separators: tokens that end with two newlines.
        has_visible: whether the text has a visible character.
        repetition: share of the text that repeats itself, in [0, 1].
        hacks: marks of `rewards.hack_flags.HACKS` that it bears, sorted.
        reflection: number of words of second thought.
        advantages: T numbers, or None before the learner has seen the response.
        returns: T numbers, or None likewise.
        total_reward: credited rewards of the response, summed; None likewise.
        num_prompt_tokens: prompt tokens, template included; None where not counted.
        metadata: whatever else is to be shown (level, seed, weights version, ...).
    """

    group_id: str
    prompt: str
    answer: str | None
    response_text: str
    response_tokens: Sequence[str] | None
    token_ids: Sequence[int] | np.ndarray
    step_spans: Sequence[tuple[int, int]] | np.ndarray
    step_rewards: Numbers | None = None
    verifiable_reward: float | None = None
    outcome: Outcome | None = None
    extracted_answer: str | None = None
    terminated: bool = True
    num_separators: int = 0
    has_visible: bool = True
    repetition: float = 0.0
    reflection: int = 0
    hacks: Sequence[str] = ()
    advantages: Numbers | None = None
    returns: Numbers | None = None
    total_reward: float | None = None
    num_prompt_tokens: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_tokens, num_steps = len(self.token_ids), len(self.step_spans)
        for name, expected in (
            ("response_tokens", num_tokens),
            ("advantages", num_tokens),
            ("returns", num_tokens),
            ("step_rewards", num_steps),
        ):
            values = getattr(self, name)
            if values is not None and len(values) != expected:
                raise ValueError(
                    f"`{name}` ({len(values)} values) must have {expected}: one per "
                    f"{'step' if name == 'step_rewards' else 'token'} of the response"
                )

    @property
    def num_tokens(self) -> int:
        """T, the number of response tokens."""
        return len(self.token_ids)

    @property
    def min_reward(self) -> float | None:
        """The worst step's process reward; None where there is none."""
        if self.step_rewards is None or len(self.step_rewards) == 0:
            return None
        return float(min(self.step_rewards))

    @property
    def correct(self) -> bool | None:
        """Whether the answer is right; None where that is unknown."""
        return None if self.verifiable_reward is None else self.verifiable_reward > 0.5


def group_records(records: Iterable[ResponseRecord]) -> list[list[ResponseRecord]]:
    """Gathers records by `group_id`, groups and responses in order of appearance."""
    groups: dict[str, list[ResponseRecord]] = {}
    for record in records:
        groups.setdefault(record.group_id, []).append(record)
    return list(groups.values())
