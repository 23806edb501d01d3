"""Weights arrive at every generator, and what did not arrive is found."""

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.internal_api import node_stats

from pure_rllib.algorithms import PURE, PUREConfig
from pure_rllib.distributed.calls import on_learners
from pure_rllib.generation import transformers_generator
from pure_rllib.models.export import MAX_SHARD_BYTES
from pure_rllib.testing import tiny_model_config
from pure_rllib.weight_sync.check import StaleWeightsError
from pure_rllib.weight_sync.object_store import LiveWeights, StoredWeights
from tests.integration.conftest import built, start_ray

pytestmark = pytest.mark.slow

MIB = 2**20
# About 100 million parameters.
LARGE_POLICY = tiny_model_config(
    32,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    initializer_range=0.02,
)


def bytes_stored() -> int:
    """Bytes of all objects in the object store of this node."""
    (node,) = ray.nodes()
    stats = node_stats(
        node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
    )
    return int(stats.store_stats.object_store_bytes_used)


def until_given_up(before: int) -> None:
    """Waits until Ray has freed what nobody refers to any more."""
    gc.collect()
    deadline = time.monotonic() + 30.0
    while bytes_stored() > before:
        assert time.monotonic() < deadline, "weights stayed in the object store"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("num_learners", "num_env_runners", "tied", "source"),
    [
        (0, 0, True, LiveWeights),
        (0, 1, True, StoredWeights),
        (1, 0, False, StoredWeights),
        (1, 1, False, StoredWeights),
    ],
)
def test_weights_arrive_after_each_update(
    tiny_config: PUREConfig,
    num_learners: int,
    num_env_runners: int,
    tied: bool,
    source: type,
) -> None:
    before = bytes_stored()
    model = {**tiny_config.model_config["model"], "tie_word_embeddings": tied}
    config = (
        tiny_config.env_runners(num_env_runners=num_env_runners)
        .learners(num_learners=num_learners)
        .rl_module(model_config={"model": model, "dtype": "bfloat16"})
    )
    with built(config) as algo:
        for version in range(3):
            result = algo.train()
            assert result["weights"]["version"] == version
            assert 0.0 <= result["generator_learner_logp_gap"] < 0.05
            algo.evaluate()  # takes over the next weights before the next iteration
        assert isinstance(algo._published().source, source)
    del algo
    until_given_up(before)


def test_too_small_an_object_store_is_said_at_the_start(
    tiny_config: PUREConfig,
) -> None:
    tiny_config.env_runners(num_env_runners=1, num_cpus_per_env_runner=0.5)
    tiny_config.rl_module(model_config={"model": LARGE_POLICY})
    ray.shutdown()
    ray.init("local", num_cpus=2, object_store_memory=100 * MIB, log_to_driver=False)
    message = r"`object_store_memory` \(104857600\) .*must be >= (\d+) .*memory=\1"
    try:
        with pytest.raises(ValueError, match=message) as error:
            tiny_config.build_algo()
    finally:
        ray.shutdown()
        start_ray()
    needed = int(str(error.value).split(">= ")[1].split()[0])
    assert 390e6 + MAX_SHARD_BYTES < needed < 450e6 + MAX_SHARD_BYTES


@pytest.mark.parametrize("lr", [3.0e-2, 1.0e-6])
def test_weights_that_do_not_arrive_stop_the_run(
    tiny_config: PUREConfig, monkeypatch: pytest.MonkeyPatch, lr: float
) -> None:
    """The fault of an engine that packs tensors when it loads, and not again."""
    with built(tiny_config.training(lr=lr)) as algo:
        algo.train()
        monkeypatch.setattr(transformers_generator, "copy_weights", lambda *_: None)
        with pytest.raises(StaleWeightsError, match=r"weights version \d+ both"):
            for _ in range(8):
                algo.train()


class Memory:
    """Private memory of some processes and the object store, watched."""

    def __init__(self, pids: list[int]):
        self._pids = pids
        self.level = self.peak = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _now(self) -> int:
        private = 0
        for pid in self._pids:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            # The object store is counted once, as a whole.
            private += next(
                int(line.split()[1]) * 1024 for line in lines if "RssAnon" in line
            )
        return private + bytes_stored()

    def _watch(self) -> None:
        while not self._done.is_set():
            self.peak = max(self.peak, self._now())
            time.sleep(0.002)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def test_a_sync_needs_the_weights_and_one_shard(tiny_config: PUREConfig) -> None:
    config = (
        tiny_config.env_runners(num_env_runners=1, num_prompts=1, group_size=2)
        .learners(num_learners=1)
        .rl_module(model_config={"model": LARGE_POLICY})
    )
    with built(config) as algo:
        # Both have been through it twice: libraries are loaded and buffers made.
        for _ in range(2):
            source = sync(algo)
        assert source.num_bytes > 390e6
        (runner_pid,) = algo.env_runner_group.foreach_env_runner(
            pid, local_env_runner=False
        )
        (learner_pid,) = on_learners(algo.learner_group, pid)
        with Memory([runner_pid, learner_pid]) as memory:
            sync(algo)
        growth = memory.peak - memory.level
        print(f"weights {source.num_bytes / MIB:.0f} MiB, peak +{growth / MIB:.0f} MiB")
        assert memory.level > 0.9 * source.num_bytes, "what is measured counts them"
        assert growth <= source.num_bytes + MAX_SHARD_BYTES + 16 * MIB


def pid(_: Any) -> int:
    return os.getpid()


def sync(algo: PURE) -> StoredWeights:
    algo._weights = None
    weights = algo._published()
    algo.env_runner_group.foreach_env_runner(
        lambda runner: runner.receiver.take_over(weights), local_env_runner=False
    )
    assert isinstance(weights.source, StoredWeights)
    return weights.source
