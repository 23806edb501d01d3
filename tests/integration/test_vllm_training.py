"""PURE with vLLM as its generator, in this process and in an env runner's."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pure_rllib.algorithms import PUREConfig
from pure_rllib.rollouts.group import SampledResponse
from pure_rllib.rollouts.sampler import episodes_of
from pure_rllib.testing import tiny_model_config
from tests.integration.conftest import NEEDS_VLLM, built, flat

pytestmark = [pytest.mark.slow, NEEDS_VLLM]

# Like `conftest.TINY_POLICY`, with a head that vLLM's attention has on CPUs.
POLICY = tiny_model_config(32, num_attention_heads=1, num_key_value_heads=1)
MEASURED = (
    "reward/total",
    "response/tokens",
    "loss/policy",
    "gradient_norm",
    "ratio/first_minibatch_max_deviation",
)


def train(config: PUREConfig, folder: Path) -> tuple[list[dict[str, Any]], Any]:
    with built(config) as algo:
        results = [flat(algo.train()) for _ in range(2)]
        policy = AutoModelForCausalLM.from_pretrained(algo.export_policy(folder))
    return results, policy


def test_training_is_the_same_in_a_process_and_in_an_env_runner(
    tiny_config: PUREConfig, tmp_path: Path
) -> None:
    tiny_config.rl_module(model_config={"model": POLICY})
    tiny_config.env_runners(generator="vllm", generator_kwargs={"enforce_eager": True})
    local, policy = train(tiny_config, tmp_path / "local")
    remote_config = tiny_config.copy(copy_frozen=False).env_runners(num_env_runners=1)
    remote, remote_policy = train(remote_config, tmp_path / "remote")
    for here, there in zip(local, remote, strict=True):
        for result in (here, there):
            assert result["generator_learner_logp_gap"] <= 1e-4
            assert result["ratio/first_minibatch_max_deviation"] <= 1e-4
        for name in MEASURED:
            assert here[name] == pytest.approx(there[name], abs=1e-5), name
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(tensor, remote_policy.state_dict()[name])


def test_an_engine_sleeps_while_the_learner_updates(tiny_config: PUREConfig) -> None:
    tiny_config.rl_module(model_config={"model": POLICY})
    tiny_config.env_runners(generator="vllm", generator_kwargs={"enforce_eager": True})
    tiny_config.env_runners(colocate=True)
    with built(tiny_config) as algo:
        engine, learner = algo.env_runner.generator._llm, algo.learner_group._learner
        asleep: list[bool] = []
        update = learner.update

        def note_and_update(**kwargs: Any) -> Any:
            asleep.append(engine.llm_engine.is_sleeping())
            return update(**kwargs)

        learner.update = note_and_update
        for _ in range(2):
            result = flat(algo.train())
            # The check that weights arrived comes when the next responses are sampled.
            assert result["generator_learner_logp_gap"] <= 1e-4
            assert result["ratio/first_minibatch_max_deviation"] <= 1e-4
            assert engine.llm_engine.is_sleeping()
        algo.evaluate()
        assert not engine.llm_engine.is_sleeping()
        assert algo.env_runner.generator.weights_version == 2
        # An evaluation with the same weights after the engine has slept once more.
        algo.env_runner.sleep()
        algo.evaluate()
        assert asleep == [True, True]


def test_weights_change_while_responses_are_under_way(
    tiny_config: PUREConfig, tmp_path: Path
) -> None:
    config = tiny_config.rl_module(model_config={"model": POLICY})
    config.env_runners(
        num_env_runners=1,
        generator="vllm",
        generator_kwargs={"enforce_eager": True},
        weight_update="in_flight",
    ).training(max_weight_lag=2)
    asked: list[str] = []

    def train_on(algo: Any) -> float:
        lag = flat(algo.train())["weights/lag_max"]
        asked.extend(g.records[0].metadata["problem_id"] for g in batch(algo))
        for response in (SampledResponse.of(e) for g in batch(algo) for e in of(g)):
            versions = response.response.versions
            assert versions is not None
            assert (np.diff(versions) >= 0).all()
            assert len(versions) == len(response.response.logps)
            assert versions[0] == response.weights_version
        return float(lag)

    with built(config) as algo:
        lags = [train_on(algo) for _ in range(4)]
        path = algo.save_to_path(tmp_path / "checkpoint")
        train_on(algo)
        algo.restore_from_path(path)
        del asked[-config.num_prompts :]
        # All that was under way or finished is asked again.
        train_on(algo)
        train_on(algo)
    assert lags[0] == 0.0
    assert max(lags) <= 2.0
    epochs = [Counter(asked[i : i + 6]) for i in range(0, len(asked) - 5, 6)]
    assert all(epoch == Counter(set(asked)) for epoch in epochs)


def batch(algo: Any) -> Any:
    return algo._last_batch.groups


def of(group: Any) -> Any:
    return episodes_of(group) or []


def test_turns_are_scored_by_the_learner_as_the_engine_sampled_them(
    ray_cluster: None,
) -> None:
    policy = tiny_model_config(13, num_attention_heads=1, num_key_value_heads=1)
    config = (
        PUREConfig()
        .environment("pure_rllib/GuessNumber-v0", env_config={"num_tasks": 50})
        .env_runners(
            num_prompts=4,
            group_size=4,
            generator="vllm",
            generator_kwargs={"enforce_eager": True},
        )
        .rl_module(model_config={"model": policy})
        .training(mask_separators=False, baseline="response", lr=1.0e-2)
        .debugging(seed=3)
    )
    with built(config) as algo:
        results = [flat(algo.train()) for _ in range(2)]
    for result in results:
        assert 1.0 < result["turns/mean"] <= 3.0
        # Were a token of the environment missing, all behind it would differ.
        assert result["ratio/first_minibatch_max_deviation"] <= 1e-4
        assert result["generator_learner_logp_gap"] <= 1e-4
