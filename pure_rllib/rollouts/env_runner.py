"""Samples groups of responses and has them judged by the environment.

G responses per prompt, P prompt tokens, T response tokens.
"""

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, overload

import gymnasium as gym
import numpy as np
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable

import pure_rllib.envs  # noqa: F401 (registers the environments' ids on this node)
from pure_rllib.data.order import ProblemTicket
from pure_rllib.generation.base import Generator, Response, SamplingParams
from pure_rllib.generation.make_generator import make_generator
from pure_rllib.generation.transformers_generator import TransformersGenerator
from pure_rllib.hacking.flags import HackLimits, cap_rewards, flag_group
from pure_rllib.models.llm_rl_module import POLICY
from pure_rllib.rewards.prm.actors import connected_scorer
from pure_rllib.rollouts.answers import AnsweredGroup, Answers, answer
from pure_rllib.rollouts.callbacks import SamplingCallbacks
from pure_rllib.rollouts.env_summary import fit_to_policy, token_env_of
from pure_rllib.rollouts.flight import Flight
from pure_rllib.rollouts.group import Group, SampledResponse
from pure_rllib.rollouts.runner_sample import JUDGE_COUNTS as JUDGE_COUNTS
from pure_rllib.rollouts.runner_sample import RunnerSample as RunnerSample
from pure_rllib.rollouts.runner_sample import judge_counts as judge_counts
from pure_rllib.weight_sync.handle import WeightReceiver, Weights


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

    Asked as RLlib's own are, `sample(num_episodes=...)`, it draws problems itself.

    Attributes:
        newest_weights: what gives the learners' present weights, where there is such a
            function in this process; else those of the last call are the newest known.
    """

    newest_weights: Callable[[], Weights] | None = None
    _log_episode = SingleAgentEnvRunner._log_episode_metrics
    _count_steps = SingleAgentEnvRunner._increase_sampled_metrics

    def __init__(self, *, config: Any, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self._env_creator = kwargs["env_creator"]
        self._generator: Generator | None = None
        self._module: RLModule | None = None
        self._flight: Flight | None = None
        # Of problems that nobody names, so that nothing of a run depends on it.
        self._random = np.random.default_rng((self._seed or 0, 1))
        self.callbacks = SamplingCallbacks(self)
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
        part = judge.pooled_part
        setattr(judge, part, connected_scorer(self.config, getattr(judge, part)))
        fit_to_policy(self.token_env, self.config.full_model_config())
        self.token_env.set_stop(self.config.stop)
        self.callbacks.call(
            "on_environment_created", env=self.env.unwrapped, env_context=context
        )

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
                stop=env.stop,
                max_model_len=env.max_prompt_tokens
                + self.config.longest_response(env.max_response_tokens),
                top_p=self.config.top_p,
                transfer_backend=backend.engine_backend() if backend else None,
                colocate=self.config.colocate,
                num_sequences=self.config.num_prompts * self.config.group_size,
            )
        return self._generator

    @property
    def module(self) -> RLModule:
        """The policy with its newest weights, for inference; see `LLMRLModule`.

        It is made of the generator's own model, which is not copied.

        Raises:
            ValueError: the generator has no model in this process.
        """
        if self.config.generator != "transformers":
            raise ValueError(
                f'`generator` ("{self.config.generator}") must be "transformers" for '
                "`get_module()`, because vLLM holds the policy in its own form. Call "
                "`algo.export_policy(FOLDER)` and load the folder."
            )
        self._take_over_newest()
        generator = self.generator
        assert isinstance(generator, TransformersGenerator)
        if self._module is None:
            spec = self.config.get_rl_module_spec(
                spaces=self.get_spaces(), inference_only=True
            )
            spec.model_config = {**spec.model_config, POLICY: generator.model}
            self._module = spec.build()
        return self._module

    def module_or_none(self) -> RLModule | None:
        """Returns the module as the present weights make it; None with vLLM."""
        return self.module if self.config.generator == "transformers" else None

    def _take_over_newest(self) -> None:
        if self.newest_weights is not None:
            self.receiver.take_over(self.newest_weights())

    @overload  # type: ignore[override]
    def sample(
        self, *, tickets: Sequence[ProblemTicket], **kwargs: Any
    ) -> RunnerSample: ...

    @overload
    def sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[SingleAgentEpisode]: ...

    @override(EnvRunner)
    def sample(
        self,
        *,
        tickets: Sequence[ProblemTicket] | None = None,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
        **kwargs: Any,
    ) -> RunnerSample | list[SingleAgentEpisode]:
        """Samples groups for the algorithm, or episodes as RLlib's env runners do.

        Args:
            tickets: which problems, and each one's seed; with the arguments of
                `sample_groups`. None: problems are drawn, one response each.
            num_timesteps: at least so many tokens, in whole responses.
            num_episodes: so many responses. With neither, as many as an iteration asks
                of this env runner.
            explore: False is greedy; None: the configuration's.
            random_actions: not for language models.
            force_reset: without effect: responses are always begun anew.

        Returns:
            With tickets the groups, and what was logged meanwhile. Else episodes, whose
            metrics are those of `get_metrics`.

        Raises:
            ValueError: `random_actions`, or both numbers.
        """
        if tickets is not None:
            sample = self.sample_groups(tickets=tickets, **kwargs)
            self.callbacks.call_for_sample(_episodes_of(sample.groups))
            sample.metrics = self.get_metrics()
            return sample
        if random_actions or None not in (num_timesteps, num_episodes):
            raise ValueError(
                f"`random_actions` ({random_actions}) must be False, because the "
                "generator writes the policy's tokens, and one of `num_timesteps` "
                f"({num_timesteps}) and `num_episodes` ({num_episodes}) be left out. "
                "Leave out what does not fit."
            )
        if num_timesteps is None and num_episodes is None:
            asked = self.config.num_prompts * self.config.group_size
            num_episodes = math.ceil(asked / max(1, self.num_workers or 0))
        self._take_over_newest()
        is_greedy = not (self.config.explore if explore is None else explore)
        episodes: list[SingleAgentEpisode] = []
        while missing := _num_missing(
            episodes, num_episodes, num_timesteps, self.token_env.max_response_tokens
        ):
            sample = self.sample_groups(
                tickets=[self._drawn_ticket() for _ in range(missing)],
                group_size=1,
                temperature=0.0 if is_greedy else None,
            )
            episodes += _episodes_of(sample.groups)
        self.callbacks.call_for_sample(episodes)
        return episodes

    def _drawn_ticket(self) -> ProblemTicket:
        index = int(self._random.integers(len(self.token_env.problems)))
        return ProblemTicket(index, 0, 0, int(self._random.integers(2**63)))

    def sample_groups(
        self,
        *,
        tickets: Sequence[ProblemTicket],
        weights: Weights | None = None,
        group_size: int | None = None,
        temperature: float | None = None,
        evaluation: bool = False,
        group_ids: Sequence[int] | None = None,
    ) -> RunnerSample:
        """Samples one group of responses per ticket.

        Args:
            tickets: which problems, and each one's seed.
            weights: of the policy to sample from; taken over if this env runner holds
                others, as one that was restarted does. None: those that it holds.
            group_size: G; default: the configuration's.
            temperature: default: the configuration's; 0.0 is greedy.
            evaluation: take the problems from `eval_problems` and the settings of
                `evaluation_config`, and give no process rewards.
            group_ids: one per ticket; default: 0, 1, ...

        Returns:
            The groups.
        """
        start = perf_counter()
        env = self.token_env
        source = env.eval_problems if evaluation else env.problems
        assert source is not None, "the algorithm checks that there are such problems"
        own = self.config.evaluation_overrides() if evaluation else {}
        params = SamplingParams(
            max_response_tokens=own.get("max_response_tokens", env.max_response_tokens),
            temperature=own.get("temperature", self.config.temperature)
            if temperature is None
            else temperature,
            top_p=own.get("top_p", self.config.top_p) if temperature is None else 1.0,
        )
        size = group_size or self.config.group_size
        generator = self.generator  # made before the clock runs
        loading = perf_counter()
        if weights is not None:
            self.receiver.take_over(weights)
        generating = perf_counter()
        answers = answer(
            env,
            generator,
            source,
            tickets,
            size,
            params,
            # No figure of the evaluation is made of process rewards.
            score=not evaluation,
        )
        ids = range(len(tickets)) if group_ids is None else group_ids
        return self._sampled(
            answers, ids, start, sync_s=generating - loading, in_evaluation=evaluation
        )

    def _sampled(
        self,
        answers: Answers,
        group_ids: Sequence[int],
        start: float,
        *,
        sync_s: float,
        in_evaluation: bool = False,
    ) -> RunnerSample:
        """Makes groups of answers, logs them, and says how long all took."""
        groups = [
            self._group(one, group_id, in_evaluation)
            for one, group_id in zip(answers.groups, group_ids, strict=True)
        ]
        self.callbacks.call_for_episodes(groups)
        self._log(groups, answers.sample_s)
        seconds = {
            "sync": sync_s,
            "sample": answers.sample_s,
            "score": answers.times.score_s,
            "verify": answers.times.verify_s,
            "total": perf_counter() - start,
        }
        return RunnerSample(groups, seconds, answers.counts, self.receiver.logp_gap)

    def advance_apart(
        self,
        *,
        tickets: Sequence[ProblemTicket],
        group_ids: Sequence[int],
        weights: Weights,
        anew: bool,
    ) -> tuple[RunnerSample, list[SingleAgentEpisode]]:
        """Begins groups, and goes on for a turn with all that were begun.

        Args:
            tickets: of the groups to begin.
            group_ids: one per ticket.
            weights: newer ones are taken over, between two tokens of responses.
            anew: forget first what was begun before.

        Returns:
            As soon as there is one, a finished group without its episodes, and these;
            after the turn no group.
        """
        start = perf_counter()
        if self._flight is None:
            self._flight = Flight(self.token_env, self.generator)
        if anew:
            self._flight.drop()
        loading = perf_counter()
        self.receiver.take_over(weights)
        sync_s = perf_counter() - loading
        env, config = self.token_env, self.config
        params = SamplingParams(
            env.max_response_tokens, config.temperature, config.top_p
        )
        if tickets:
            self._flight.begin(tickets, group_ids, config.group_size, params)
        finished, answers = self._flight.advance()
        sample = self._sampled(answers, finished, start, sync_s=sync_s)
        if sample.groups:
            self.callbacks.call_for_sample(_episodes_of(sample.groups))
            sample.metrics = self.get_metrics()
        return sample, next(iter(_taken_out(sample)), [])

    def _log(self, groups: Sequence[Group], seconds: float) -> None:
        """Logs what RLlib's own env runners log of complete episodes."""
        episodes = _episodes_of(groups)
        for episode in episodes:
            self._log_episode(len(episode), episode.get_return(), seconds)
        self._count_steps(sum(map(len, episodes)), len(episodes))

    def _group(
        self, answered: AnsweredGroup, group_id: int, in_evaluation: bool
    ) -> Group:
        """Makes one prompt's group; flagged responses' process rewards are capped."""
        splitter = self.token_env.splitter
        limits = HackLimits(**self.config.hack_limits)
        caps = {} if in_evaluation else self.config.hack_caps
        responses, judged = answered.responses, answered.judged
        ids = [response.token_ids for response in responses]
        num_steps = [len(j.step_spans) for j in judged]
        texts = [j.text for j in judged]
        flags = flag_group(texts, ids, splitter, limits, num_steps)
        judged = [cap_rewards(j, f, caps) for j, f in zip(judged, flags, strict=True)]
        totals = self.config.total_rewards(judged)
        return Group.of(
            [
                SampledResponse(
                    group_id=group_id,
                    problem=answered.problem,
                    prompt_ids=answered.prompt,
                    response=one,
                    judged=judged_one,
                    weights_version=_oldest(one, self.generator.weights_version),
                    flags=flags_of_one,
                    num_separators=splitter.num_separators(one.token_ids),
                    total_reward=total,
                    in_evaluation=in_evaluation,
                    turns=turns,
                )
                for one, judged_one, flags_of_one, total, turns in zip(
                    responses,
                    judged,
                    flags,
                    totals,
                    answered.turns,
                    strict=True,
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
        sample: RunnerSample = self.sample(**kwargs)
        return [sample, *_taken_out(sample)]

    def sleep(self) -> None:
        """Has the generator give its memory back until this samples again."""
        self.receiver.sleep()

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
        """Returns and forgets what was logged since the last call, as RLlib's do.

        A sample with tickets carries it already.
        """
        metrics: dict[str, Any] = self.metrics.reduce()
        return metrics

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


def _oldest(response: Response, held: int) -> int:
    """The version of a response's first token, which is the oldest."""
    return held if response.versions is None else int(response.versions[0])


def _taken_out(sample: RunnerSample) -> list[Any]:
    """Takes the episodes out of a sample's groups."""
    episodes = [group.episodes for group in sample.groups]
    for group in sample.groups:
        group.episodes = []
    return episodes


def _episodes_of(groups: Sequence[Group]) -> list[SingleAgentEpisode]:
    """The episodes of groups that were sampled in this process."""
    return [episode for group in groups for episode in group.episodes]  # type: ignore[union-attr]


def _num_missing(
    episodes: Sequence[SingleAgentEpisode],
    num_episodes: int | None,
    num_timesteps: int | None,
    most_tokens: int,
) -> int:
    """How many responses to sample at once, so that none is more than asked for."""
    if num_episodes is not None:
        return num_episodes - len(episodes)
    assert num_timesteps is not None, "one of the two is given"
    return max(0, math.ceil((num_timesteps - sum(map(len, episodes))) / most_tokens))
