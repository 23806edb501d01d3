"""Gymnasium's environments over strings, and GEM's, which have the same form."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import gymnasium as gym
from transformers import PreTrainedTokenizerBase

from pure_rllib.envs.adapters.text_game import (
    OwnRandomState,
    check_game,
    optional,
    started,
)
from pure_rllib.envs.text_env import StepResult, TextEnvMaker, close_env
from pure_rllib.envs.text_token_env import TextTokenEnv


class FiveTuple:
    """An environment of Gymnasium's form as a `TextEnv`.

    Args:
        make: makes it.
        returns: lowest and highest sum of rewards, which become 0 and 1; what is beyond
            is cut. None leaves sums as they are.
        shares_random: whether it draws from the global generators.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        returns: Sequence[float] | None,
        shares_random: bool,
    ):
        self._random: Callable[[], AbstractContextManager[None]] = (
            OwnRandomState() if shares_random else nullcontext
        )
        self._returns = returns
        self._earned = 0.0
        with self._random():
            self._env = make()

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[str, dict[str, Any]]:
        """See `TextEnv.reset`."""
        with self._random():
            observation, _ = self._env.reset(seed=seed)
        if not isinstance(observation, str):
            raise ValueError(f"{observation!r:.60} is no text")
        return observation, {}

    def step(self, action: str) -> StepResult:
        """See `TextEnv.step`."""
        with self._random():
            observation, reward, terminated, truncated, _ = self._env.step(action)
        self._earned += float(reward)
        earned = self._earned
        if self._returns is not None:
            low, high = self._returns
            earned = min(max((earned - low) / (high - low), 0.0), 1.0)
        info = {"verifiable_reward": earned}
        return str(observation), float(reward), terminated, truncated, info

    def close(self) -> None:
        """Closes the environment."""
        close_env(self._env)


class GymnasiumEnv(TextTokenEnv):
    """Plays any Gymnasium environment whose observations and actions are text.

    ## Arguments
    Args:
        tokenizer: folder or hub id of the policy's tokenizer, or the tokenizer.
        game: its id; "module:id" imports the module that registers it.
        game_kwargs: its arguments.
        returns: lowest and highest sum of rewards, which become the verifiable rewards
            0 and 1; None: sums are in [0, 1] by themselves.
        **kwargs: the other arguments of `TextTokenEnv`.

    Raises:
        ValueError: there is no such environment, or it does not speak text.
    """

    def __init__(
        self,
        *,
        tokenizer: str | PreTrainedTokenizerBase,
        game: str,
        game_kwargs: Mapping[str, Any] | None = None,
        returns: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        if ":" not in game:
            check_game(game, sorted(gym.registry))
        # Its checker warns of every sentence: `spaces.Text` is alphanumeric by default.
        make = partial(gym.make, game, disable_env_checker=True, **(game_kwargs or {}))
        make_env = _maker(make, game, returns, shares_random=False)
        super().__init__(make_env=make_env, tokenizer=tokenizer, **kwargs)


class GemEnv(TextTokenEnv):
    """Plays a game of GEM (gem-llm), over turns.

    ## Arguments
    Args:
        tokenizer: folder or hub id of the policy's tokenizer, or the tokenizer.
        game: its id there, such as "game:GuessTheNumber-v0-easy".
        game_kwargs: its arguments.
        returns: see `GymnasiumEnv`; the games' own punishments for a wrong form take
            sums below 0.
        **kwargs: the other arguments of `TextTokenEnv`.

    Raises:
        ValueError: gem-llm is not installed, or there is no such game.
    """

    def __init__(
        self,
        *,
        tokenizer: str | PreTrainedTokenizerBase,
        game: str,
        game_kwargs: Mapping[str, Any] | None = None,
        returns: Sequence[float] | None = (0.0, 1.0),
        **kwargs: Any,
    ):
        gem = optional("gem", "gem")
        check_game(game, sorted(optional("gem.envs.registration", "gem").ENV_REGISTRY))
        make = partial(gem.make, game, **(game_kwargs or {}))
        make_env = _maker(make, game, returns, shares_random=True)
        super().__init__(make_env=make_env, tokenizer=tokenizer, **kwargs)


def _maker(
    make: Callable[[], Any],
    game: str,
    returns: Sequence[float] | None,
    *,
    shares_random: bool,
) -> TextEnvMaker:
    if returns is not None and (len(returns) != 2 or not returns[0] < returns[1]):
        raise ValueError(
            f"`returns` ({returns!r}) must be two rising numbers, because the first "
            "becomes 0 and the second 1. Set [0, 1], or None."
        )
    return started(partial(FiveTuple, make, returns, shares_random), game)
