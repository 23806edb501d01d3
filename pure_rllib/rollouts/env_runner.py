"""Samples groups of responses and has them judged by the environment.

G responses per prompt, P prompt tokens, T response tokens.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable

import pure_rllib.envs  # noqa: F401 (registers the environments' ids on this node)
from pure_rllib.data.order import ProblemTicket
from pure_rllib.data.problems import Problem
from pure_rllib.envs.vector import JudgedResponse, ResponseJudge
from pure_rllib.generation.base import Generator, Response, SamplingParams
from pure_rllib.generation.make_generator import make_generator
from pure_rllib.hacking.flags import HackLimits, cap_rewards, flag_group
from pure_rllib.models.loading import policy_config
from pure_rllib.rewards.base import counts_of
from pure_rllib.rewards.prm.actors import connected_scorer
from pure_rllib.rollouts.env_summary import token_env_of
from pure_rllib.rollouts.group import Group, SampledResponse
from pure_rllib.weight_sync.handle import WeightReceiver, Weights

JUDGE_COUNTS = (
    "prm/overlong",
    "prm/retries",
    "prm/verdicts",
    "prm/unclear_verdicts",
    "prm/ties",
    "verifier/opinion_accepted",
    "verifier/opinion_rejected",
    "verifier/opinion_undecided",
    "verifier/opinion_guarded",
)
"""What step scorers and verifiers count beside scores and verdicts; 0 if they don't."""


@dataclass(slots=True)
class RunnerSample:
    """What one env runner made in one call.

    Attributes:
        groups: one per prompt.
        seconds: wall-clock time by phase: `sync` (taking over weights), `sample`,
            `score`, `verify`, and `total`.
        counts: what step scorer and verifier counted, see `JUDGE_COUNTS`.
        logp_gap: what `SyncCheck` found when it took over the weights.
    """

    groups: list[Group] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    logp_gap: float = math.nan


class HeldCreator:
    """Makes environments as another function does, and is small when it is sent.

    Ray starts an env runner again with the arguments of its first start, and forgets
    large ones, as a function with data in its closure, unless somebody holds them.

    Args:
        create_env: called with an `EnvContext`.
    """

    def __init__(self, create_env: Callable[[Any], Any]):
        self._held = ray.put(create_env)

    @property
    def create_env(self) -> Callable[[Any], Any]:
        """The function itself."""
        function: Callable[[Any], Any] = ray.get(self._held)
        return function

    def __call__(self, context: Any) -> Any:
        """Makes an environment."""
        return self.create_env(context)


class LLMEnvRunner(EnvRunner, Checkpointable):
    """An RLlib env runner that samples whole responses, G to a prompt.

    The generator writes the responses in one batch, the environment's batched path
    judges them, and each becomes a `SingleAgentEpisode`. Which prompts, and with which
    seeds, the algorithm says in each call: an env runner has no state of its own that
    would have to be saved. The model is loaded when it is first needed.
    """

    def __init__(self, *, config: Any, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self._env_creator = kwargs["env_creator"]
        self._generator: Generator | None = None
        self.receiver = WeightReceiver(
            lambda: self.generator, self.config.logp_gap_limit
        )
        self.make_env()

    @override(EnvRunner)
    def make_env(self) -> None:
        """Makes the environment; see `LLMConfig.full_env_config`."""
        context = EnvContext(
            self.config.full_env_config(),
            worker_index=self.worker_index or 0,
            num_workers=self.num_workers,
        )
        self.env: gym.Env = self._env_creator(context)
        self.token_env = token_env_of(self.env, self.config.env)
        judge = self.token_env.judge
        judge.step_scorer = connected_scorer(self.config, judge.step_scorer)
        model = policy_config(
            self.config.full_model_config()["model"],
            trust_remote_code=self.config.full_model_config()["trust_remote_code"],
        )
        self.token_env.set_vocab_size(model.get_text_config().vocab_size)

    @property
    def generator(self) -> Generator:  # type: ignore[override]
        """The generator, made at the first use."""
        if self._generator is None:
            env, backend = self.token_env, self.config.weight_backend()
            self._generator = make_generator(
                self.config.generator,
                {"seed": 0, **self.config.full_model_config()},
                self.config.generator_kwargs,
                pad_token_id=env.pad_token_id,
                eos_token_ids=env.eos_token_ids,
                max_model_len=env.max_prompt_tokens + env.max_response_tokens,
                top_p=self.config.top_p,
                transfer_backend=backend.engine_backend() if backend else None,
            )
        return self._generator

    @override(EnvRunner)
    def sample(  # type: ignore[override]
        self,
        *,
        tickets: Sequence[ProblemTicket],
        weights: Weights,
        group_size: int | None = None,
        temperature: float | None = None,
        evaluation: bool = False,
        group_ids: Sequence[int] | None = None,
    ) -> RunnerSample:
        """Samples one group of responses per ticket.

        Args:
            tickets: which problems, and each one's seed.
            weights: of the policy to sample from; taken over if this env runner holds
                others, as one that was restarted does.
            group_size: G; default: the configuration's.
            temperature: default: the configuration's; 0.0 is greedy.
            evaluation: take the problems from `eval_problems`, and give no process
                rewards.
            group_ids: one per ticket; default: 0, 1, ...

        Returns:
            The groups.
        """
        start = perf_counter()
        env = self.token_env
        source = env.eval_problems if evaluation else env.problems
        assert source is not None, "the algorithm checks that there are such problems"
        problems = [source[ticket.index] for ticket in tickets]
        prompts = [env.encode_prompt(problem) for problem in problems]
        params = SamplingParams(
            max_response_tokens=env.max_response_tokens,
            temperature=self.config.temperature if temperature is None else temperature,
            top_p=self.config.top_p if temperature is None else 1.0,
        )
        size = group_size or self.config.group_size
        generator = self.generator
        loading = perf_counter()
        self.receiver.take_over(weights)
        generating = perf_counter()
        responses = generator.generate(
            [prompt.tolist() for prompt in prompts],
            size,
            params,
            [ticket.seed for ticket in tickets],
        )
        generated = perf_counter()
        flat = [response for group in responses for response in group]
        before = judge_counts(env.judge)
        judged, times = env.judge.judge(
            [problem for problem in problems for _ in range(size)],
            [prompt for prompt in prompts for _ in range(size)],
            [response.token_ids for response in flat],
            # No figure of the evaluation is made of process rewards.
            score=not evaluation,
        )
        counts = judge_counts(env.judge) - before
        caps = {} if evaluation else self.config.hack_caps
        groups = [
            self._group(problem, prompt, group_id, own, judged[i : i + size], caps)
            for problem, prompt, group_id, own, i in zip(
                problems,
                prompts,
                range(len(tickets)) if group_ids is None else group_ids,
                responses,
                range(0, len(judged), size),
                strict=True,
            )
        ]
        seconds = {
            "sync": generating - loading,
            "sample": generated - generating,
            "score": times.score_s,
            "verify": times.verify_s,
            "total": perf_counter() - start,
        }
        return RunnerSample(groups, seconds, counts, self.receiver.logp_gap)

    def _group(
        self,
        problem: Problem,
        prompt: np.ndarray,
        group_id: int,
        responses: Sequence[Response],
        judged: Sequence[JudgedResponse],
        caps: Mapping[str, float],
    ) -> Group:
        """Makes one prompt's group; flagged responses' process rewards are capped."""
        splitter = self.token_env.splitter
        limits = HackLimits(**self.config.hack_limits)
        ids = [response.token_ids for response in responses]
        flags = flag_group([j.text for j in judged], ids, splitter, limits)
        judged = [cap_rewards(j, f, caps) for j, f in zip(judged, flags, strict=True)]
        totals = self.config.total_rewards(judged)
        return Group.of(
            [
                SampledResponse(
                    group_id=group_id,
                    problem=problem,
                    prompt_ids=prompt,
                    response=one,
                    judged=judged_one,
                    weights_version=self.generator.weights_version,
                    flags=flags_of_one,
                    num_separators=splitter.num_separators(one.token_ids),
                    total_reward=total,
                )
                for one, judged_one, flags_of_one, total in zip(
                    responses, judged, flags, totals, strict=True
                )
            ]
        )

    def sample_apart(self, **kwargs: Any) -> list[Any]:
        """Samples for a caller in another process.

        Each group's episodes are a return value of their own: the caller owns them, so
        that they outlive this process, and they stay on this node until a learner
        fetches them. (What an actor puts into the object store dies with it.)

        Returns:
            The sample, its groups without their episodes, then each group's episodes.
        """
        sample = self.sample(**kwargs)
        episodes = [group.episodes for group in sample.groups]
        for group in sample.groups:
            group.episodes = []
        return [sample, *episodes]

    @override(EnvRunner)
    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """Returns the environment's spaces, for RLlib."""
        spaces = (self.env.observation_space, self.env.action_space)
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    @override(EnvRunner)
    def assert_healthy(self) -> None:
        """Checks that there is an environment."""
        assert self.env is not None, "the environment was not made"

    @override(EnvRunner)
    def stop(self) -> None:
        """Closes the environment and the generator."""
        self.env.close()
        if self._generator is not None:
            self._generator.close()

    @override(EnvRunner)
    def get_metrics(self) -> dict[str, Any]:
        """Nothing: each sample carries its own."""
        return {}

    @override(Checkpointable)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Nothing: see the class."""
        return {}

    @override(Checkpointable)
    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing: weights come by `load_weights`."""

    @override(Checkpointable)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns how to make this env runner again."""
        creator = self._env_creator
        if isinstance(creator, HeldCreator):
            # A checkpoint outlives what Ray holds.
            creator = creator.create_env
        kwargs = {
            "config": self.config,
            "env_creator": creator,
            "worker_index": self.worker_index,
            "num_workers": self.num_workers,
        }
        return (), kwargs


GroupEnvRunner = LLMEnvRunner
"""The name in earlier checkpoints."""


def judge_counts(judge: ResponseJudge) -> Counter[str]:
    """Returns what a judge's parts have counted since they were made, by metric."""
    counts = Counter(
        {f"prm/{name}": n for name, n in counts_of(judge.step_scorer).items()}
    )
    for name, n in counts_of(judge.verifier).items():
        is_guarded = name.startswith("guard_")
        counts[f"verifier/opinion_{'guarded' if is_guarded else name}"] += n
    return Counter({name: counts[name] for name in JUDGE_COUNTS})
