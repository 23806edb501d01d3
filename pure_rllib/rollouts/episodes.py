"""One prompt and one response as an RLlib episode. P prompt, T response tokens."""

from dataclasses import dataclass

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.generation.base import Response

_KEY = "pure_rllib"


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
