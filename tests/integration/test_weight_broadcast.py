"""Weights sent from the first learner into vLLM's engines: by gloo, and by NCCL."""

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from pure_rllib.algorithms import PURE, PUREConfig
from pure_rllib.algorithms.pure.weight_broadcast import (
    BroadcastWeights,
    HeldWeights,
    WeightTransferError,
)
from pure_rllib.testing import tiny_model_config
from tests.integration.test_hung_env_runner import process_of
from tests.integration.test_pure import built, flat

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed: not run (make engines)",
    ),
]


def broadcasting(config: PUREConfig, **model: Any) -> PUREConfig:
    policy = tiny_model_config(32, num_attention_heads=1, num_key_value_heads=1)
    return (
        config.rl_module(model_config={"model": {**policy, **model}})
        .env_runners(
            generator="vllm",
            generator_kwargs={"enforce_eager": True},
            num_env_runners=2,
            num_cpus_per_env_runner=0.5,
        )
        .learners(
            num_learners=1, num_cpus_per_learner=0.5, weight_transport="broadcast"
        )
    )


def held_by(algo: PURE) -> list[HeldWeights]:
    ids = algo.env_runner_group.healthy_env_runner_ids()
    actors = algo.env_runner_group._worker_manager.actors()
    held: list[HeldWeights] = ray.get([actors[i].held_weights.remote() for i in ids])
    return held


def die_when_weights_come(runner: Any) -> None:
    runner.generator.receive_weights = lambda *_: os._exit(1)


def test_an_env_runner_is_lost_between_batches_and_within_a_transfer(
    tiny_config: PUREConfig, tmp_path: Path
) -> None:
    with built(broadcasting(tiny_config)) as algo:
        results = [flat(algo.train())]
        first = held_by(algo)
        assert isinstance(algo._published().source, BroadcastWeights)
        path = algo.save_to_path(tmp_path / "checkpoint")
        results.append(flat(algo.train()))
        # The same engines stay together.
        assert {one.group for one in held_by(algo)} == {first[0].group}
        os.kill(process_of(algo, 1), signal.SIGKILL)
        results.append(flat(algo.train()))
        algo.restore_from_path(path)
        results.append(flat(algo.train()))
        last = held_by(algo)
        assert {one.group for one in last} == {last[0].group}
        assert last[0].group not in (None, first[0].group)
        assert {one.publication for one in last} != {first[0].publication}
        actor = algo.env_runner_group._worker_manager.actors()[2]
        ray.get(actor.__ray_call__.remote(die_when_weights_come))
        with pytest.raises(WeightTransferError, match=r"weights of version 2 must"):
            algo.train()
    assert [result["weights/version"] for result in results] == [0.0, 1.0, 2.0, 1.0]
    for result in results:
        assert 0.0 <= result["generator_learner_logp_gap"] <= 1e-4
        assert result["ratio/first_minibatch_max_deviation"] <= 1e-4


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: not run (make engines)",
)
def test_learners_gather_what_the_first_one_sends(tiny_config: PUREConfig) -> None:
    config = broadcasting(tiny_config, tie_word_embeddings=False)
    config.env_runners(num_env_runners=1).training(max_weight_lag=1)
    config.learners(num_learners=2, deepspeed={"stage": 3})
    with built(config) as algo:
        results = [flat(algo.train()) for _ in range(3)]
        algo.evaluate()
        held = {one.publication for one in held_by(algo)}
        assert held == {algo._published().publication}
    assert [result["weights/version"] for result in results] == [0.0, 0.0, 1.0]
    assert [result["weights/lag_max"] for result in results] == [0.0, 1.0, 1.0]
    for result in results:
        assert 0.0 <= result["generator_learner_logp_gap"] <= 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(
    torch.cuda.device_count() < 3,
    reason="three GPUs are needed, of a learner and two engines: not run",
)
def test_between_gpus(tiny_config: PUREConfig) -> None:
    config = broadcasting(tiny_config).env_runners(num_gpus_per_env_runner=1)
    config.learners(num_gpus_per_learner=1, weight_transport="auto")
    config.rl_module(model_config={**config.model_config, "dtype": "bfloat16"})
    with built(config) as algo:
        results = [flat(algo.train()) for _ in range(3)]
        assert isinstance(algo._published().source, BroadcastWeights)
    for result in results:
        assert 0.0 <= result["generator_learner_logp_gap"] <= 0.2
