"""Groups that an env runner samples from call to call, while weights change."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from pure_rllib.data.order import ProblemTicket
from pure_rllib.data.problems import Problem
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.envs.vector import JudgeTimes
from pure_rllib.generation.base import SamplingParams
from pure_rllib.rollouts.answers import Answers, judged

TURN_S = 0.5
"""How long one call goes on: newer weights and prompts wait so long at most."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt under way."""

    group_id: int
    problem: Problem
    prompt: np.ndarray


class Flight:
    """The prompts that a vLLM engine is at, in the order in which they came.

    Args:
        env: makes prompts, and judges.
        generator: a `VLLMGenerator`.
    """

    def __init__(self, env: TokenEnv, generator: Any):
        self._env = env
        self._generator = generator
        self._asked: dict[str, _Asked] = {}

    def begin(
        self,
        tickets: Sequence[ProblemTicket],
        group_ids: Sequence[int],
        group_size: int,
        params: SamplingParams,
    ) -> None:
        """Begins the groups of further prompts."""
        problems = [self._env.problems[ticket.index] for ticket in tickets]
        prompts = self._env.encode_prompts(problems)
        names = self._generator.begin(
            [prompt.tolist() for prompt in prompts],
            group_size,
            params,
            [ticket.seed for ticket in tickets],
        )
        asked = map(_Asked, group_ids, problems, prompts)
        self._asked |= dict(zip(names, asked, strict=True))

    def advance(self) -> tuple[list[int], Answers]:
        """Goes on for a turn, or until a group is finished.

        Returns:
            The id of the group that is finished, if one is, and the group, judged.
        """
        start = perf_counter()
        done = self._generator.advance(self._asked, TURN_S) if self._asked else None
        sample_s = perf_counter() - start
        if done is None:
            return [], Answers([], Counter(), sample_s, JudgeTimes(0.0, 0.0))
        name, responses = done
        of = self._asked.pop(name)
        answers = judged(self._env, [of.problem], [of.prompt], [responses], sample_s)
        return [of.group_id], answers

    def drop(self) -> None:
        """Forgets what is under way."""
        self._generator.abort(self._asked)
        self._asked = {}
