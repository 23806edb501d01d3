"""Samples responses over turns, in rounds: all live rows write, then all envs step.

Tokens in, tokens out: nothing that was sampled is decoded and encoded again.
"""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from pure_rllib.data.chat import Text
from pure_rllib.data.order import ProblemTicket
from pure_rllib.data.problems import Problem
from pure_rllib.envs.text_env import TextTasks, call_all, close_env, task
from pure_rllib.envs.text_episode import TextEpisode
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.generation.base import Generator, Response, SamplingParams

MAX_ATTEMPTS = 3
"""How often a group is played in which too few environments answer."""


@dataclass(slots=True)
class PlayedGroup:
    """What was played of one task.

    Attributes:
        problem: the task.
        prompt: `[P]` int64 ids of the first observation in the prompt's form.
        episodes: those whose environment answered to the end.
        num_errors: environments that raised or did not answer in time.
        first_error: of these.
    """

    problem: Problem
    prompt: np.ndarray
    episodes: list[TextEpisode] = field(default_factory=list)
    num_errors: int = 0
    first_error: Exception | None = None

    @property
    def responses(self) -> list[Response]:
        """The policy's own tokens of each episode."""
        return [
            Response(
                np.asarray(episode.own_ids, dtype=np.int64),
                np.asarray(episode.logps, dtype=np.float32),
                episode.terminated,
            )
            for episode in self.episodes
        ]


@dataclass(slots=True)
class _Row:
    """One response on its way."""

    group: int
    member: int
    env: Any
    episode: TextEpisode
    error: Exception | None = None
    is_ended: bool = False

    @property
    def is_live(self) -> bool:
        return self.error is None and not self.episode.is_over


def play_groups(
    env: TextTokenEnv,
    generator: Generator,
    tasks: TextTasks,
    tickets: Sequence[ProblemTicket],
    group_size: int,
    params: SamplingParams,
) -> tuple[list[PlayedGroup], float]:
    """Plays each task `group_size` times.

    A response depends on its ticket's seed, its number in the group and the weights. An
    environment that fails costs its response: the group goes on without, and is played
    again where fewer than two are left to compare.

    Args:
        env: says how turns go.
        generator: writes them.
        tasks: which the tickets are of.
        tickets: which tasks, and each one's seed.
        group_size: G.
        params: of sampling; the budget is of turns and observations together.

    Returns:
        The groups, and the seconds in which the generator wrote.

    Raises:
        RuntimeError: more environments failed than `env_error_limit` allows, or all of
            a group again and again.
        ValueError: one task began with different observations.
    """
    least = min(2, group_size)
    groups, write_s = _play(env, generator, tasks, tickets, group_size, params)
    for attempt in range(1, MAX_ATTEMPTS):
        short = [i for i, g in enumerate(groups) if len(g.episodes) < least]
        anew = [
            replace(tickets[i], seed=_seed(tickets[i].seed, attempt)) for i in short
        ]
        played, seconds = _play(env, generator, tasks, anew, group_size, params)
        write_s += seconds
        for i, again in zip(short, played, strict=True):
            groups[i].episodes = [*groups[i].episodes, *again.episodes][:group_size]
            groups[i].num_errors += again.num_errors
            if len(again.prompt):
                # The same, or the first that any environment gave.
                groups[i].problem, groups[i].prompt = again.problem, again.prompt
    for group in groups:
        if len(group.episodes) < least:
            raise _failure(group, f"{MAX_ATTEMPTS} times in a row")
    return groups, write_s


def _play(
    env: TextTokenEnv,
    generator: Generator,
    tasks: TextTasks,
    tickets: Sequence[ProblemTicket],
    group_size: int,
    params: SamplingParams,
) -> tuple[list[PlayedGroup], float]:
    """Plays each task `group_size` times, once."""
    seeds = [tasks.seeds[ticket.index] for ticket in tickets]
    rows = [
        _Row(i, member, None, env.episode(params.max_response_tokens))
        for i in range(len(tickets))
        for member in range(group_size)
    ]
    try:
        starts = _call(env, rows, [partial(_start, env, row, seeds) for row in rows])
        groups = _groups(env, rows, starts, seeds)
        live = [row for row in rows if row.is_live]
        turn, write_s = 0, 0.0
        while live:
            start = perf_counter()
            _write(generator, groups, tickets, live, turn, group_size, params)
            write_s += perf_counter() - start
            _step(env, live)
            live = [row for row in live if row.is_live]
            turn += 1
    finally:
        _close(env, rows)
    for row in rows:
        group = groups[row.group]
        if row.error is None:
            group.episodes.append(row.episode)
        else:
            group.num_errors += 1
            group.first_error = group.first_error or row.error
    num_errors = sum(group.num_errors for group in groups)
    if num_errors > env.env_error_limit * len(rows):
        failed = next(group for group in groups if group.num_errors)
        raise _failure(failed, f"in {num_errors} of {len(rows)} responses")
    return groups, write_s


def _start(env: TextTokenEnv, row: _Row, seeds: Sequence[int]) -> Text:
    row.env = env.make_text_env()
    observation: Text = row.env.reset(seed=seeds[row.group])[0]
    return observation


def _close(env: TextTokenEnv, rows: Sequence[_Row]) -> None:
    # One that did not answer in time is still at it, and closed when it does.
    idle = [row for row in rows if not isinstance(row.error, TimeoutError)]
    idle = [row for row in idle if hasattr(row.env, "close")]
    _call(env, idle, [partial(close_env, row.env) for row in idle])


def _call(env: TextTokenEnv, rows: Sequence[_Row], calls: Sequence[Any]) -> list[Any]:
    """Calls one function for each row; what failed is noted there."""
    results = call_all(
        calls,
        timeout_s=env.step_timeout_s,
        max_concurrent=env.max_concurrent_envs,
        if_late=lambda number: close_env(rows[number].env),
    )
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, Exception):
            row.error = row.error or result
    return results


def _groups(
    env: TextTokenEnv, rows: Sequence[_Row], starts: list[Any], seeds: Sequence[int]
) -> list[PlayedGroup]:
    """Makes the groups of the first observations, which are one task's prompt."""
    found: dict[int, Text] = {}
    for row, start in zip(rows, starts, strict=True):
        if row.error is None and found.setdefault(row.group, start) != start:
            raise ValueError(
                f"`make_env` ({type(row.env).__name__}) must begin alike with one seed "
                f"({seeds[row.group]}), because a group answers one prompt; it said "
                f"{found[row.group]!r:.80} and {start!r:.80}. Draw everything in "
                "`reset` from a generator with that seed."
            )
    problems = [task(found.get(i, ""), seed) for i, seed in enumerate(seeds)]
    prompts = iter(env.encode_prompts([problems[i] for i in sorted(found)]))
    return [
        PlayedGroup(one, next(prompts) if i in found else np.zeros(0, np.int64))
        for i, one in enumerate(problems)
    ]


def _write(
    generator: Generator,
    groups: Sequence[PlayedGroup],
    tickets: Sequence[ProblemTicket],
    live: Sequence[_Row],
    turn: int,
    group_size: int,
    params: SamplingParams,
) -> None:
    """Has every live row write a turn."""
    if turn == 0:
        # As single responses are sampled: to each prompt a group.
        asked = sorted({row.group for row in live})
        answers = generator.generate(
            [groups[i].prompt.tolist() for i in asked],
            group_size,
            replace(params, max_response_tokens=live[0].episode.turn_budget),
            [tickets[i].seed for i in asked],
        )
        by_group = dict(zip(asked, answers, strict=True))
        for row in live:
            _append(row, by_group[row.group][row.member])
        return
    answers = generator.generate(
        [[*groups[r.group].prompt.tolist(), *r.episode.all_ids()] for r in live],
        1,
        params,
        [_seed(tickets[r.group].seed, r.member, turn) for r in live],
        [row.episode.turn_budget for row in live],
    )
    for row, (response,) in zip(live, answers, strict=True):
        _append(row, response)


def _append(row: _Row, response: Response) -> None:
    row.episode.own_ids += response.token_ids.tolist()
    row.episode.logps += response.logps.tolist()
    row.is_ended = response.terminated


def _step(env: TextTokenEnv, live: Sequence[_Row]) -> None:
    """Shows each turn that ended to its environment."""
    written = [(row, row.episode.end_turn(row.is_ended)) for row in live]
    shown = [(row, ids) for row, ids in written if ids is not None]
    rows = [row for row, _ in shown]
    texts = env.rules.bridge.texts([ids for _, ids in shown])
    steps = [partial(r.env.step, text) for r, text in zip(rows, texts, strict=True)]
    results = _call(env, rows, steps)
    for row, result in zip(rows, results, strict=True):
        if row.error is None:
            row.episode.take(result)


def _seed(*parts: int) -> int:
    """A number in [0, 2**63) of its own for every choice of parts."""
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def _failure(group: PlayedGroup, how_often: str) -> RuntimeError:
    assert group.first_error is not None, "there is a failure"
    lines = "".join(traceback.format_exception(group.first_error))
    return RuntimeError(
        f"The text environment failed {how_often}, first with the task of seed "
        f"{group.problem.problem_id}. What a policy does wrong must be an observation. "
        f"Repair it, or raise `env_config.env_error_limit`. Its error:\n{lines}"
    )
