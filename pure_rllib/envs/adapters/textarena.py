"""TextArena's games for one player."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from pure_rllib.envs.adapters.text_game import (
    OwnRandomState,
    check_game,
    optional,
    started,
)
from pure_rllib.envs.text_env import StepResult
from pure_rllib.envs.text_token_env import TextTokenEnv


class TextArenaGame:
    """A game of TextArena as a `TextEnv`; what the player said is not repeated to it.

    Args:
        game: its id with "-raw": other forms repeat the whole history each turn.
        kwargs: its arguments.
    """

    def __init__(self, game: str, kwargs: Mapping[str, Any]):
        self._package = optional("textarena", "textarena")
        self._random = OwnRandomState()
        with self._random():
            self._env = self._package.make(env_id=game, **kwargs)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[str, dict[str, Any]]:
        """See `TextEnv.reset`."""
        with self._random():
            self._env.reset(num_players=1, seed=seed)
            return self._observation(), {}

    def step(self, action: str) -> StepResult:
        """See `TextEnv.step`.

        A game is judged at its end. One that ends by an invalid move is worth 0.0: some
        pay for how near the last valid one was, so that giving up would pay.
        """
        with self._random():
            is_over, _ = self._env.step(action)
            if not is_over:
                none_yet = {"verifiable_reward": 0.0}
                return self._observation(), None, False, False, none_yet
            rewards, games = self._env.close()
        is_invalid = games[0].get("invalid_move", False)
        reward = 0.0 if is_invalid else min(max(float(rewards[0]), 0.0), 1.0)
        return "", reward, True, False, {"verifiable_reward": reward}

    def _observation(self) -> str:
        echo = self._package.ObservationType.PLAYER_ACTION
        _, messages = self._env.get_observation()
        return "\n".join(text for _, text, kind in messages if kind != echo)


class TextArenaEnv(TextTokenEnv):
    """Plays a game of TextArena for one player, over turns.

    ## Arguments
    Args:
        tokenizer: folder or hub id of the policy's tokenizer, or the tokenizer.
        game: its id, such as "GuessTheNumber-v0"; of its forms "-raw" is played.
        game_kwargs: its arguments.
        **kwargs: the other arguments of `TextTokenEnv`.

    Raises:
        ValueError: textarena is not installed, there is no such game, or it is not for
            one player.
    """

    def __init__(
        self,
        *,
        tokenizer: str | PreTrainedTokenizerBase,
        game: str,
        game_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        registry = optional("textarena.envs.registration", "textarena").ENV_REGISTRY
        raw = f"{game.removesuffix('-raw')}-raw"
        check_game(raw, [name for name in registry if name.endswith("-raw")])
        make = partial(TextArenaGame, raw, game_kwargs or {})
        super().__init__(make_env=started(make, game), tokenizer=tokenizer, **kwargs)
