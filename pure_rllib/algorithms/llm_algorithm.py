"""What every algorithm for language models does: sample, update, sync, report."""

import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_LEARNER_GROUP, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.env_context import EnvContext
from ray.rllib.utils import deep_update, unflatten_dict
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.tune import PlacementGroupFactory
from torch import Tensor

from pure_rllib.algorithms import checkpoints
from pure_rllib.algorithms.config_rules import check_against_env
from pure_rllib.algorithms.memory import RunPlan
from pure_rllib.algorithms.metrics import (
    RunCounts,
    evaluated_episodes,
    evaluation_metrics,
    iteration_metrics,
    learner_results,
    single_step_warning,
)
from pure_rllib.algorithms.placement import warn_of_missing_cpus
from pure_rllib.connectors.pipeline import report_connectors
from pure_rllib.data.order import ProblemOrder, ProblemTicket, sample_seed
from pure_rllib.distributed.calls import on_learners
from pure_rllib.learners import stats as learner_stats
from pure_rllib.learners.delivery import deliver
from pure_rllib.learners.train_batch import (
    MiniBatchPlan,
    groups_to_learn_from,
    plan_mini_batches,
)
from pure_rllib.models import columns
from pure_rllib.models.export import check_exportable
from pure_rllib.reporting.records import ResponseNumbers, ResponseRecord
from pure_rllib.rewards.prm.actors import start_prm_actors, with_prm_bundles
from pure_rllib.rollouts.env_runner import HeldCreator
from pure_rllib.rollouts.env_summary import (
    EnvSummary,
    first_lines,
    fit_to_policy,
    makes_by_keywords,
    token_env_of,
)
from pure_rllib.rollouts.group import Group, SampledResponse
from pure_rllib.rollouts.in_flight import InFlightSampler
from pure_rllib.rollouts.sampler import (
    SampledBatch,
    Sampler,
    episodes_of,
    mark_lags,
)
from pure_rllib.weight_sync.handle import Weights
from pure_rllib.weight_sync.sync import WeightSync

_LOGGER = logging.getLogger(__name__)

_STATE = "pure"
_CALLBACKS = "pure_callbacks"
_SEED = "pure_seed"


class LLMAlgorithm(Algorithm):
    """Reinforcement learning of a language model on groups of whole responses.

    Every iteration samples `num_prompts` groups of `group_size` responses, has the
    learners turn rewards into advantages and update the policy, and brings its weights
    to the env runners. What is rewarded and how, an algorithm's `LLMConfig` says.

    Attributes:
        first_lines: what was read: problems, answers, the first prompt, EOS tokens.
    """

    @classmethod
    @override(Algorithm)
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """Returns what a trial of Tune needs: RLlib's bundles and the PRM actors'."""
        request = super().default_resource_request(config)
        filled = cls.get_default_config().update_from_dict(config)
        return with_prm_bundles(request, filled)

    @staticmethod
    @override(Algorithm)
    def _get_env_id_and_creator(env: Any, config: Any) -> tuple[Any, Any]:
        if makes_by_keywords(env):
            return env, partial(_make_by_keywords, env)
        return Algorithm._get_env_id_and_creator(env, config)

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        """Checks everything that can be checked, then makes env runners and learners.

        Raises:
            ValueError: a setting cannot work; no model has been loaded then.
        """
        self._counts = RunCounts()
        self._sync: WeightSync | None = None
        self._weights: Weights | None = None
        self._last_batch = SampledBatch()
        self._iteration_metrics: dict[str, float] = {}
        self._has_warned_of_steps = False
        config = config.copy(copy_frozen=False)
        self._has_drawn_seed = config.seed is None
        if config.seed is None:
            config.seed = secrets.randbelow(2**31)
            _LOGGER.info("`seed` (None): the run has drawn %d.", config.seed)
        self.env_summary = self._check_env(config)
        self._check_memory(config)
        config.freeze()
        self.config = config
        warn_of_missing_cpus(config)
        if config.num_env_runners:
            self.env_creator: Any = HeldCreator(self.env_creator)
        super().setup(config)
        try:
            self._sync = WeightSync(
                self.learner_group,
                self.env_summary.probe_ids,
                config,
                in_process=self.env_runner_group.num_remote_env_runners() == 0,
            )
        except ValueError:
            self.cleanup()  # Tune and the caller have nothing to stop yet
            raise
        if self.env_runner is not None:
            self.env_runner.newest_weights = self._published
        self._sampler = self._make_sampler()

    def _make_sampler(self) -> Sampler:
        """Makes what samples the problems in the order of the run's seed."""
        assert self._sync is not None, "made in `setup`"
        order = self._problem_order()
        is_in_flight = self.config.weight_update == "in_flight"
        kind = InFlightSampler if is_in_flight else Sampler
        return kind(self.env_runner_group, self._sync, order, self.config)

    def _problem_order(self) -> ProblemOrder:
        return ProblemOrder(self.env_summary.num_problems, self.config.seed)

    def _check_env(self, config: Any) -> EnvSummary:
        """Makes the environment for a moment, and fills in what follows from it."""
        env = self._make_env(EnvContext(config.full_env_config(), worker_index=0))
        token_env = token_env_of(env, config.env)
        summary = EnvSummary.of(token_env)
        self._tokenizer = token_env.tokenizer
        env.close()
        config.max_response_tokens = summary.max_response_tokens
        if config.model_config.get("model") is None:
            if summary.default_policy is None:
                raise ValueError(
                    "`model` (None) must name a policy, because the environment brings "
                    'none. Set `.rl_module(model_config={"model": FOLDER})`.'
                )
            config.rl_module(
                model_config={
                    **config._model_config,
                    "model": summary.default_policy,
                }
            )
        model_config = config.full_model_config()
        model = model_config["model"]
        check_against_env(config, summary, model)
        policy = fit_to_policy(token_env, model_config)
        token_env.set_stop(config.stop)
        if model != self._tokenizer.name_or_path:  # it was loaded from there
            check_exportable(self._tokenizer, policy)
        self.first_lines = first_lines(token_env)
        judge = token_env.judge
        self._prm_actors = start_prm_actors(config, getattr(judge, judge.pooled_part))
        return summary

    def _check_memory(self, config: Any) -> None:
        """Refuses a run in this process that its GPU has no room for."""
        is_here = config.num_gpus_per_learner and not config.num_learners
        if not (is_here and torch.cuda.is_available()):
            return
        free, _ = torch.cuda.mem_get_info(config.local_gpu_idx)
        RunPlan.of(
            config,
            max_prompt_tokens=self.env_summary.max_prompt_tokens,
            max_response_tokens=self.env_summary.max_response_tokens,
        ).check(free)

    def _make_env(self, context: EnvContext) -> Any:
        """Makes the environment; an argument it does not know is a user's error."""
        try:
            return self.env_creator(context)
        except TypeError as error:
            raise ValueError(
                f"`env_config` ({dict(context)}) does not fit the environment "
                f"`{self.config.env}`, because: {error}. Set only what its class "
                "documents; docs/environments.md has the list."
            ) from error

    @override(Algorithm)
    def training_step(self) -> None:
        """One iteration: sample, update, publish the weights, report."""
        start = perf_counter()
        batch = self._sampler.next_batch(self._counts.cursor, self._published())
        self._counts.cursor += len(batch.groups)
        if self.config.colocate:
            self.env_runner.sleep()
        sampled = perf_counter()
        kept = groups_to_learn_from(batch.groups, self.config)
        plan = plan_mini_batches(
            [group.group_id for group in kept],
            groups_per_step=self.config.groups_per_step,
            num_epochs=self.config.num_epochs,
            seed=self.config.seed,
            iteration=self.iteration,
            max_response_tokens=self.config.max_response_tokens,
        )
        batch.num_resampled += deliver(
            self.learner_group, kept, plan.mini_batches, self._sample_again
        )
        mark_lags(batch.groups, self._counts.weights_version)
        learned = self._update(plan)
        updated = perf_counter()
        self._counts.weights_version += 1
        self._weights = None
        self._published()
        published = perf_counter()
        self._last_batch = batch
        self.metrics.aggregate(batch.metrics, key=ENV_RUNNER_RESULTS)
        self._counts.num_dropped += len(batch.groups) - len(kept)
        self._iteration_metrics = iteration_metrics(
            batch,
            num_kept=len(kept),
            learned=learned,
            seconds={
                "wait": sampled - start,
                "learn": updated - sampled,
                "publish": published - updated,
                "iteration": perf_counter() - start,
            },
            counts=self._counts,
            env=self.env_summary,
            config=self.config,
        )
        if not self._has_warned_of_steps and (
            warning := single_step_warning(
                self._iteration_metrics, self.env_summary, self.config
            )
        ):
            _LOGGER.warning("Iteration %d: %s", self.iteration + 1, warning)
            self._has_warned_of_steps = True

    def _sample_again(self, group_ids: Sequence[int]) -> list[Group]:
        """Samples groups that were lost after they were sampled."""
        return self._sampler.sample_again(group_ids, self._published())

    def _update(self, plan: MiniBatchPlan) -> dict[str, float]:
        """Updates the policy on delivered groups; returns the learners' metrics."""
        steps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self._counts.num_tokens_sampled}
        reports = on_learners(
            self.learner_group,
            lambda learner: learner.update(plan=plan, timesteps=steps),
        )
        # What learners and their losses log by RLlib's own means, under `learners`.
        logged = [report[learner_stats.LOGGED] for report in reports]
        self.metrics.aggregate(logged, key=LEARNER_RESULTS)
        return learner_stats.merge(reports)

    def _published(self) -> Weights:
        """Returns the present weights, published when they are first asked for."""
        if self._weights is None:
            assert self._sync is not None, "made in `setup`"
            self._weights = self._sync.publish(self._counts.weights_version)
        return self._weights

    @override(Algorithm)
    def _compile_iteration_results(
        self, *, train_results: Any, eval_results: Any
    ) -> Any:
        results = super()._compile_iteration_results(
            train_results=train_results, eval_results=eval_results
        )
        # Written as they are: RLlib's logger would smooth them over iterations.
        deep_update(
            results,
            {
                **unflatten_dict(self._iteration_metrics),
                LEARNER_RESULTS: {
                    DEFAULT_MODULE_ID: learner_results(self._iteration_metrics)
                },
            },
            new_keys_allowed=True,
        )
        return results

    @override(Algorithm)
    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Asks the held-out problems: one greedy response each, and some sampled ones.

        Args:
            parallel_train_future: not supported; training waits.

        Returns:
            Metrics without their prefix `evaluation/`; under `env_runners` what RLlib
            reports there, with what callbacks have logged.
        """
        num_problems = self.env_summary.num_eval_problems
        if not num_problems:
            raise ValueError(
                "`eval_problems` (None) must be given for evaluation. Set "
                "`env_config={'eval_problems': ...}`."
            )
        self._call_back("on_evaluate_start")
        seed = self.config.seed
        problems = range(min(num_problems, self.config.evaluation_duration))

        def sample(num_samples: int, **kwargs: Any) -> SampledBatch:
            # Each sample has a seed of its own, as in `pure_rllib.evaluation`.
            tickets = [
                ProblemTicket(i, 0, i, sample_seed(seed, i, number))
                for i in problems
                for number in range(num_samples)
            ]
            return self._sampler.sample(
                dict(enumerate(tickets)),
                self._published(),
                group_size=1,
                evaluation=True,
                **kwargs,
            )

        greedy = sample(1, temperature=0.0)
        num_samples = self.config.num_samples_per_problem
        sampled = sample(num_samples) if num_samples else SampledBatch()
        # Of this evaluation alone: in the algorithm's logger it would come again with
        # each iteration that is not evaluated.
        logger = MetricsLogger(stats_cls_lookup=self.config.stats_cls_lookup, root=True)
        logger.aggregate(greedy.metrics + sampled.metrics, key=ENV_RUNNER_RESULTS)
        metrics: dict[str, Any] = logger.peek()
        deep_update(
            metrics,
            {
                **evaluation_metrics(
                    greedy.groups,
                    sampled.groups,
                    num_samples=num_samples,
                    absent=self.env_summary.absent_metrics,
                ),
                ENV_RUNNER_RESULTS: evaluated_episodes(greedy.groups + sampled.groups),
            },
            new_keys_allowed=True,
        )
        self._call_back("on_evaluate_end", evaluation_metrics=metrics)
        return metrics

    def _call_back(self, event: str, **kwargs: Any) -> None:
        """Calls the user's callbacks, classes and functions, as RLlib does."""
        make_callback(
            event,
            callbacks_objects=self.callbacks,
            callbacks_functions=getattr(self.config, f"callbacks_{event}"),
            kwargs={"algorithm": self, "metrics_logger": self.metrics, **kwargs},
        )

    def rollouts(self, num_groups: int = 4) -> list[list[ResponseRecord]]:
        """Returns groups of the last iteration with returns and advantages.

        Args:
            num_groups: at most so many, the first ones; with an algorithm that compares
                several, as many more as complete the last comparison.

        Returns:
            Groups of records, without those whose episodes are lost; advantages as the
            loss saw them, but for normalisation and a KL penalty, which need the whole
            batch and the reference policy.
        """
        together = self.config.groups_together()
        found: list[tuple[Group, list[Any]]] = []
        for start in range(0, min(num_groups, len(self._last_batch.groups)), together):
            groups = self._last_batch.groups[start : start + together]
            known = [(g, e) for g in groups if (e := episodes_of(g)) is not None]
            found += known if len(known) == len(groups) else []
        if not found:
            return []
        connectors = report_connectors(self.config)
        (states,) = on_learners(
            self.learner_group, lambda learner: learner.connector_states(), only=[0]
        )
        connectors.set_state(states)
        batch = connectors(
            rl_module=None,
            batch={},
            episodes=[episode for _, episodes in found for episode in episodes],
            shared_data={},
            metrics=None,
        )
        rows = batch[DEFAULT_MODULE_ID]
        advantages = rows[Columns.ADVANTAGES]
        returns = rows.get(columns.RETURNS, torch.zeros_like(advantages))
        of_tokens = zip(returns, advantages, strict=True)
        return [
            [
                self._record(SampledResponse.of(episode), numbers, *next(of_tokens))
                for episode, numbers in zip(episodes, group.records, strict=True)
            ]
            for group, episodes in found
        ]

    def _record(
        self,
        sampled: SampledResponse,
        numbers: ResponseNumbers,
        returns: Tensor,
        advantages: Tensor,
    ) -> ResponseRecord:
        """Makes a response's record; returns and advantages are padded."""
        token_ids, size = sampled.response.token_ids, numbers.num_tokens
        return sampled.record(
            numbers,
            response_tokens=self._tokenizer.batch_decode([[int(i)] for i in token_ids]),
            observations=[
                (before, self._tokenizer.decode(ids.tolist()))
                for before, ids in sampled.turns.observations
            ],
            returns=returns[:size].tolist(),
            advantages=advantages[:size].tolist(),
        )

    def export_policy(self, folder: str | Path) -> str:
        """Writes the policy and its tokenizer in Hugging Face layout.

        Args:
            folder: made by this call; must not exist, or be empty.

        Returns:
            The folder, which `AutoModelForCausalLM.from_pretrained` loads.
        """
        tokenizer, target = self._tokenizer, str(folder)
        on_learners(
            self.learner_group,
            lambda learner: learner.export_policy(tokenizer, target),
            longer_s=math.inf,
        )
        return target

    @override(Algorithm)
    def add_module(self, module_id: str, *args: Any, **kwargs: Any) -> Any:
        """Refused, as is `remove_module`.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f'`module_id` ("{module_id}") cannot be added or removed, because there is '
            "one module, the policy. Build another algorithm for another one."
        )

    remove_module = add_module

    @override(Algorithm)
    def cleanup(self) -> None:
        """Gives up the published weights and stops all actors."""
        if self._sync is not None:
            self._sampler.close()
        self._weights = None
        super().cleanup()
        if self._prm_actors is not None:
            self._prm_actors.stop()

    @override(Algorithm)
    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """Writes a checkpoint that is whole or absent, whatever happens meanwhile."""
        if path is None or kwargs.get("state") is not None:
            return str(super().save_to_path(path, **kwargs))
        if checkpoints.is_elsewhere(path, kwargs):
            return self._write_checkpoint(path, **kwargs)
        return checkpoints.write(path, partial(self._write_checkpoint, **kwargs))

    def _write_checkpoint(self, path: Any, **kwargs: Any) -> str:
        # The learners write theirs themselves: the driver never holds it.
        state = self.get_state(not_components=COMPONENT_LEARNER_GROUP)
        folder = super().save_to_path(path, state=state, **kwargs)
        self.learner_group.save_to_path(f"{path}/{COMPONENT_LEARNER_GROUP}", **kwargs)
        return str(folder)

    @override(Algorithm)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Adds what a run counts to RLlib's state."""
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        state[_STATE] = asdict(self._counts)
        state[_SEED] = self.config.seed
        state[_CALLBACKS] = checkpoints.callback_states(self.callbacks)
        return state

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state; env runners get the weights with their next call."""
        super().set_state(state)
        if self._has_drawn_seed and _SEED in state:
            self._go_on_with_seed(state[_SEED])
        if _STATE in state:
            self._counts = RunCounts(**state[_STATE])
        if _STATE in state or COMPONENT_LEARNER_GROUP in state:
            self._weights = None
            self._sampler.drop()
        checkpoints.set_callback_states(self.callbacks, state.get(_CALLBACKS, {}))

    def _go_on_with_seed(self, seed: int) -> None:
        """Takes over the seed of the run that is restored, in place of the drawn one.

        It says which problems come next. A seed that is set is left as it is.
        """
        self.config = self.config.copy(copy_frozen=False).debugging(seed=seed)
        self.config.freeze()
        self._sampler.drop()
        self._sampler.order = self._problem_order()

    @override(Algorithm)
    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Restores a checkpoint; its weights are published when they are needed.

        Raises:
            ValueError: a file of it is absent or damaged.
            Exception: what a learner raised.
        """
        with checkpoints.reading(path, kwargs):
            super().restore_from_path(path, *args, **kwargs)
        # The learners' weights arrive after `set_state`.
        self._weights = None
        self._last_batch = SampledBatch()

    def go_back(self, path: str | Path) -> None:
        """Restores a checkpoint's policy, and asks other problems from there on.

        Iterations, problems and weight versions go on counting, and callbacks keep what
        they remember.

        Args:
            path: of a checkpoint of this run.
        """
        counts, iteration = self._counts, self.iteration
        callbacks = checkpoints.callback_states(self.callbacks)
        self.restore_from_path(str(path))
        self._counts, self._iteration = counts, iteration
        checkpoints.set_callback_states(self.callbacks, callbacks)
        self._counts.weights_version += 1


def _make_by_keywords(env_class: Any, context: Mapping[str, Any]) -> Any:
    return env_class(**context)
