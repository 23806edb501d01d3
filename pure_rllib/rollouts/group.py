"""The responses to one prompt, as episodes for learners and as records for reports.

P prompt tokens, T response tokens, S steps, G responses per prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import ray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from pure_rllib.credit.text_metrics import reflection
from pure_rllib.data.problems import Problem
from pure_rllib.envs.text_episode import Turns
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.generation.base import Response
from pure_rllib.hacking.flags import Flags
from pure_rllib.reporting.records import ResponseNumbers, ResponseRecord

_KEY = "pure_rllib"


@dataclass(slots=True)
class Group:
    """The responses to one prompt, as the driver has them.

    Attributes:
        group_id: unique in a run.
        episodes: G episodes, or a reference to them in Ray's object store.
        num_tokens: of all its rows: prompts, responses and the environment's.
        records: G responses' numbers, for metrics. Texts and tokens stay with the
            episodes.
    """

    group_id: int
    episodes: list[SingleAgentEpisode] | ray.ObjectRef
    num_tokens: int
    records: list[ResponseNumbers]

    @classmethod
    def of(cls, responses: Sequence["SampledResponse"]) -> "Group":
        """Makes a group of its G responses."""
        return cls(
            responses[0].group_id,
            [r.episode() for r in responses],
            sum(r.num_row_tokens for r in responses),
            [r.numbers() for r in responses],
        )

    def take_over(self, other: "Group") -> None:
        """Becomes the same group, sampled again."""
        self.episodes = other.episodes
        self.num_tokens = other.num_tokens
        self.records = other.records


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledResponse:
    """A response with everything that was found out about it: its episode's own data.

    Attributes:
        group_id: the same for all responses to one prompt, unique in a run.
        problem: what was asked.
        prompt_ids: `[P]` int64, template included.
        response: what was sampled.
        judged: its steps and rewards.
        weights_version: of the policy that was sampled from.
        flags: what its text says of it.
        num_separators: tokens that complete a blank line.
        total_reward: see `LLMConfig.total_rewards`.
        in_evaluation: whether it answers a held-out problem.
        turns: of the response, which is the policy's own tokens only.
    """

    group_id: int
    problem: Problem
    prompt_ids: np.ndarray
    response: Response
    judged: JudgedResponse
    weights_version: int
    flags: Flags = field(default_factory=Flags)
    num_separators: int = 0
    total_reward: float | None = None
    in_evaluation: bool = False
    turns: Turns = field(default_factory=Turns)

    @property
    def num_row_tokens(self) -> int:
        """Prompt, response and the environment's tokens."""
        own = len(self.prompt_ids) + len(self.response.token_ids)
        return own + self.turns.num_observation_tokens

    @staticmethod
    def of(episode: SingleAgentEpisode) -> "SampledResponse":
        """Returns the response that an episode was made of."""
        sampled: SampledResponse = episode.custom_data[_KEY]
        return sampled

    def episode(self) -> SingleAgentEpisode:
        """Makes an episode of T timesteps.

        Observation t is the token before action t, be it the environment's or the last
        of the prompt, so that an episode's size grows with T and not with its square.
        The first and the last info are what `TokenEnv` says there; the others are
        empty.
        """
        ids, terminated = self.response.token_ids, self.response.terminated
        observations = np.concatenate([self.prompt_ids[-1:], ids])
        for before, told in self.turns.observations:
            observations[before] = told[-1]
        asked = {"prompt_ids": self.prompt_ids, "problem_id": self.problem.problem_id}
        infos = [asked, *[{}] * (len(ids) - 1), self.judged.final_info()]
        episode = SingleAgentEpisode(
            observations=InfiniteLookbackBuffer(observations),
            actions=InfiniteLookbackBuffer(ids),
            rewards=InfiniteLookbackBuffer(self.rewards()),
            infos=InfiniteLookbackBuffer(infos),
            extra_model_outputs={
                Columns.ACTION_LOGP: InfiniteLookbackBuffer(self.response.logps)
            },
            terminated=terminated,
            truncated=not terminated,
            len_lookback_buffer=0,
        )
        episode.custom_data[_KEY] = self
        return episode

    def rewards(self) -> np.ndarray:
        """Returns the `[T]` float32 rewards of its tokens, as its episode has them.

        Process rewards; in evaluation, which has none, the verifiable reward at the
        end.
        """
        rewards = self.judged.token_rewards(len(self.response.token_ids))
        if self.in_evaluation:
            rewards[-1] = self.judged.outcome_reward or 0.0
        return rewards

    def numbers(self) -> ResponseNumbers:
        """Returns what metrics need of it."""
        verdict = self.judged.verdict
        return ResponseNumbers(
            group_id=str(self.group_id),
            num_tokens=len(self.response.token_ids),
            step_spans=self.judged.step_spans,
            step_rewards=self.judged.step_rewards if self.judged.is_scored else None,
            verifiable_reward=self.judged.verifiable_reward,
            model_reward=self.judged.model_reward,
            outcome=None if verdict is None else verdict.outcome,
            terminated=self.response.terminated,
            num_separators=self.num_separators,
            has_visible=self.judged.has_visible,
            repetition=self.flags.repetition,
            reflection=reflection(self.judged.text),
            hacks=sorted(self.flags.names),
            total_reward=self.total_reward,
            num_prompt_tokens=len(self.prompt_ids),
            num_turns=self.turns.number,
            has_cut_turn=self.turns.is_cut,
            num_observation_tokens=self.turns.num_observation_tokens,
            num_cut_observations=self.turns.num_cut_observations,
            metadata={
                "problem_id": self.problem.problem_id,
                "weights_version": self.weights_version,
            },
            verdict_parts={
                name: float(part)
                for name, part in (verdict.parts if verdict else {}).items()
            },
        )

    def record(self, numbers: ResponseNumbers, **of_report: Any) -> ResponseRecord:
        """Adds texts and tokens to its numbers.

        Args:
            numbers: its own, with what the driver knows of it.
            **of_report: `response_tokens`, `observations`, `returns` and `advantages`
                of the record.
        """
        known = {f.name: getattr(numbers, f.name) for f in fields(numbers)}
        del known["num_tokens"]
        verdict = self.judged.verdict
        return ResponseRecord(
            **known,
            prompt=self.problem.prompt,
            answer=self.problem.answer,
            response_text=self.judged.text,
            token_ids=self.response.token_ids,
            extracted_answer=None if verdict is None else verdict.answer,
            **of_report,
        )


def has_signal(records: Sequence[ResponseNumbers], config: Any) -> bool:
    """Tells whether the responses to one prompt differ in what the run rewards.

    Args:
        records: of a group.
        config: the `LLMConfig`, which knows what is rewarded.
    """
    return len({config.earned(record) for record in records}) > 1
