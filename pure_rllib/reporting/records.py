"""What is kept of a response for metrics and reports. T response tokens, S steps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from pure_rllib.rewards.base import Outcome

_DECIMALS = 5

Numbers = Sequence[float] | np.ndarray


@dataclass(slots=True, kw_only=True)
class ResponseNumbers:
    """What metrics need of a response: all that is known but texts and tokens.

    Attributes:
        group_id: names the group; the same for all responses to one prompt.
        num_tokens: T, the number of response tokens, the policy's own.
        step_spans: `[S, 2]` half-open token ranges, in order.
        step_rewards: S process rewards in [-1, 1], or None where nothing scored them.
        verifiable_reward: in [0, 1]; None where the gold answer is unknown.
        model_reward: what a reward model says, any number; None without one.
        outcome: the verifier's verdict; None where it was not asked.
        terminated: False if the token budget ran out.
        num_separators: tokens that complete a blank line.
        has_visible: whether the text has a visible character.
        repetition: share of the text that repeats itself, in [0, 1].
        reflection: number of words of second thought.
        hacks: flags of `hacking.flags.FLAGS` that it bears, sorted.
        total_reward: credited rewards of the response, summed; None before they are
            known.
        num_prompt_tokens: prompt tokens, template included; None where not counted.
        num_turns: turns of the policy.
        has_cut_turn: whether the last one was cut by a budget.
        num_observation_tokens: the environment's tokens between them.
        num_cut_observations: what it said at too great length.
        metadata: whatever else is to be shown (problem, weights version, ...).
        verdict_parts: what the verifiable reward is made of, by name.
    """

    group_id: str
    num_tokens: int
    step_spans: Sequence[tuple[int, int]] | np.ndarray
    step_rewards: Numbers | None = None
    verifiable_reward: float | None = None
    model_reward: float | None = None
    outcome: Outcome | None = None
    terminated: bool = True
    num_separators: int = 0
    has_visible: bool = True
    repetition: float = 0.0
    reflection: int = 0
    hacks: Sequence[str] = ()
    total_reward: float | None = None
    num_prompt_tokens: int | None = None
    num_turns: int = 1
    has_cut_turn: bool = False
    num_observation_tokens: int = 0
    num_cut_observations: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    verdict_parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def min_reward(self) -> float | None:
        """The worst step's process reward; None where there is none."""
        if self.step_rewards is None or len(self.step_rewards) == 0:
            return None
        return float(min(self.step_rewards))

    @property
    def outcome_reward(self) -> float | None:
        """What the response as a whole earns: the reward model's, else the verifier's.

        Reward models' last digits hang on the batch, and are left out.
        """
        if self.model_reward is None:
            return self.verifiable_reward
        return round(self.model_reward, _DECIMALS)

    @property
    def correct(self) -> bool | None:
        """Whether the answer is right; None where that is unknown."""
        return None if self.outcome is None else self.outcome == "correct"


@dataclass(slots=True, kw_only=True)
class ResponseRecord(ResponseNumbers):
    """One response with everything that was found out about it.

    Attributes:
        prompt: the problem's text, before any template.
        answer: the gold answer, or None where it is unknown.
        response_text: the decoded response.
        response_tokens: T strings, each token decoded on its own; None until a report
            needs them.
        token_ids: T ids.
        extracted_answer: the answer that the verifier found.
        advantages: T numbers, or None before the learner has seen the response.
        returns: T numbers, or None likewise.
        observations: what the environment said between turns, as the policy saw it,
            each with the number of response tokens before it.
    """

    num_tokens: int = field(init=False)
    prompt: str
    answer: str | None
    response_text: str
    response_tokens: Sequence[str] | None
    token_ids: Sequence[int] | np.ndarray
    extracted_answer: str | None = None
    advantages: Numbers | None = None
    returns: Numbers | None = None
    observations: Sequence[tuple[int, str]] = ()

    def __post_init__(self) -> None:
        self.num_tokens, num_steps = len(self.token_ids), len(self.step_spans)
        for name, expected in (
            ("response_tokens", self.num_tokens),
            ("advantages", self.num_tokens),
            ("returns", self.num_tokens),
            ("step_rewards", num_steps),
        ):
            values = getattr(self, name)
            if values is not None and len(values) != expected:
                raise ValueError(
                    f"`{name}` ({len(values)} values) must have {expected}: one per "
                    f"{'step' if name == 'step_rewards' else 'token'} of the response"
                )

    def as_dict(self) -> dict[str, Any]:
        """Returns the arguments that make this record again, in a file's order."""
        optional = {
            "verdict_parts": self.verdict_parts or None,
            "model_reward": self.model_reward,
            "num_turns": self.num_turns if self.num_turns > 1 else None,
            **{name: getattr(self, name) or None for name in _OF_TURNS},
        }
        known = {name: value for name, value in optional.items() if value is not None}
        return {name: getattr(self, name) for name in _IN_FILES} | known


_IN_FILES = [
    "group_id",
    "prompt",
    "answer",
    "response_text",
    "response_tokens",
    "token_ids",
    "step_spans",
    "step_rewards",
    "verifiable_reward",
    "outcome",
    "extracted_answer",
    "terminated",
    "num_separators",
    "has_visible",
    "repetition",
    "reflection",
    "hacks",
    "advantages",
    "returns",
    "total_reward",
    "num_prompt_tokens",
    "metadata",
]
_OF_TURNS = (
    "observations",
    "has_cut_turn",
    "num_observation_tokens",
    "num_cut_observations",
)
_Response = TypeVar("_Response", bound=ResponseNumbers)


def group_records(records: Iterable[_Response]) -> list[list[_Response]]:
    """Gathers records by `group_id`, groups and responses in order of appearance."""
    groups: dict[str, list[_Response]] = {}
    for record in records:
        groups.setdefault(record.group_id, []).append(record)
    return list(groups.values())
