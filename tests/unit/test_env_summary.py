"""Which wrappers and methods an environment may have, and which would be passed by."""

import subprocess
import sys
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit, TransformReward

from pure_rllib.envs.arithmetic import ArithmeticEnv
from pure_rllib.rollouts.env_summary import makes_by_keywords, token_env_of


class Negate(gym.RewardWrapper):
    def reward(self, reward: Any) -> Any:
        return -reward


class Shorter(gym.Wrapper):
    def step(self, action: Any) -> Any:
        return super().step(action)


class NoStart(gym.Wrapper):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)


class Upper(gym.ObservationWrapper):
    def observation(self, observation: Any) -> Any:
        return observation


class Named(gym.Wrapper):
    """Changes nothing that is asked for."""

    title = "a wrapper"


class OwnStep(ArithmeticEnv):
    def step(self, action: int) -> Any:
        return super().step(action)


class InRLlibsForm(ArithmeticEnv):
    def __init__(self, config: dict[str, Any]):
        super().__init__(**config)


def arithmetic(env_class: type[ArithmeticEnv] = ArithmeticEnv) -> ArithmeticEnv:
    return env_class(max_response_tokens=16)


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (Negate, "`Negate`'s `step` and `reward`"),
        (Shorter, "`Shorter`'s `step`"),
        (NoStart, "`NoStart`'s `reset`"),
        (Upper, "`Upper`'s `reset` and `step` and `observation`"),
        (
            lambda env: TransformReward(env, lambda reward: reward),
            "`TransformReward`'s",
        ),
        (RecordEpisodeStatistics, "`RecordEpisodeStatistics`'s `reset` and `step`"),
        (lambda env: TimeLimit(env, 8), "`TimeLimit`'s"),
        (lambda env: Named(Negate(env)), "`Negate`'s"),
    ],
)
def test_what_the_batched_path_would_pass_by_is_refused(wrap: Any, named: str) -> None:
    with pytest.raises(ValueError, match=rf"without {named}.*because.*step scorer"):
        token_env_of(wrap(arithmetic()), "wrapped")


def test_a_method_that_is_never_called_is_refused() -> None:
    with pytest.raises(ValueError, match=r"without `OwnStep`'s `step`, because"):
        token_env_of(arithmetic(OwnStep), "own")


def test_gymnasiums_own_wrappers_go_on_working() -> None:
    made = gym.make("pure_rllib/Arithmetic-v0", max_response_tokens=16)
    assert token_env_of(made, "made") is made.unwrapped
    made = gym.make(
        "pure_rllib/Arithmetic-v0", max_episode_steps=16, max_response_tokens=16
    )
    assert token_env_of(Named(made), "made") is made.unwrapped


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import gymnasium, pure_rllib",
        "import pure_rllib, gymnasium",
        "import pure_rllib; from gymnasium.envs.registration import registry",
        "import gymnasium; gymnasium.make('pure_rllib:pure_rllib/Arithmetic-v0')",
    ],
)
def test_importing_the_package_registers_the_ids(imports: str) -> None:
    code = f"{imports}; import gymnasium; gymnasium.spec('pure_rllib/Arithmetic-v0')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_class_says_how_it_is_made() -> None:
    assert makes_by_keywords(ArithmeticEnv)
    assert not makes_by_keywords(InRLlibsForm)
    assert not makes_by_keywords("pure_rllib/Arithmetic-v0")
