"""What the algorithm must know of an environment, and can carry over a network."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from transformers import PretrainedConfig

from pure_rllib.credit.steps import describe_steps
from pure_rllib.data.problems import ProblemSource
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.models.loading import policy_config
from pure_rllib.reporting.metrics import absent_metrics

_NUM_PROBES = 4
_MAX_PROBE_TOKENS = 32
# Seconds for comparing held-out problems with those of training.
_PATIENCE_S = 0.25


@dataclass(frozen=True, slots=True)
class EnvSummary:
    """Facts about a `TokenEnv`.

    Attributes:
        num_problems: training problems; >= 1.
        num_answers: how many of them have a gold answer.
        num_eval_problems: held-out problems; 0 if there are none.
        num_dropped_prompts: problems left out because their prompts were too long.
        tokenizer_size: ids that the tokenizer knows.
        max_prompt_tokens: limit of a prompt.
        max_response_tokens: budget of a response.
        has_step_scorer: whether there are process rewards.
        has_verifier: whether there are verifiable rewards.
        default_policy: the model that the environment brings for policies, or None.
        probe_ids: the beginnings of a few prompts, for comparing log-probabilities.
        steps: how responses are divided, in a sentence.
        has_reward_model: whether a reward model rates whole responses.
        reward_map: what its numbers are mapped by; None: by nothing.
        has_turns: whether a text environment answers between turns.
    """

    num_problems: int
    num_answers: int
    num_eval_problems: int
    num_dropped_prompts: int
    tokenizer_size: int
    max_prompt_tokens: int
    max_response_tokens: int
    has_step_scorer: bool
    has_verifier: bool
    default_policy: str | None
    probe_ids: tuple[tuple[int, ...], ...]
    steps: str = ""
    has_turns: bool = False
    has_reward_model: bool = False
    reward_map: str | None = None

    @property
    def absent_metrics(self) -> frozenset[str]:
        """What cannot be measured here; no result has it."""
        return absent_metrics(
            has_step_scorer=self.has_step_scorer,
            has_verifier=self.has_verifier,
            has_turns=self.has_turns,
            has_reward_model=self.has_reward_model,
        )

    @classmethod
    def of(cls, env: TokenEnv) -> "EnvSummary":
        """Reads the facts off an environment."""
        return cls(
            num_problems=len(env.problems),
            num_answers=env.problems.num_answers,
            num_eval_problems=len(env.eval_problems) if env.eval_problems else 0,
            num_dropped_prompts=getattr(env, "num_dropped_prompts", 0),
            tokenizer_size=len(env.tokenizer),
            max_prompt_tokens=env.max_prompt_tokens,
            max_response_tokens=env.max_response_tokens,
            has_step_scorer=env.has_process_rewards,
            has_verifier=env.has_verifiable_rewards,
            default_policy=env.default_policy,
            probe_ids=_probe_ids(env),
            steps=_steps(env),
            has_turns=isinstance(env, TextTokenEnv),
            has_reward_model=env.judge.reward_model is not None,
            reward_map=getattr(env.judge.reward_model, "map", None),
        )


def _steps(env: TokenEnv) -> str:
    if isinstance(env, TextTokenEnv):
        return f"Each turn is a step; up to {env.rules.max_turns} make a response."
    return describe_steps(env.tokenizer)


def fit_to_policy(env: TokenEnv, model_config: Mapping[str, Any]) -> PretrainedConfig:
    """Gives an environment the policy's vocabulary and the ids that end its texts.

    Args:
        env: changed.
        model_config: the `LLMConfig`'s, filled in.

    Returns:
        The policy's config.
    """
    model = model_config["model"]
    config = policy_config(model, trust_remote_code=model_config["trust_remote_code"])
    env.set_vocab_size(config.get_text_config().vocab_size)
    env.add_eos_ids_of(model)
    return config


def first_lines(env: TokenEnv) -> str:
    """Says what was read: problems, answers, one prompt, where responses end."""
    lines = [f"problems        {_counted(env.problems)}"]
    if env.eval_problems is not None:
        lines.append(f"held out        {_counted(env.eval_problems)}")
        shared = _num_shared(env.problems, env.eval_problems)
        if shared:
            lines.append(
                f"                at least {shared} of them are asked in training, too"
            )
    dropped = getattr(env, "num_dropped_prompts", 0)
    if dropped:
        lines.append(
            f"dropped         {dropped}, their prompts being longer than "
            f"{env.max_prompt_tokens} tokens"
        )
    equal = getattr(env, "num_equal_questions", 0)
    if equal:
        lines.append(f"left out        {equal}, their questions being there already")
    prompt = env.tokenizer.decode(env.encode_prompt(env.problems[0]))
    lines += ["first prompt", *(f"  | {line}" for line in prompt.split("\n"))]
    ids = sorted(env.eos_token_ids)
    ends = zip(env.tokenizer.convert_ids_to_tokens(ids), ids, strict=True)
    names = [f"{token} ({i})" for token, i in ends]
    names += map(repr, env.stop.stop if env.stop else ())
    lines.append(f"responses end   at {', '.join(names)}")
    return "\n".join(lines)


def _num_shared(problems: ProblemSource, held_out: ProblemSource) -> int:
    """Counts held-out problems whose text is one of training, while patience lasts."""
    trained = set(_texts(problems))
    return sum(text in trained for text in _texts(held_out))


def _texts(source: ProblemSource) -> Iterator[tuple[str, str]]:
    # A source may make its problems, or reset an environment for each.
    deadline = perf_counter() + _PATIENCE_S
    for index in range(len(source)):
        if perf_counter() > deadline:
            return
        problem = source[index]
        yield problem.prompt, str(problem.history)


def _counted(problems: ProblemSource) -> str:
    return f"{len(problems)}, {problems.num_answers} of them with an answer"


def _probe_ids(env: TokenEnv) -> tuple[tuple[int, ...], ...]:
    indices = range(min(_NUM_PROBES, len(env.problems)))
    prompts = [env.encode_prompt(env.problems[i]) for i in indices]
    # A second token at least: the first one has no log-probability.
    return tuple(
        (*prompt[:_MAX_PROBE_TOKENS].tolist(), min(env.eos_token_ids))
        for prompt in prompts
    )


def makes_by_keywords(env: Any) -> bool:
    """Whether the setting `env` is a `TokenEnv` whose arguments are all keywords.

    RLlib gives a class one dict, as `__init__(self, config)` takes it.
    """
    if not (isinstance(env, type) and issubclass(env, TokenEnv)):
        return False
    parameters = inspect.signature(env).parameters.values()
    return all(
        p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) or p.default is not p.empty
        for p in parameters
    )


def token_env_of(env: Any, name: Any) -> TokenEnv:
    """Returns the `TokenEnv` inside its wrappers.

    Args:
        env: what an environment creator returned.
        name: the setting `env`.

    Raises:
        ValueError: there is no environment, it is of another kind, or it has methods of
            its own that are never called.
    """
    if env is None:
        raise ValueError(
            f"`env` ({name}) must be an environment, because there is nothing to learn "
            'without one. Set `.environment("pure_rllib/Arithmetic-v0")`.'
        )
    if not isinstance(env.unwrapped, TokenEnv):
        raise ValueError(
            f"`env` ({name}) must be a `TokenEnv`, because groups of responses are "
            f"judged by its batched path; it is a {type(env.unwrapped).__name__}. "
            "Compose one: `TokenEnv(problems=..., tokenizer=..., step_scorer=..., "
            "verifier=...)`."
        )
    token_env = env.unwrapped
    while env is not token_env:
        if not _changes_nothing(env, token_env):
            _check_never_called(type(env), gym.Wrapper)
        env = env.env
    is_text = isinstance(token_env, TextTokenEnv)
    _check_never_called(type(token_env), TextTokenEnv if is_text else TokenEnv)
    return token_env


def _changes_nothing(wrapper: gym.Wrapper, env: TokenEnv) -> bool:
    """Whether a wrapper, one of those that `gymnasium.make` adds, may be passed by."""
    if type(wrapper) is TimeLimit:
        return bool(wrapper._max_episode_steps >= env.max_response_tokens)
    return type(wrapper) in (OrderEnforcing, PassiveEnvChecker)


def _check_never_called(cls: type, base: type) -> None:
    """Raises where a class would change what the batched path does without it."""
    changed = [
        f"`{name}`"
        for name in ("reset", "step", "observation", "action", "reward")
        if getattr(cls, name, None) is not getattr(base, name, None)
    ]
    if changed:
        raise ValueError(
            f"`env` must do without `{cls.__name__}`'s {' and '.join(changed)}, "
            "because groups of whole responses are judged by the environment's batched "
            "path, which calls none of them. Change rewards in the step scorer or the "
            "verifier, or by `process_reward_coeff` and `verifiable_reward_coeff`; "
            "prompts in `encode_prompt`; ends by `eos_token_ids` and "
            "`max_response_tokens`."
        )
