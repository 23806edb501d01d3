"""Turns: own and environment's tokens in rows, rounds, rewards, failing environments.

The numbers are those of the behaviours that are asked of environments with turns.
"""

import random
import time
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from transformers import Qwen2Config, Qwen2ForCausalLM

from pure_rllib.connectors.episodes_to_rows import EpisodesToRows
from pure_rllib.connectors.pure_advantages import PUREAdvantages
from pure_rllib.credit.presets import CreditConfig
from pure_rllib.data.bridge import CUT_MARK
from pure_rllib.data.order import ProblemTicket
from pure_rllib.data.problems import Problem
from pure_rllib.envs.guess_number import GuessNumber, GuessNumberEnv, guess_tokenizer
from pure_rllib.envs.text_env import call_all, text_env
from pure_rllib.envs.text_episode import TextEpisode
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.generation.base import SamplingParams
from pure_rllib.generation.transformers_generator import TransformersGenerator
from pure_rllib.models import columns
from pure_rllib.models.batching import cut_rows, micro_batches
from pure_rllib.models.flat_attention import set_flat_attention
from pure_rllib.models.logprobs import LOGP, response_logps, sequence_logps
from pure_rllib.rollouts.group import SampledResponse
from pure_rllib.rollouts.turns import PlayedGroup, play_groups
from pure_rllib.testing import HashScorer, byte_tokenizer, tiny_model_config

PARAMS = SamplingParams(max_response_tokens=8)
TICKETS = [ProblemTicket(i, 0, i, 100 + i) for i in range(3)]


class Talk:
    """Ends after three turns with 1.0 if the last one begins with "1"."""

    closed = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[str, dict]:
        self.turn, self.seed = 0, seed
        return "?", {}

    def step(self, action: str) -> Any:
        self.turn += 1
        done = self.turn == 3
        return "<>"[self.seed % 2], None if not done else 1.0, done, False, {}

    def close(self) -> None:
        type(self).closed += 1


def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = dict(tiny_model_config(len(tokenizer)))
    config.pop("model_type")
    return Qwen2ForCausalLM(Qwen2Config(**config)).eval()


def generator(env: TextTokenEnv) -> TransformersGenerator:
    return TransformersGenerator(
        model(env.tokenizer), pad_token_id=0, eos_token_ids=env.eos_token_ids
    )


def token_env(make_env: Any = Talk, **kwargs: Any) -> TextTokenEnv:
    settings: dict[str, Any] = {"max_prompt_tokens": 1, "max_response_tokens": 8}
    settings["eos_token_ids"] = range(1, 9)
    return TextTokenEnv(
        make_env=make_env,
        tokenizer=guess_tokenizer(),
        num_tasks=8,
        **{**settings, **kwargs},
    )


def play(
    env: TextTokenEnv, size: int = 4, tickets: Any = TICKETS, **params: Any
) -> list[PlayedGroup]:
    tasks: Any = env.problems
    chosen = SamplingParams(max_response_tokens=env.max_response_tokens, **params)
    groups, _ = play_groups(env, generator(env), tasks, tickets, size, chosen)
    return groups


def sampled(episode: TextEpisode, group_id: int = 0) -> SampledResponse:
    (response,) = PlayedGroup(Problem(""), np.array([11]), [episode]).responses
    return SampledResponse(
        group_id=group_id,
        problem=Problem(""),
        prompt_ids=np.array([11]),
        response=response,
        judged=episode.judged(),
        weights_version=0,
        turns=episode.turns(),
    )


def rows_of(samples: list[SampledResponse]) -> dict[str, Any]:
    batch = EpisodesToRows()(
        rl_module=None, batch={}, episodes=[s.episode() for s in samples]
    )
    rows: dict[str, Any] = batch[DEFAULT_MODULE_ID]
    return rows


def by_hand(
    env: TextTokenEnv, turns: list[str], answers: list[Any], told: int = 1
) -> TextEpisode:
    """An episode of given turns, whose observations have `told` tokens."""
    episode = env.episode(200)
    for turn, (reward, done) in zip(turns, answers, strict=True):
        episode.own_ids += env.tokenizer.encode(turn + "<|endoftext|>")
        episode.logps = [-1.0] * len(episode.own_ids)
        episode.end_turn(True)
        episode.take(("<" * told, reward, done, False, {}))
    return episode


def test_1_a_turn_begins_with_all_ids_before_it_and_none_is_encoded_again() -> None:
    env = GuessNumberEnv()
    seen: list[list[int]] = []
    policy = generator(env)
    inner = policy.generate

    def watch(prompts: Any, *args: Any) -> Any:
        answers = inner(prompts, *args)
        seen.extend(
            [*prompt, *one.token_ids.tolist()]
            for prompt, group in zip(prompts, answers, strict=True)
            for one in group
        )
        return answers

    policy.generate = watch  # type: ignore
    tasks: Any = env.problems
    groups, _ = play_groups(env, policy, tasks, TICKETS, 8, PARAMS)
    several = [e for g in groups for e in g.episodes if len(e.turn_ends) > 1]
    assert several
    for episode in several:
        row = [11, *episode.all_ids()]
        for end, (before, _) in zip(
            episode.turn_ends, episode.observations, strict=False
        ):
            assert end == before
            told = sum(len(i) for b, i in episode.observations if b < before)
            assert row[: 1 + end + told] in seen
        assert row in seen


def test_what_is_said_at_too_great_length_is_cut_and_counted() -> None:
    tokenizer = byte_tokenizer()
    env = TextTokenEnv(
        make_env=Talk,
        tokenizer=tokenizer,
        num_tasks=1,
        max_response_tokens=20,
        max_observation_tokens=1,
    )
    episode = by_hand(env, ["1", "2"], [(0.0, False), (0.0, True)], told=3)
    assert episode.turns().num_cut_observations == 1
    (said,) = episode.turns().observations
    assert tokenizer.decode(said[1].tolist()) == f"<{CUT_MARK}"


def test_a_function_that_asks_for_replies_is_an_environment() -> None:
    @text_env
    def adding(seed: int) -> Any:
        reply = yield f"{seed}+1="
        for _ in range(2):
            if reply == str(seed + 1):
                return 1.0, {"outcome": "correct"}
            reply = yield "no", -0.5
        return None

    env = adding()
    assert env.reset(seed=4) == ("4+1=", {})
    assert env.step("7") == ("no", -0.5, False, False, {})
    assert env.step("5") == ("", 1.0, True, False, {"outcome": "correct"})
    env.reset(seed=4)
    assert [env.step("7")[1:3] for _ in range(3)] == [
        (-0.5, False),
        (-0.5, False),
        (None, True),
    ]


def test_3_learners_see_own_tokens_alone_and_score_them_in_the_whole_row() -> None:
    env = GuessNumberEnv()
    episodes = [
        by_hand(env, ["4", "2"], [(1.0, False), (1.0, True)], told=3),
        by_hand(env, ["4"], [(0.0, True)]),
    ]
    rows = rows_of([sampled(e) for e in episodes])
    shape = (2, 4)
    for name in (Columns.ACTIONS, Columns.ACTION_LOGP, Columns.LOSS_MASK):
        assert rows[name].shape == shape
    assert rows[columns.INPUT_IDS].shape == (2, 1 + 4 + 3)
    assert rows[columns.ACTION_POSITIONS].tolist() == [[1, 2, 6, 7], [1, 2, 0, 0]]
    policy = model(env.tokenizer)
    found = [
        response_logps(
            policy,
            one[columns.INPUT_IDS],
            one[columns.PROMPT_LENS],
            one[Columns.ACTIONS],
            one[Columns.LOSS_MASK],
            positions=one[columns.ACTION_POSITIONS],
        )[LOGP]
        for _, one in micro_batches(rows, cut_rows(rows, 8), torch.device("cpu"))
    ]
    policy.requires_grad_(False)
    whole = sequence_logps(policy, [11, *episodes[0].all_ids()])
    expected = torch.tensor(whole[[0, 1, 5, 6]])
    torch.testing.assert_close(found[0][0], expected, atol=1e-5, rtol=0)
    assert found[1].shape == (1, 2)


def test_7_a_sampled_end_of_turn_has_loss_and_what_is_said_has_none() -> None:
    env = token_env(turn_rewards="process", eos_token_ids=[1])
    answers: list[Any] = [(1.0, False), (-1.0, True)]
    rows = rows_of([sampled(by_hand(env, ["4", "2"], answers, told=2))] * 2)
    #              4  end 2  end
    assert rows[Columns.ACTIONS].tolist() == [[5, 1, 3, 1]] * 2
    assert rows[Columns.LOSS_MASK].all()
    told = set(rows[columns.INPUT_IDS][0].tolist()) - {11, 5, 1, 3}
    assert told == set(env.tokenizer.encode("<"))


def test_3_packed_rows_hold_what_the_environment_said_too() -> None:
    env = GuessNumberEnv()
    answers: list[Any] = [(1.0, False), (1.0, True)]
    rows = rows_of([sampled(by_hand(env, ["4", "2"], answers, told=n)) for n in (3, 1)])
    policy = model(env.tokenizer)
    assert set_flat_attention(policy) is None
    found = []
    for packing in (False, True):
        cuts = cut_rows(rows, 64, packing=packing)
        pieces = micro_batches(rows, cuts, torch.device("cpu"), packing=packing)
        logps = torch.zeros(rows[Columns.ACTIONS].shape)
        for index, one in pieces:
            logps[index] = response_logps(
                policy,
                one[columns.INPUT_IDS],
                one[columns.PROMPT_LENS],
                one[Columns.ACTIONS],
                one[Columns.LOSS_MASK],
                positions=one[columns.ACTION_POSITIONS],
                flat_row=one.get(columns.FLAT_ROW),
            )[LOGP].detach()
        found.append(logps)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("baseline", ["token", "length", "step", "response"])
def test_4_advantages_do_not_depend_on_observation_lengths(baseline: Any) -> None:
    env = GuessNumberEnv()
    credit = CreditConfig(baseline=baseline, max_response_tokens=200)
    found = []
    for told in (1, 7, 40):
        episodes = [
            by_hand(env, ["4", "2"], [(1.0, False), (-1.0, True)], told),
            by_hand(env, ["5", "3", "1"], [(0.5, False)] * 2 + [(0.0, True)], told),
            by_hand(env, ["4"], [(0.5, True)], told),
        ]
        rows = rows_of([sampled(e) for e in episodes])
        batch = PUREAdvantages(credit)(batch={DEFAULT_MODULE_ID: rows})
        found.append(batch[DEFAULT_MODULE_ID][Columns.ADVANTAGES])
    assert found[0].abs().sum() > 0
    assert all(torch.equal(found[0], one) for one in found[1:])


@pytest.mark.parametrize("form", ["min", "strict_min", "sum"])
def test_6_success_at_the_last_turn_has_one_sign_on_every_turn(form: Any) -> None:
    env = token_env(turn_rewards="process")
    turns = ["1", "2", "3"]
    won = [(None, False), (None, False), (1.0, True)]
    lost = [(None, False), (None, False), (-1.0, True)]
    rows = rows_of([sampled(by_hand(env, turns, one)) for one in (won, lost)])
    credit = CreditConfig(
        credit_assignment=form, verifiable_reward_coeff=0.0, mask_separators=False
    )
    PUREAdvantages(credit)(batch={DEFAULT_MODULE_ID: rows})
    advantages = rows[Columns.ADVANTAGES]
    assert (advantages[0] > 0).all() and (advantages[1] < 0).all()


def test_5_the_first_round_is_what_single_responses_are() -> None:
    env = token_env(max_turns=1)
    (group,) = play(env, tickets=TICKETS[:1])
    (same,) = generator(env).generate([[11]], 4, PARAMS, [100])
    for one, other in zip(group.responses, same, strict=True):
        assert np.array_equal(one.token_ids, other.token_ids)
        assert np.array_equal(one.logps, other.logps)


@pytest.mark.parametrize("settings", [{}, {"max_turns": 2}, {"max_turn_tokens": 2}])
def test_8_and_9_rows_have_a_logp_per_own_token_and_keep_to_the_budget(
    settings: dict[str, Any],
) -> None:
    env = token_env(**settings)
    for group in play(env, size=16):
        for episode in group.episodes:
            assert len(episode.own_ids) == len(episode.logps) > 0
            assert episode.num_tokens <= env.max_response_tokens
            assert episode.turn_ends[-1] == len(episode.own_ids)
            assert all(
                before < len(episode.own_ids) for before, _ in episode.observations
            )
            assert episode.terminated != episode.truncated
            assert len(episode.turn_ends) <= env.rules.max_turns


def test_9_a_truncated_row_keeps_what_was_earned() -> None:
    env = token_env(max_turns=2)
    episode = by_hand(env, ["1", "2"], [(0.25, False), (0.5, False)])
    assert episode.truncated
    assert episode.judged().verifiable_reward == 0.75


def test_parts_of_one_make_one() -> None:
    parts = [0.1, 0.2, 0.3, 0.4 + 2e-16]
    assert sum(parts) > 1.0
    answers = [(part, i == 3) for i, part in enumerate(parts)]
    episode = by_hand(token_env(), ["1"] * 4, answers)
    assert episode.judged().verifiable_reward == 1.0


class Breaks(Talk):
    """Every third one raises in its second turn."""

    made = 0

    def reset(self, **kwargs: Any) -> Any:
        type(self).made += 1
        self.is_broken = type(self).made % 3 == 0
        return super().reset(**kwargs)

    def step(self, action: str) -> Any:
        if self.is_broken:
            raise OSError("the server is gone")
        return super().step(action)


def test_10_an_environment_that_raises_costs_its_response_and_is_counted() -> None:
    Breaks.made = Breaks.closed = 0
    groups = play(token_env(Breaks), size=6)
    assert [len(g.episodes) + g.num_errors for g in groups] == [6] * 3
    assert sum(g.num_errors for g in groups) > 0
    # 15: whatever happened, each is closed.
    assert Breaks.closed == 18


def test_10_a_group_of_which_too_little_is_left_is_played_again() -> None:
    class BreaksAtFirst(Talk):
        made = 0

        def reset(self, **kwargs: Any) -> Any:
            type(self).made += 1
            if type(self).made < 4:
                raise OSError("the server is not up")
            return super().reset(**kwargs)

    env = token_env(BreaksAtFirst, env_error_limit=1.0)
    (group,) = play(env, tickets=TICKETS[:1])
    assert (len(group.episodes), group.num_errors) == (4, 3)
    # The one that was left, and the first three that were played again.
    assert BreaksAtFirst.made == 8
    BreaksAtFirst.made = -1000
    with pytest.raises(RuntimeError, match=r"(?s)3 times in a row.*is not up"):
        play(env, tickets=TICKETS[:1])


def test_15_whatever_the_generator_raises_environments_are_closed() -> None:
    class Fails(TransformersGenerator):
        def generate(self, *args: Any) -> Any:
            raise RuntimeError("out of memory")

    env = token_env()
    broken = Fails(model(env.tokenizer), pad_token_id=0, eos_token_ids=[1])
    tasks: Any = env.problems
    Talk.closed = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        play_groups(env, broken, tasks, TICKETS, 4, PARAMS)
    assert Talk.closed == 12


def test_10_over_the_limit_the_run_stops_with_the_first_error() -> None:
    Breaks.made = 0
    with pytest.raises(RuntimeError, match=r"(?s)seed .*the server is gone"):
        play(token_env(Breaks, env_error_limit=0.0), size=6)


def test_10_a_call_that_hangs_is_left_behind() -> None:
    start = time.monotonic()
    results = call_all(
        [lambda: 1, lambda: time.sleep(3), lambda: 2], timeout_s=0.1, max_concurrent=1
    )
    assert time.monotonic() - start < 2
    assert isinstance(results[1], TimeoutError)
    assert (results[0], results[2]) == (1, 2)


def test_15_an_environment_that_answers_late_is_closed_then() -> None:
    closed: list[int] = []
    calls = [lambda: time.sleep(0.3), lambda: 2]
    call_all(calls, timeout_s=0.1, max_concurrent=2, if_late=closed.append)
    assert closed == []
    deadline = time.monotonic() + 5
    while not closed and time.monotonic() < deadline:
        time.sleep(0.05)
    assert closed == [0]


def test_10_an_environment_that_fails_to_close_is_counted() -> None:
    broken = token_env().problems.seeds[1]  # type: ignore[attr-defined]

    class Stuck(Talk):
        def close(self) -> None:
            if self.seed == broken:
                raise OSError("still open")

    (group,) = play(token_env(Stuck), tickets=TICKETS[:1])
    assert group.num_errors == 0
    with pytest.raises(RuntimeError, match="still open"):
        play(token_env(Stuck, env_error_limit=0.0), tickets=TICKETS[1:2])


def test_12_a_row_does_not_depend_on_the_others() -> None:
    env = GuessNumberEnv()
    alone = play(env, tickets=TICKETS[1:2])[0]
    turned = [TICKETS[1], TICKETS[2], TICKETS[0], *TICKETS]
    for among in (play(env)[1], play(env, tickets=turned, size=16)[0]):
        assert [e.all_ids() for e in alone.episodes] == [
            e.all_ids() for e in among.episodes[:4]
        ]


@pytest.mark.parametrize("action", ["", "0", "8", "four", "\ud800", "9" * 5000, "²"])
def test_11_a_bad_guess_is_an_observation(action: str) -> None:
    game = GuessNumber()
    game.reset(seed=0)
    assert game.step(action)[:4] == ("?", -1.0, False, False)


def test_13_different_first_observations_in_a_group_are_an_error() -> None:
    class Careless(Talk):
        def reset(self, **kwargs: Any) -> Any:
            return random.choice("123456"), {}

    with pytest.raises(ValueError, match=r"Careless.* must begin alike with one seed"):
        play(token_env(Careless), size=32)


def test_where_no_turn_was_judged_there_is_no_process_reward() -> None:
    env = token_env(turn_rewards="process")
    assert not by_hand(env, ["1"], [(None, True)]).judged().is_scored
    scored = by_hand(env, ["1", "2", "3"], [(None, False), (0.5, False), (None, True)])
    assert scored.judged().step_spans.tolist() == [[0, 4]]


def test_14_numbers_that_the_environment_names_are_parts_of_the_verdict() -> None:
    episode = token_env().episode()
    episode.own_ids += [1]
    episode.end_turn(True)
    episode.take(("", 1.0, True, False, {"parts": {"tool_calls": 2}}))
    verdict = episode.judged().verdict
    assert verdict is not None and verdict.parts == {"tool_calls": 2}


def test_a_turn_that_was_cut_earns_the_least() -> None:
    env = GuessNumberEnv(eos_token_ids=[1], max_turn_tokens=2)
    episode = env.episode()
    episode.own_ids += [4, 4]
    assert episode.end_turn(False) is None
    judged = episode.judged()
    assert judged.step_rewards.tolist() == [-1.0]
    assert judged.verifiable_reward == 0.0


def test_one_token_at_a_time_gives_what_rounds_give() -> None:
    env = GuessNumberEnv()
    check_env(env, skip_render_check=True)
    for ticket, group in zip(TICKETS, play(env, size=8), strict=True):
        for episode in group.episodes:
            env.reset(options={"problem": env.problems[ticket.index]})
            steps = [env.step(token) for token in episode.own_ids]
            rewards = np.array([step[1] for step in steps], np.float32)
            judged = episode.judged()
            assert np.array_equal(rewards, judged.token_rewards(len(rewards)))
            assert steps[-1][2:4] == (episode.terminated, episode.truncated)
            assert steps[-1][4]["outcome"] == judged.verdict.outcome  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"max_turns": 0}, "max_turns"),
        ({"turn_rewards": "turn"}, "turn_rewards"),
        ({"make_env": "nowhere:Env"}, "make_env"),
        ({"env_error_limit": 2.0}, "env_error_limit"),
        ({"step_scorer": HashScorer()}, "`step_scorer` must be left out, because"),
        ({"reward_model": "a/b"}, "`reward_model` must be left out, because"),
        ({"prm": "some/prm"}, "`prm` must be left out, because"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        token_env(**settings)
