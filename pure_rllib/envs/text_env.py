"""Environments that speak text: what they offer, and calling many with a time limit."""

import importlib
import threading
from collections.abc import Callable, Generator, Sequence
from functools import partial
from time import monotonic
from typing import Any, Protocol

from pure_rllib.data.chat import Text
from pure_rllib.data.problems import Problem
from pure_rllib.data.rows import read_prompt

StepResult = tuple[Text, float | None, bool, bool, dict[str, Any]]


class TextEnv(Protocol):
    """A Gymnasium environment whose observations and actions are strings.

    In place of a string it may say messages with `role` and `content`. It may have a
    `close()`, which is called after its episode.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Text, dict[str, Any]]:
        """Starts an episode; the same seed gives the same first observation."""

    def step(self, action: str) -> StepResult:
        """Answers one turn of the policy.

        What a policy does wrong is an observation, or an end with a low reward, and
        never an exception: an exception says that the environment is broken.

        Args:
            action: the turn's text without special tokens.

        Returns:
            The observation, the turn's reward (None: it was not judged), `terminated`,
            `truncated`, and information on the episode up to here: `verifiable_reward`
            in [0, 1], `outcome` (see `rewards.base.OUTCOMES`) and `parts`, numbers by
            name that are logged as means, such as tool calls. All may be missing.
        """


TextEnvMaker = Callable[[], TextEnv]


def text_env_maker(make_env: TextEnvMaker | str) -> TextEnvMaker:
    """Returns what makes text environments: a class, a function, or its "module:name".

    Raises:
        ValueError: it names nothing that can be called.
    """
    if isinstance(make_env, str):
        module, _, name = make_env.partition(":")
        try:
            make_env = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f'`make_env` ("{make_env}") must name a class or function as '
                f'"module:name", because it makes the environments: {error}. Set it '
                'to "my_module:MyEnv".'
            ) from error
    if not callable(make_env):
        raise ValueError(
            f"`make_env` ({make_env!r}) must be callable, because each response is "
            "played in an environment of its own. Set it to the environment's class."
        )
    return make_env


Game = Generator[Any, str, float | tuple[float, dict[str, Any]] | None]


def text_env(play: Callable[[int], Game]) -> TextEnvMaker:
    """Makes a text environment of a function that asks for replies.

    A decorator of generator functions of a seed: `reply = yield observation` says
    something and gets the policy's next turn. `yield observation, reward` also judges
    the turn before; the returned reward is the last turn's, `return reward, info` gives
    information as well. What stands in a `finally` is done however the episode ends.
    """
    return partial(_Played, play)


class _Played:
    """A generator function as a text environment."""

    def __init__(self, play: Callable[[int], Game]):
        self._play = play
        self._game: Game | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Text, dict[str, Any]]:
        """Starts the game, up to its first observation."""
        self.close()
        self._game = self._play(seed or 0)
        return next(self._game), {}

    def step(self, action: str) -> StepResult:
        """Goes on to the next observation, or to the end."""
        assert self._game is not None, "reset comes first"
        try:
            said = self._game.send(action)
        except StopIteration as end:
            reward, info = (
                end.value if isinstance(end.value, tuple) else (end.value, {})
            )
            return "", reward, True, False, info
        observation, reward = said if isinstance(said, tuple) else (said, None)
        return observation, reward, False, False, {}

    def close(self) -> None:
        """Ends a game that is under way."""
        if self._game is not None:
            self._game.close()


def close_env(env: Any) -> None:
    """Closes an environment that can be closed."""
    close = getattr(env, "close", None)
    if close is not None:
        close()


class TextTasks:
    """The tasks of a text environment as problems: seeds with their first prompts.

    Args:
        make_env: makes an environment.
        seeds: of the tasks.
    """

    def __init__(self, make_env: TextEnvMaker, seeds: Sequence[int]):
        self.make_env = make_env
        self.seeds = seeds

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Problem:
        env = self.make_env()
        try:
            return task(env.reset(seed=self.seeds[index])[0], self.seeds[index])
        finally:
            close_env(env)

    @property
    def num_answers(self) -> int:
        """All: the environment judges each."""
        return len(self)


def task(observation: Text, seed: int) -> Problem:
    """Returns the problem that a first observation poses.

    Raises:
        ValueError: it is messages that do not end with the user's.
    """
    history: Sequence[Any] = ()
    if not isinstance(observation, str):
        place = f"the task of seed {seed}"
        observation, history = read_prompt(list(observation), "observation", place)
    return Problem(
        observation,
        problem_id=str(seed),
        metadata={"seed": seed},
        history=tuple(history),
    )


def call_all(
    calls: Sequence[Callable[[], Any]],
    *,
    timeout_s: float,
    max_concurrent: int,
    if_late: Callable[[int], Any] = lambda number: None,
) -> list[Any]:
    """Makes calls in threads, in order, and waits for none for ever.

    Args:
        calls: functions without arguments.
        timeout_s: how long each may take. A call over it is left behind in its thread,
            which ends with the process.
        max_concurrent: calls at the same time, >= 1.
        if_late: called in the thread of a call that was left behind, with its number,
            should it return after all.

    Returns:
        For each call what it returned, or the exception that it raised; TimeoutError
        for one that was left behind.
    """
    todo = iter(range(len(calls)))
    running: dict[int, float] = {}
    results: dict[int, Any] = {}
    lock = threading.Lock()
    changed = threading.Condition(lock)

    def work() -> None:
        while True:
            with lock:
                number = next(todo, None)
                if number is None:
                    return
                running[number] = monotonic()
            try:
                result = calls[number]()
            except Exception as error:
                # Whatever foreign code raises is its answer; the caller counts it.
                result = error
            with lock:
                if number in results:
                    break  # left behind, and another thread does the rest
                del running[number]
                results[number] = result
                if len(results) == len(calls):
                    changed.notify()
        if_late(number)

    def start() -> None:
        threading.Thread(target=work, daemon=True).start()

    for _ in range(min(max_concurrent, len(calls))):
        start()
    with lock:
        while len(results) < len(calls):
            changed.wait(min(timeout_s, 1.0))
            too_early = monotonic() - timeout_s
            for number in [n for n, since in running.items() if since < too_early]:
                del running[number]
                results[number] = TimeoutError(f"no answer within {timeout_s:g} s")
                start()
    return [results[number] for number in range(len(calls))]
