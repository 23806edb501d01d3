"""Every environment keeps Gymnasium's contract and ours."""

import random
import subprocess
import sys
import warnings

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

import pure_rllib.envs
from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.envs.guess_number import GuessNumber
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.rewards.base import FunctionVerifier
from pure_rllib.testing import (
    HashScorer,
    byte_tokenizer,
    check_text_env,
    check_token_env,
    tiny_model_config,
)

PROBLEMS = ListProblems(
    [Problem("one and one?", "2"), Problem("unknown?"), Problem("\\pi", "\\pi")]
)


def make(env_id: str, **kwargs) -> gym.Env:
    if env_id.endswith("Math-v0"):
        kwargs = {
            "tokenizer": byte_tokenizer(),
            "problems": PROBLEMS,
            "prompt_template": "plain",
            "max_prompt_tokens": 16,
            "max_response_tokens": 24,
            **kwargs,
        }
    if env_id.endswith(("Labels-v0", "WordProblems-v0")):
        kwargs = {
            "tokenizer": byte_tokenizer(),
            "prompt_template": "plain",
            "max_prompt_tokens": 256,
            "max_response_tokens": 24,
            **kwargs,
        }
    return gym.make(env_id, render_mode="ansi", **kwargs)


SETTINGS = [
    pytest.param("Arithmetic-v0", {"process_rewards": "exact"}, 0.0, id="arithmetic"),
    pytest.param(
        "Arithmetic-v0",
        {"process_rewards": "simulated", "task": "y"},
        0.0,
        id="arithmetic-y",
    ),
    pytest.param(
        "Arithmetic-v0",
        {"process_rewards": "none", "task": "sparse"},
        0.0,
        id="arithmetic-sparse",
    ),
    pytest.param(
        "Arithmetic-v0",
        {"process_rewards": "simulated", "task": "hundred"},
        0.0,
        id="arithmetic-hundred",
    ),
    pytest.param("Math-v0", {"step_scorer": HashScorer()}, 0.0, id="math-function"),
    pytest.param("Labels-v0", {"step_scorer": HashScorer()}, 0.0, id="labels"),
    pytest.param(
        "Labels-v0",
        {"step_scorer": HashScorer(), "problems": "value", "thinking": False},
        0.0,
        id="labels-no-thinking",
    ),
    pytest.param("GuessNumber-v0", {}, 0.0, id="guess-number"),
    pytest.param("Calculator-v0", {}, 0.0, id="calculator"),
    pytest.param("WordProblems-v0", {}, 0.0, id="word-problems"),
    pytest.param("Math-v0", {"prm": tiny_model_config(261)}, 1e-5, id="math-prm"),
    pytest.param(
        "Math-v0",
        {"step_scorer": HashScorer(), "vocab_size": 320, "verifier": None},
        0.0,
        id="math-padded-vocabulary",
    ),
    pytest.param(
        "Math-v0",
        {"prm": tiny_model_config(320), "vocab_size": 320, "verifier": None},
        1e-5,
        id="math-prm-padded-vocabulary",
    ),
]


@pytest.mark.parametrize(("name", "settings", "tolerance"), SETTINGS)
def test_contracts_of_gymnasium_and_ours(name, settings, tolerance):
    env = make(f"pure_rllib/{name}", **settings)
    with warnings.catch_warnings():
        # `check_env` warns of what it does not like.
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    assert isinstance(env.unwrapped, TokenEnv)
    check_token_env(env.unwrapped, tolerance=tolerance)
    env.close()


def test_contract_of_a_plain_token_env():
    verifier = FunctionVerifier(lambda gold, text: gold in text)
    env = TokenEnv(
        problems=PROBLEMS,
        tokenizer=byte_tokenizer(),
        step_scorer=HashScorer(),
        verifier=verifier,
        max_prompt_tokens=16,
        max_response_tokens=1,
    )
    check_token_env(env)


def test_vector_environments_stack_prompts_of_different_lengths():
    envs = gym.make_vec(
        "pure_rllib/Arithmetic-v0",
        num_envs=4,
        vectorization_mode="sync",
        process_rewards="exact",
        verifier=None,
    )
    _, info = envs.reset(seed=1)
    assert len({len(ids) for ids in info["prompt_ids"]}) > 1
    envs.action_space.seed(0)
    num_ended = 0
    for _ in range(100):
        _, _, terminated, truncated, _ = envs.step(envs.action_space.sample())
        num_ended += int((terminated | truncated).sum())
    assert num_ended > 4
    envs.close()


class NonCausalScorer(HashScorer):
    """Gives the first step the score of the last."""

    def score(self, requests):
        return [scores[::-1].copy() for scores in super().score(requests)]


class LateRewards(TokenEnv):
    """Pays one more token than it should."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + 0.5, terminated, truncated, info


class EndlessEnv(TokenEnv):
    """Never admits that the budget is spent."""

    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, False, info


@pytest.mark.parametrize(
    ("cls", "scorer", "message"),
    [
        (TokenEnv, NonCausalScorer(), "causal"),
        (LateRewards, HashScorer(), "where no step ends"),
        (EndlessEnv, HashScorer(), "truncated=False after 12"),
    ],
)
def test_broken_environments_are_found(cls, scorer, message):
    env = cls(
        problems=PROBLEMS,
        tokenizer=byte_tokenizer(),
        step_scorer=scorer,
        max_prompt_tokens=16,
        max_response_tokens=12,
    )
    with pytest.raises(AssertionError, match=message):
        check_token_env(env)


class SharedDice:
    """Draws from the global generator, and so from what others left there."""

    def reset(self, *, seed=None, options=None):
        random.seed(seed)
        return "?", {}

    def step(self, action):
        return str(random.random()), 0.0, False, False, {}


class Proud(SharedDice):
    """Thinks too much of an episode."""

    def step(self, action):
        return "", 0.0, True, False, {"verifiable_reward": 2.0}


class Strict(SharedDice):
    """Raises at what it does not know."""

    def step(self, action):
        return "", float(int(action)), True, False, {}


@pytest.mark.parametrize(
    ("make_env", "error", "message"),
    [
        (SharedDice, AssertionError, "generator of its own"),
        (Proud, AssertionError, "`verifiable_reward` is 2.0"),
        (Strict, ValueError, "invalid literal"),
    ],
)
def test_broken_text_environments_are_found(make_env, error, message):
    with pytest.raises(error, match=message):
        check_text_env(make_env)


def test_a_game_that_makes_sense_keeps_the_contract_too():
    check_text_env(GuessNumber, turns=["4", "2", "6", "1"])


def test_ids_are_registered_on_import():
    gym.register_envs(pure_rllib.envs)
    assert set(pure_rllib.envs.ENV_IDS) <= set(gym.registry)
    env = make("pure_rllib.envs:pure_rllib/Math-v0", step_scorer=HashScorer())
    assert env.spec is not None and env.spec.id == "pure_rllib/Math-v0"
    env.close()


@pytest.mark.slow
def test_an_id_with_its_module_needs_no_import():
    code = (
        "import gymnasium as gym\n"
        "env = gym.make('pure_rllib.envs:pure_rllib/Arithmetic-v0', "
        "process_rewards='none')\n"
        "print(sorted(env.reset(seed=0)[1]))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "['problem_id', 'prompt_ids']"
