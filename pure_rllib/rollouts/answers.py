"""What a sampling call brings: whole responses, or responses over turns, judged.

G responses per prompt, P prompt tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from pure_rllib.data.order import ProblemTicket
from pure_rllib.data.problems import Problem
from pure_rllib.envs.text_episode import Turns
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.envs.vector import JudgedResponse, JudgeTimes
from pure_rllib.generation.base import Generator, Response, SamplingParams
from pure_rllib.rollouts.runner_sample import ENV_ERRORS, judge_counts
from pure_rllib.rollouts.turns import play_groups


@dataclass(frozen=True, slots=True)
class AnsweredGroup:
    """A prompt, its responses and what they earned.

    Attributes:
        problem: what was asked.
        prompt: `[P]` int64 ids.
        responses: G, or fewer where text environments failed.
        judged: one for each.
        turns: one for each.
    """

    problem: Problem
    prompt: np.ndarray
    responses: Sequence[Response]
    judged: Sequence[JudgedResponse]
    turns: Sequence[Turns]


@dataclass(frozen=True, slots=True)
class Answers:
    """What was sampled in one call.

    Attributes:
        groups: one per ticket.
        counts: see `RunnerSample`.
        sample_s: seconds of sampling.
        times: of judging.
    """

    groups: Sequence[AnsweredGroup]
    counts: Counter[str]
    sample_s: float
    times: JudgeTimes


def answer(
    env: TokenEnv,
    generator: Generator,
    source: Any,
    tickets: Sequence[ProblemTicket],
    group_size: int,
    params: SamplingParams,
    *,
    score: bool = True,
) -> Answers:
    """Samples a group of responses per ticket, and has them judged.

    Args:
        env: judges, and says how turns go where there are any.
        generator: writes the responses.
        source: the problems that tickets are of.
        tickets: which problems, and each one's seed.
        group_size: G.
        params: of sampling.
        score: False gives no process rewards.
    """
    if isinstance(env, TextTokenEnv):
        return _play(env, generator, source, tickets, group_size, params, score)
    return _respond(env, generator, source, tickets, group_size, params, score)


def _respond(
    env: TokenEnv,
    generator: Generator,
    source: Any,
    tickets: Sequence[ProblemTicket],
    group_size: int,
    params: SamplingParams,
    score: bool,
) -> Answers:
    """One response is all."""
    problems = [source[ticket.index] for ticket in tickets]
    prompts = env.encode_prompts(problems)
    start = perf_counter()
    responses = generator.generate(
        [prompt.tolist() for prompt in prompts],
        group_size,
        params,
        [ticket.seed for ticket in tickets],
    )
    sample_s = perf_counter() - start
    return judged(env, problems, prompts, responses, sample_s, score=score)


def judged(
    env: TokenEnv,
    problems: Sequence[Problem],
    prompts: Sequence[np.ndarray],
    responses: Sequence[Sequence[Response]],
    sample_s: float,
    *,
    score: bool = True,
) -> Answers:
    """Has groups of whole responses judged.

    Args:
        env: judges.
        problems: one per group.
        prompts: likewise, `[P]` ids each.
        responses: likewise, as many in each.
        sample_s: see `Answers`.
        score: False gives no process rewards.
    """
    before = judge_counts(env.judge)
    size = len(responses[0]) if responses else 0
    found, times = env.judge.judge(
        [problem for problem in problems for _ in range(size)],
        [prompt for prompt in prompts for _ in range(size)],
        [response.token_ids for group in responses for response in group],
        score=score,
    )
    groups = [
        AnsweredGroup(
            problem, prompt, group, found[i * size : (i + 1) * size], [Turns()] * size
        )
        for i, (problem, prompt, group) in enumerate(
            zip(problems, prompts, responses, strict=True)
        )
    ]
    return Answers(groups, judge_counts(env.judge) - before, sample_s, times)


def _play(
    env: TextTokenEnv,
    generator: Generator,
    source: Any,
    tickets: Sequence[ProblemTicket],
    group_size: int,
    params: SamplingParams,
    score: bool,
) -> Answers:
    """Text environments answer turns, and judge them."""
    start = perf_counter()
    played, write_s = play_groups(env, generator, source, tickets, group_size, params)
    texts = iter(
        env.rules.bridge.texts([e.own_ids for group in played for e in group.episodes])
    )
    groups = [
        AnsweredGroup(
            group.problem,
            group.prompt,
            group.responses,
            [episode.judged(score, next(texts)) for episode in group.episodes],
            [episode.turns() for episode in group.episodes],
        )
        for group in played
    ]
    counts = Counter({ENV_ERRORS: sum(group.num_errors for group in played)})
    times = JudgeTimes(0.0, perf_counter() - start - write_s)
    return Answers(groups, counts, write_s, times)
