"""Weights sent from the first learner into vLLM's engines: by gloo, and by NCCL."""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from pure_rllib.algorithms import PURE, PUREConfig
from pure_rllib.distributed.calls import LearnerLostError, on_learners
from pure_rllib.distributed.collectives import CollectiveBrokenError
from pure_rllib.testing import tiny_model_config
from pure_rllib.weight_sync.handle import ReceivedWeights
from pure_rllib.weight_sync.nccl import (
    ShardSource,
    Transfer,
    WeightSender,
    WeightTransferError,
    open_trainer,
)
from tests.integration import gloo
from tests.integration.conftest import (
    NEEDS_VLLM,
    built,
    env_runner,
    flat,
    process_of,
)

pytestmark = [pytest.mark.slow, NEEDS_VLLM]


# These cannot be imported where learners and env runners run.
ray.cloudpickle.register_pickle_by_value(gloo)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def sending(config: PUREConfig, **model: Any) -> PUREConfig:
    """Of learners that send weights to vLLM's engines."""
    policy = tiny_model_config(32, num_attention_heads=1, num_key_value_heads=1)
    return (
        config.rl_module(model_config={"model": {**policy, **model}})
        .env_runners(
            generator="vllm",
            generator_kwargs={"enforce_eager": True},
            num_env_runners=2,
            num_cpus_per_env_runner=0.5,
        )
        .learners(num_learners=1, num_cpus_per_learner=0.5)
    )


def by_gloo(config: PUREConfig, **model: Any) -> PUREConfig:
    """The same, on CPUs."""
    config = sending(config, **model)
    return gloo.GlooConfig.from_state(config.get_state() | {"class": gloo.GlooConfig})


def received_by(algo: PURE) -> list[ReceivedWeights]:
    ids = algo.env_runner_group.healthy_env_runner_ids()
    calls = [
        env_runner(algo, i).__ray_call__.remote(lambda r: r.receiver.received())
        for i in ids
    ]
    received: list[ReceivedWeights] = ray.get(calls)
    return received


def die_when_weights_come(runner: Any) -> None:
    runner.generator.receive_weights = lambda *_: os._exit(1)


def die_when_sampling(runner: Any) -> None:
    runner.sample = lambda **_: os._exit(1)


def die_when_gathering(learner: Any) -> None:
    learner.weight_shards = lambda **_: os._exit(1)


def count_gathers(learner: Any) -> None:
    shards, learner.num_gathers = learner.weight_shards, 0

    def counted(**kwargs: Any) -> Any:
        learner.num_gathers += 1
        return shards(**kwargs)

    learner.weight_shards = counted


def test_an_env_runner_is_lost_between_batches_and_within_a_transfer(
    tiny_config: PUREConfig, tmp_path: Path
) -> None:
    with built(by_gloo(tiny_config)) as algo:
        results = [flat(algo.train())]
        on_learners(algo.learner_group, count_gathers)
        first = received_by(algo)
        assert algo._published().source is None
        path = algo.save_to_path(tmp_path / "checkpoint")
        results.append(flat(algo.train()))
        # The same engines stay together.
        assert {one.group for one in received_by(algo)} == {first[0].group}
        os.kill(process_of(algo, 1), signal.SIGKILL)
        results.append(flat(algo.train()))
        algo.restore_from_path(path)
        results.append(flat(algo.train()))
        last = received_by(algo)
        assert {one.group for one in last} == {last[0].group}
        assert last[0].group not in (None, first[0].group)
        assert {one.sync_id for one in last} != {first[0].sync_id}
        # Names and shapes were known: once for each version, whatever the engines.
        gathers = on_learners(algo.learner_group, lambda learner: learner.num_gathers)
        assert gathers == [3]
        ray.get(env_runner(algo, 2).__ray_call__.remote(die_when_weights_come))
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
    config = by_gloo(tiny_config, tie_word_embeddings=False)
    config.env_runners(num_env_runners=1).training(max_weight_lag=1)
    config.learners(num_learners=2, deepspeed={"stage": 3})
    with built(config) as algo:
        results = [flat(algo.train()) for _ in range(3)]
        algo.evaluate()
        held = {one.sync_id for one in received_by(algo)}
        assert held == {algo._published().sync_id}
        # After the batch that is under way.
        ray.get(env_runner(algo, 1).__ray_call__.remote(die_when_sampling))
        results += [flat(algo.train()) for _ in range(2)]
        on_learners(algo.learner_group, die_when_gathering, only=[1])
        with pytest.raises(LearnerLostError, match=r"Learner 1 \(of 0 to 1\) died"):
            algo.train()
    # The last batch was lost, and sampled again with the newest weights.
    versions = [result["weights/version"] for result in results]
    assert versions == [0.0, 0.0, 1.0, 2.0, 4.0]
    lags = [result["weights/lag_max"] for result in results]
    assert lags == [0.0, 1.0, 1.0, 1.0, 0.0]
    for result in results:
        assert 0.0 <= result["generator_learner_logp_gap"] <= 1e-4


@dataclass
class Client:
    """Has an engine of this process take part in transfers."""

    generator: Any
    version: int = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.generator.join_transfer(init_info)

    def start_weight_update(self) -> None:
        self.version += 1

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.generator.receive_weights(self.version, update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass


def open_gloo(client: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    return open_trainer(
        gloo.GlooBackend(),
        host="127.0.0.1",
        num_workers=1,
        client=client,
        source=ShardSource(lambda: iter([dict(tensors)])),
        timeout_s=60.0,
    )


class Joiner:
    """An env runner that joins, and dies when it is asked once more."""

    def __init__(self) -> None:
        self.receiver = self

    def join_transfer(self, group: str, init_info: dict[str, Any]) -> None:
        if group == "another":
            os._exit(1)
        self._end = gloo.GlooGroup(
            init_info["master_address"],
            init_info["master_port"],
            init_info["rank_offset"],
            init_info["world_size"],
            timeout_s=20.0,
        )


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_learner_lacks_is_no_env_runners_fault() -> None:
    def send(group: str, error: Exception) -> None:
        def shards(**_: Any) -> Iterator[dict[str, torch.Tensor]]:
            raise error

        learner.weight_shards = shards
        backend = gloo.GlooBackend()
        sender.send(learner, Transfer(backend, group, joiners, 1, 0, "any", 20.0))

    learner, sender = SimpleNamespace(_device=torch.device("cpu")), WeightSender()
    joiners = (ray.remote(Joiner).remote(),)
    for error in (torch.OutOfMemoryError("no room"), CollectiveBrokenError("gone")):
        with pytest.raises(type(error), match=str(error)):
            send("one", error)
    with pytest.raises(WeightTransferError, match=r"Reason: of it$"):
        send("one", RuntimeError("\nthe last\nof it\n"))
    start = monotonic()
    with pytest.raises(WeightTransferError, match=r"Reason: The actor is dead"):
        send("another", RuntimeError("not reached"))
    assert monotonic() - start < 10.0, "an env runner that dies while it joins"


@pytest.mark.gpu
@pytest.mark.skipif(
    torch.cuda.device_count() < 3,
    reason="three GPUs are needed, of a learner and two engines: not run",
)
def test_between_gpus(tiny_config: PUREConfig) -> None:
    config = sending(tiny_config).env_runners(num_gpus_per_env_runner=1)
    config.learners(num_gpus_per_learner=1, weight_transport="auto")
    config.rl_module(model_config={**config.model_config, "dtype": "bfloat16"})
    with built(config) as algo:
        results = [flat(algo.train()) for _ in range(3)]
        assert algo._published().source is None
    for result in results:
        assert 0.0 <= result["generator_learner_logp_gap"] <= 0.2
