"""A text environment as a Markov decision process whose actions are tokens."""

from typing import Any

import numpy as np
from numpy.random import SeedSequence
from transformers import PreTrainedTokenizerBase

from pure_rllib.data.bridge import Bridge
from pure_rllib.envs.text_env import (
    TextEnv,
    TextEnvMaker,
    TextTasks,
    close_env,
    text_env_maker,
)
from pure_rllib.envs.text_episode import TextEpisode, TurnRewards, TurnRules
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.envs.tokenizers import load_tokenizer
from pure_rllib.setting_types import (
    Count,
    NaturalNumber,
    PositiveFloat,
    Share,
    check_setting,
)

_JUDGES = ("step_scorer", "verifier", "prm", "reward_model")


class TextTokenEnv(TokenEnv):
    """Plays a text environment over turns, one token per action.

    Spaces and options are those of `TokenEnv`. A token that ends the turn steps the
    text environment, and its observation is appended at once, in the form of the
    tokenizer's chat template where `prompt_template` uses it.

    ## Reward
    With `turn_rewards` "process" the turn's reward at its last token; else 0.0.

    ## Episode End
    Terminated when the text environment says so; truncated after `max_turns`, after a
    turn over `max_turn_tokens`, or where no room is left in `max_response_tokens`.

    ## Information
    At reset `prompt_ids` and `problem_id`. At every step `turn`, from 0. At the end
    what `TokenEnv` says.

    ## Arguments
    Args:
        make_env: class or function that makes a `TextEnv`, or its "module:name".
        tokenizer: folder or hub id of the policy's tokenizer, or the tokenizer.
        num_tasks: training tasks; each is a seed that the text environment is reset
            with.
        num_eval_tasks: held-out tasks, of other seeds.
        task_seed: names the sequence of tasks.
        max_turns: turns of the policy.
        max_turn_tokens: of one turn; None: as many as are left.
        max_observation_tokens: of one text that the environment says; what is longer is
            cut, with a mark behind it. None: as many as it has.
        turn_rewards: "outcome": an episode is worth `verifiable_reward` of its last
            info, else the sum of its turns' rewards, in [0, 1]; no process rewards.
            "process": a turn's reward in [-1, 1] is the process reward of its tokens, a
            turn that was cut earns -1.0; the verifiable reward is the last info's.
        step_timeout_s: how long a reset or a step may take.
        max_concurrent_envs: text environments that are stepped at the same time, in
            threads.
        env_error_limit: share of a sampling call's responses whose environment may
            raise or not answer in time; beyond it the run ends with the first error.
        **kwargs: the other arguments of `TokenEnv`; `max_response_tokens` counts turns
            and observations together.

    Raises:
        ValueError: a setting is out of its range, or the chat template rewrites turns.
    """

    def __init__(
        self,
        *,
        make_env: TextEnvMaker | str,
        tokenizer: str | PreTrainedTokenizerBase,
        num_tasks: int = 10_000,
        num_eval_tasks: int = 200,
        task_seed: int = 0,
        max_turns: int = 8,
        max_turn_tokens: int | None = None,
        max_observation_tokens: int | None = None,
        turn_rewards: TurnRewards = "outcome",
        step_timeout_s: float = 60.0,
        max_concurrent_envs: int = 1,
        env_error_limit: float = 0.5,
        **kwargs: Any,
    ):
        for name, value, rule in (
            ("num_tasks", num_tasks, Count),
            ("num_eval_tasks", num_eval_tasks, Count),
            ("task_seed", task_seed, NaturalNumber),
            ("max_turns", max_turns, Count),
            ("max_turn_tokens", max_turn_tokens, Count | None),
            ("max_observation_tokens", max_observation_tokens, Count | None),
            ("turn_rewards", turn_rewards, TurnRewards),
            ("step_timeout_s", step_timeout_s, PositiveFloat),
            ("max_concurrent_envs", max_concurrent_envs, Count),
            ("env_error_limit", env_error_limit, Share),
        ):
            check_setting(name, value, rule)
        judges = [name for name in _JUDGES if kwargs.get(name) is not None]
        if judges:
            raise ValueError(
                f"`{judges[0]}` must be left out, because the text environment judges "
                "its turns, and a judge of whole responses does not see what it says "
                "between them. Let `step` give the rewards."
            )
        tokenizer = load_tokenizer(tokenizer)
        self.make_text_env = text_env_maker(make_env)
        seeds = SeedSequence(task_seed).generate_state(num_tasks + num_eval_tasks)
        super().__init__(
            problems=TextTasks(self.make_text_env, seeds[:num_tasks].tolist()),
            eval_problems=TextTasks(self.make_text_env, seeds[num_tasks:].tolist()),
            tokenizer=tokenizer,
            **kwargs,
        )
        self.step_timeout_s = step_timeout_s
        self.max_concurrent_envs = max_concurrent_envs
        self.env_error_limit = env_error_limit
        bridge = Bridge.of(self.prompt_template, tokenizer)
        if bridge.end_id is not None:
            self._end_turns_at(bridge.end_id)
        self.rules = TurnRules(
            bridge, max_turns, max_turn_tokens, max_observation_tokens, turn_rewards
        )
        self._text_env: TextEnv | None = None
        self._episode = self.episode()

    @property
    def has_process_rewards(self) -> bool:
        """Whether turns are judged one by one."""
        return self.rules.turn_rewards == "process"

    @property
    def has_verifiable_rewards(self) -> bool:
        """Episodes are judged by the text environment."""
        return True

    def _end_turns_at(self, end_id: int) -> None:
        """Ends turns where the chat template does."""
        if self._has_own_eos_ids and end_id not in self.eos_token_ids:
            raise ValueError(
                f"`eos_token_ids` ({sorted(self.eos_token_ids)}) must hold {end_id}, "
                "because the chat template ends turns with it. Add it, or leave "
                "`eos_token_ids` out."
            )
        self.eos_token_ids |= {end_id}

    def episode(self, max_response_tokens: int | None = None) -> TextEpisode:
        """Returns an episode without a turn yet.

        Args:
            max_response_tokens: default: the environment's own.
        """
        return TextEpisode(self.rules, max_response_tokens or self.max_response_tokens)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts the next episode. A `problem` in `options` must be one of a task."""
        observation, info = super().reset(seed=seed, options=options)
        assert self._problem is not None, "just chosen"
        if "seed" not in self._problem.metadata:
            raise ValueError(
                f"`problem` ({self._problem.prompt!r:.60}) must be of `problems` or "
                "`eval_problems`, because a task is the seed of a text environment."
            )
        self._close_text_env()
        self._text_env = self.make_text_env()
        self._text_env.reset(seed=self._problem.metadata["seed"])
        self._episode = self.episode()
        return observation, info

    def step(
        self, action: int
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Appends one token, and behind a turn what the text environment answers."""
        self._check_action(action)
        assert self._text_env is not None, "made at reset"
        episode = self._episode
        episode.own_ids.append(int(action))
        turn, reward = len(episode.turn_ends), 0.0
        is_ended = self.is_ended(episode.own_ids[-episode.written :])
        if is_ended or episode.written >= episode.turn_budget:
            written = episode.end_turn(is_ended)
            if written is not None:
                (text,) = self.rules.bridge.texts([written])
                episode.take(self._text_env.step(text))
            if self.has_process_rewards:
                reward = float(episode.rewards[-1] or 0.0)
        self._response = episode.all_ids()
        self._done = episode.is_over
        info: dict[str, Any] = {"turn": turn}
        if episode.is_over:
            info |= episode.judged().final_info()
            self._close_text_env()
        observation = self._observation()
        return observation, reward, episode.terminated, episode.truncated, info

    def render(self) -> str | None:  # type: ignore[override]
        """Returns prompt, turns and observations as text."""
        if self.render_mode != "ansi" or self._problem is None:
            return None
        text: str = self.tokenizer.decode([*self._prompt.tolist(), *self._response])
        return text

    def close(self) -> None:
        """Closes the text environment of an episode that has not ended."""
        self._close_text_env()
        super().close()

    def _close_text_env(self) -> None:
        env, self._text_env = self._text_env, None
        if env is not None:
            close_env(env)
