"""Settings of RLlib's that act: what each of them changes."""

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics.stats import MeanStats

from pure_rllib.algorithms import PUREConfig
from pure_rllib.envs.arithmetic import ArithmeticEnv
from pure_rllib.models.llm_rl_module import LLMRLModule
from pure_rllib.models.loading import resolve_model
from pure_rllib.rollouts.env_runner import LLMEnvRunner
from tests.integration.conftest import (
    TINY_POLICY,
    built,
    process_of,
    weights,
)

pytestmark = pytest.mark.slow

Change = Callable[[PUREConfig], Any]


def small(config: PUREConfig) -> PUREConfig:
    """Two updates on two small groups."""
    config.env_runners(num_prompts=2, max_response_tokens=12)
    return config.training(minibatch_size=4, lr=1e-2)


def trained(config: PUREConfig) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights after one iteration, and its result."""
    with built(config) as algo:
        result = algo.train()
        return weights(algo), result


def are_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_an_environment_given_as_a_class_trains(tiny_config: PUREConfig) -> None:
    class InRLlibsForm(ArithmeticEnv):
        def __init__(self, config: dict[str, Any]):
            super().__init__(**config)

    by_id, _ = trained(small(tiny_config))
    for env in (ArithmeticEnv, InRLlibsForm):
        by_class, _ = trained(small(tiny_config.copy()).environment(env))
        assert are_equal(by_id, by_class)


def test_what_acts_on_updates_changes_them(tiny_config: PUREConfig) -> None:
    base = small(tiny_config).training(credit_assignment="sum")
    before, _ = trained(base.copy())
    changes: list[Change] = [
        lambda c: c.training(gamma=0.5),
        lambda c: c.training(lr=1e-3),
        lambda c: c.training(lr=[[0, 1e-3], [1000, 0.0]]),
        lambda c: c.training(grad_clip=1e-3),
        lambda c: c.training(num_epochs=2),
        lambda c: c.training(minibatch_size=8),
        lambda c: c.debugging(seed=4),
    ]
    for change in changes:
        config = base.copy()
        change(config)
        after, _ = trained(config)
        assert not are_equal(before, after)
    assert are_equal(before, trained(base)[0])


def test_a_run_without_a_seed_draws_one_and_goes_on_with_it(
    tiny_config: PUREConfig, tmp_path: Path
) -> None:
    config = small(tiny_config).debugging(seed=None)
    with built(config.copy()) as algo:
        first = algo.train()
        seed = first["config"]["seed"]
        assert seed == algo.config.seed is not None
        path = algo.save_to_path(tmp_path / "checkpoint")
        algo.train()
        expected = weights(algo)
    with built(config.copy()) as algo:
        assert algo.config.seed != seed, "two trials differ"
        algo.restore_from_path(path)
        assert algo.train()["config"]["seed"] == seed
        assert are_equal(weights(algo), expected)
    # A seed that is set stays, whatever is restored.
    with built(config.debugging(seed=7)) as algo:
        algo.restore_from_path(path)
        assert algo.config.seed == 7


def test_evaluation_has_settings_of_its_own(tiny_config: PUREConfig) -> None:
    config = small(tiny_config).environment(env_config={"num_eval_problems": 6})
    config.evaluation(
        evaluation_interval=2, evaluation_duration=4, num_samples_per_problem=2
    )
    own = PUREConfig.overrides(temperature=1e-4, max_response_tokens=20)
    before, _ = trained(config.copy())
    config.evaluation(evaluation_config=own)
    with built(config) as algo:
        assert "evaluation" not in algo.train()
        assert are_equal(weights(algo), before), "training samples as before"
        assert "greedy_accuracy" in algo.train()["evaluation"]
        tickets = algo._sampler.order.take(0, 4)
        sample = algo.env_runner.sample(
            tickets=tickets, weights=algo._published(), evaluation=True
        )
        greedy = algo.env_runner.sample(
            tickets=tickets, weights=algo._published(), evaluation=True, temperature=0.0
        )
        for some, one in zip(sample.groups, greedy.groups, strict=True):
            sizes = {record.num_tokens for record in some.records}
            assert sizes == {one.records[0].num_tokens}, "almost greedy"
        lengths = [r.num_tokens for group in sample.groups for r in group.records]
        assert 12 < max(lengths) <= 20


def test_a_model_in_the_modules_spec_is_everyones(tiny_config: PUREConfig) -> None:
    expected, _ = trained(small(tiny_config.copy()))
    config = small(tiny_config).rl_module(
        model_config={},
        rl_module_spec=RLModuleSpec(
            module_class=LLMRLModule, model_config={"model": TINY_POLICY}
        ),
    )
    assert are_equal(trained(config.copy())[0], expected)
    config.env_runners(max_response_tokens=1000)
    with pytest.raises(ValueError, match=r"model's context \(256\)"):
        config.build_algo()


def test_a_spec_without_a_model_means_the_environments(
    tiny_config: PUREConfig,
) -> None:
    config = small(tiny_config).rl_module(
        model_config={}, rl_module_spec=RLModuleSpec(module_class=LLMRLModule)
    )
    with built(config) as algo:
        policy = algo.get_module().policy
    assert policy.name_or_path == resolve_model("embedded:arithmetic-policy")


def test_what_is_reported(tiny_config: PUREConfig) -> None:
    class MyMean(MeanStats):
        stats_cls_identifier = "my_mean"

    config = small(tiny_config)
    _, plain = trained(config.copy().debugging(log_sys_usage=False))
    assert "perf" not in plain
    config.reporting(
        log_gradients=True,
        custom_stats_cls_lookup={**config.stats_cls_lookup, "my_mean": MyMean},
    )
    config.debugging(log_level="ERROR", log_sys_usage=True)
    with built(config) as algo:
        result = algo.train()
        algo.metrics.log_value("mine", 2.0, reduce="my_mean")
        assert algo.metrics.peek("mine") == 2.0
        assert logging.getLogger("ray.rllib").level == logging.ERROR
    learned = result["learners"]["default_policy"]
    assert learned["gradients_default_optimizer_global_norm"] > 0.0
    assert result["perf"]["ram_util_percent"] > 0.0


class Unhealthy(LLMEnvRunner):
    def assert_healthy(self) -> None:
        raise RuntimeError("not healthy")


def test_env_runners_are_made_watched_and_restarted(tiny_config: PUREConfig) -> None:
    config = small(tiny_config).env_runners(
        num_env_runners=1, create_local_env_runner=False
    )
    config.fault_tolerance(
        max_num_env_runner_restarts=3, env_runner_health_probe_timeout_s=0.5
    )
    with built(config.copy()) as algo:
        group = algo.env_runner_group
        assert group.local_env_runner is None
        assert group._remote_args["max_restarts"] == 3
        algo.train()
        pid = process_of(algo, 1)
        os.kill(pid, signal.SIGSTOP)
        group._worker_manager.set_actor_state(1, healthy=False)
        start = time.monotonic()
        assert group.probe_unhealthy_env_runners() == []
        assert time.monotonic() - start < 10.0
        os.kill(pid, signal.SIGKILL)
        algo.train()
    config.env_runners(env_runner_cls=Unhealthy)
    config.fault_tolerance(restart_failed_env_runners=False)
    with pytest.raises(Exception, match=r"not healthy|unavailable|died"):
        config.build_algo()
    config.env_runners(validate_env_runners_after_construction=False)
    with built(config) as algo:
        assert algo.env_runner_group._remote_args["max_restarts"] == 0


def test_learners_without_cpus_train(tiny_config: PUREConfig) -> None:
    config = small(tiny_config)
    # Not with the driver's, which has more threads: sums round differently.
    expected, _ = trained(config.copy().learners(num_learners=1))
    config.learners(num_learners=1, num_cpus_per_learner=0)
    assert are_equal(trained(config.copy())[0], expected)
    # A trial of Tune asks for their places itself, which cannot be empty either.
    request = config.algo_class.default_resource_request(config)
    assert all(request.bundles)


@pytest.mark.parametrize(("first", "then"), [("float32", "bfloat16"), (None, None)])
def test_a_checkpoint_goes_on_in_another_dtype(
    tiny_config: PUREConfig, tmp_path: Path, first: str | None, then: str | None
) -> None:
    first, then = first or "bfloat16", then or "float32"
    config = small(tiny_config)

    def in_dtype(dtype: str) -> PUREConfig:
        return config.copy().rl_module(
            model_config={"model": TINY_POLICY, "dtype": dtype}
        )

    def masters(algo: Any) -> list[np.ndarray]:
        learner = algo.learner_group._learner
        return [tensor.detach().numpy().copy() for tensor in learner._masters.tensors]

    with built(in_dtype(first)) as algo:
        algo.train()
        saved = masters(algo)
        path = algo.save_to_path(tmp_path / "checkpoint")
    with built(in_dtype(then)) as algo:
        algo.restore_from_path(path)
        for own, of_checkpoint in zip(masters(algo), saved, strict=True):
            np.testing.assert_array_equal(own, of_checkpoint)
        result = algo.train()
        assert result["training_iteration"] == 2
        back = algo.save_to_path(tmp_path / "back")
        saved = masters(algo)
    with built(in_dtype(first)) as algo:
        algo.restore_from_path(back)
        for own, of_checkpoint in zip(masters(algo), saved, strict=True):
            np.testing.assert_array_equal(own, of_checkpoint)


def test_a_wrapper_that_would_be_passed_by_is_refused(tiny_config: PUREConfig) -> None:
    from ray import tune

    class Negate(gym.RewardWrapper):
        def reward(self, reward: Any) -> Any:
            return -reward

    tune.register_env("negated", lambda config: Negate(ArithmeticEnv(**config)))
    with pytest.raises(ValueError, match=r"without `Negate`'s .*`reward`.*step scorer"):
        small(tiny_config).environment("negated").build_algo()
