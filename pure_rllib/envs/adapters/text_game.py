"""What adapters of text games share: lazy imports, and a random state of one's own."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import numpy as np

from pure_rllib.envs.text_env import TextEnvMaker, close_env

# Only one game at a time can have its own state in place of the global one.
_GLOBAL_STATE = threading.RLock()


class OwnRandomState:
    """Gives one game the global generators for itself, while it is used in `with`.

    Some packages seed and draw from Python's and NumPy's global generators: games that
    are stepped in turn would change each other, and the run.
    """

    def __init__(self) -> None:
        self._state: tuple[Any, Any] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Swaps the game's state in, and out again."""
        with _GLOBAL_STATE:
            outside = random.getstate(), np.random.get_state()
            if self._state is not None:
                random.setstate(self._state[0])
                np.random.set_state(self._state[1])
            try:
                yield
            finally:
                self._state = random.getstate(), np.random.get_state()
                random.setstate(outside[0])
                np.random.set_state(outside[1])


def optional(module: str, extra: str) -> Any:
    """Imports a package that not everybody has.

    Args:
        module: its dotted name.
        extra: of ours, that installs it.

    Raises:
        ValueError: it, or something that it needs, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`env` needs the package {module.partition('.')[0]}, which cannot be "
            f"imported: {error}. Run `pip install 'pure-rllib[{extra}]'`."
        ) from error


def check_game(game: str, games: Sequence[str]) -> None:
    """Raises a ValueError that names games near to one that there is not."""
    if game not in games:
        near = get_close_matches(game, games, n=5, cutoff=0.4)
        raise ValueError(
            f"`game` ({game}) must be one of {len(games)} that are registered; near it "
            f"are {', '.join(near) or 'none'}."
        )


def started(make_env: TextEnvMaker, game: str) -> TextEnvMaker:
    """Returns what makes games, after it has started one.

    Raises:
        ValueError: it fails: what is wrong with a game must not wait for the run.
    """
    try:
        env = make_env()
        env.reset(seed=0)
        close_env(env)
    except Exception as error:
        # Whatever foreign code raises says why this game cannot be played.
        raise ValueError(
            f"`game` ({game}) must start with a text for one player; because it says "
            f"{type(error).__name__}: {error}. Set another game, or `game_kwargs`."
        ) from error
    return make_env
