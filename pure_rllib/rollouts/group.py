"""The responses to one prompt, as episodes and as records.

P prompt tokens, T response tokens, S steps, G responses per prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from pure_rllib.credit.returns import step_credits
from pure_rllib.credit.steps import StepSplitter
from pure_rllib.credit.text_metrics import reflection
from pure_rllib.data.problems import Problem
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.generation.base import Response
from pure_rllib.reporting.records import ResponseRecord

_KEY = "pure_rllib"
# Rewards that differ by less are equal: a PRM's last digits hang on the batch.
_DECIMALS = 5


@dataclass(slots=True)
class Group:
    """The responses to one prompt.

    Attributes:
        group_id: unique in a run.
        episodes: G episodes, or a reference to them in Ray's object store.
        num_tokens: prompt and response tokens of all its responses.
        records: G records, for metrics and reports.
    """

    group_id: int
    episodes: list[SingleAgentEpisode] | ray.ObjectRef
    num_tokens: int
    records: list[ResponseRecord]

    def take_over(self, other: "Group") -> None:
        """Becomes the same group, sampled again."""
        self.episodes = other.episodes
        self.num_tokens = other.num_tokens
        self.records = other.records


@dataclass(slots=True)
class ResponseData:
    """What an episode holds beside its tokens, log-probabilities and rewards.

    Attributes:
        prompt_ids: `[P]` int64.
        group_id: the same for all responses to one prompt, unique in a run.
        step_spans: `[S, 2]` int64, half-open token ranges in the response.
        step_rewards: `[S]` float32 process rewards in [-1, 1].
        verifiable_reward: 1.0, 0.0, or None without a gold answer.
        weights_version: of the policy that sampled the response.
    """

    prompt_ids: np.ndarray
    group_id: int
    step_spans: np.ndarray
    step_rewards: np.ndarray
    verifiable_reward: float | None
    weights_version: int

    @staticmethod
    def of(episode: SingleAgentEpisode) -> "ResponseData":
        """Returns the data of an episode made by `make_episode`."""
        data: ResponseData = episode.custom_data[_KEY]
        return data


def make_episode(
    response: Response,
    judged: JudgedResponse,
    *,
    prompt_ids: np.ndarray,
    group_id: int,
    weights_version: int,
) -> SingleAgentEpisode:
    """Turns a judged response into an episode of T timesteps.

    Observation t is the token before action t, the last prompt token for t = 0, so that
    an episode's size grows with T and not with its square.
    """
    ids = response.token_ids
    episode = SingleAgentEpisode(
        observations=InfiniteLookbackBuffer(np.concatenate([prompt_ids[-1:], ids])),
        actions=InfiniteLookbackBuffer(ids),
        rewards=InfiniteLookbackBuffer(judged.token_rewards(len(ids))),
        infos=InfiniteLookbackBuffer([{}] * (len(ids) + 1)),
        extra_model_outputs={
            Columns.ACTION_LOGP: InfiniteLookbackBuffer(response.logps)
        },
        terminated=response.terminated,
        truncated=not response.terminated,
        len_lookback_buffer=0,
    )
    episode.custom_data[_KEY] = ResponseData(
        prompt_ids=prompt_ids,
        group_id=group_id,
        step_spans=judged.step_spans,
        step_rewards=judged.step_rewards,
        verifiable_reward=judged.verifiable_reward,
        weights_version=weights_version,
    )
    return episode


def make_record(
    problem: Problem,
    response: Response,
    judged: JudgedResponse,
    *,
    group_id: int,
    num_prompt_tokens: int,
    splitter: StepSplitter,
    total_reward: float,
    weights_version: int,
    repetition: float,
    hacks: frozenset[str],
) -> ResponseRecord:
    """Gathers what is known of a response before it is learned from.

    Args:
        problem: what was asked.
        response: what was sampled.
        judged: its steps and rewards.
        group_id: of its group.
        num_prompt_tokens: template included.
        splitter: counts separators.
        total_reward: see `total_rewards`.
        weights_version: of the policy that was sampled from.
        repetition: of its text.
        hacks: marks of `rewards.hack_flags.HACKS`.
    """
    verdict = judged.verdict
    return ResponseRecord(
        group_id=str(group_id),
        prompt=problem.prompt,
        answer=problem.answer,
        response_text=judged.text,
        response_tokens=None,
        token_ids=response.token_ids,
        step_spans=judged.step_spans,
        step_rewards=judged.step_rewards,
        verifiable_reward=judged.verifiable_reward,
        outcome=None if verdict is None else verdict.outcome,
        extracted_answer=None if verdict is None else verdict.answer,
        terminated=response.terminated,
        num_separators=splitter.num_separators(response.token_ids),
        has_visible=judged.has_visible,
        repetition=repetition,
        hacks=sorted(hacks),
        reflection=reflection(judged.text),
        total_reward=total_reward,
        num_prompt_tokens=num_prompt_tokens,
        metadata={
            "problem_id": problem.problem_id,
            "weights_version": weights_version,
        },
    )


def has_signal(records: Sequence[ResponseRecord], config: Any) -> bool:
    """Tells whether the responses to one prompt differ in what the run rewards.

    Args:
        records: of a group.
        config: the `PUREConfig`; a reward stream whose coefficient is 0 does not count.
            Where steps end does, unless the baseline is that for whole responses: the
            others take something off for each token or step.
    """
    earned = {
        (
            r.verifiable_reward if config.verifiable_reward_coeff else None,
            tuple(np.round(np.asarray(r.step_rewards), _DECIMALS).tolist())
            if config.process_reward_coeff
            else None,
            tuple(np.asarray(r.step_spans)[:, 1].tolist())
            if config.process_reward_coeff and config.baseline != "response"
            else None,
        )
        for r in records
    }
    return len(earned) > 1


def total_rewards(judged: Sequence[JudgedResponse], config: Any) -> list[float]:
    """Each response's credited process and verifiable rewards, weighted and added."""
    rewards = [torch.from_numpy(j.step_rewards) for j in judged]
    sizes = torch.tensor([len(r) for r in rewards])
    credits = step_credits(
        torch.nn.utils.rnn.pad_sequence(rewards, batch_first=True),
        torch.arange(int(sizes.max()))[None] < sizes[:, None],
        credit_assignment=config.credit_assignment,
        credit_temperature=config.credit_temperature,
    )
    process = (config.process_reward_coeff * credits.sum(dim=1)).tolist()
    return [
        total + config.verifiable_reward_coeff * (j.verifiable_reward or 0.0)
        for total, j in zip(process, judged, strict=True)
    ]
