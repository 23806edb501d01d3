"""Weights arrive at every generator, and what did not arrive is found."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pure_rllib.algorithms import PUREConfig
from pure_rllib.generation import transformers_generator
from pure_rllib.models.weights import MAX_SHARD_BYTES, LiveWeights
from pure_rllib.weight_sync.check import StaleWeightsError
from pure_rllib.weight_sync.object_store import (
    PublishedFiles,
    on_learners,
)

pytestmark = pytest.mark.slow

MIB = 2**20
# About 100 million parameters.
LARGE_POLICY = {
    "model_type": "qwen2",
    "vocab_size": 32,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("num_actors", "tied"), [(0, True), (1, False)], ids=["in process", "by files"]
)
def test_weights_arrive_after_each_update(
    tiny_config: PUREConfig, num_actors: int, tied: bool
) -> None:
    model = {**tiny_config.model_config["model"], "tie_word_embeddings": tied}
    algo = (
        tiny_config.env_runners(num_env_runners=num_actors)
        .learners(num_learners=num_actors)
        .rl_module(model_config={"model": model})
        .build_algo()
    )
    for version in range(3):
        result = algo.train()
        assert result["weights"]["version"] == version
        assert 0.0 <= result["generator_learner_logp_gap"] < 1e-4
        algo.evaluate()  # takes over the next weights before the next iteration does
    weights = algo._published()
    if num_actors:
        assert isinstance(weights.source, PublishedFiles)
        root = Path(weights.source.folder).parent
        assert [path.name for path in root.iterdir() if path.is_dir()] == [
            weights.publication
        ]
        assert weights.source.refs == (), "all are on one node"
    else:
        assert isinstance(weights.source, LiveWeights)
    algo.stop()
    if num_actors:
        assert not root.exists(), "nothing is left behind"


@pytest.mark.parametrize("lr", [3.0e-2, 1.0e-6])
def test_weights_that_do_not_arrive_stop_the_run(
    tiny_config: PUREConfig, monkeypatch: pytest.MonkeyPatch, lr: float
) -> None:
    """The fault of an engine that packs tensors when it loads, and not again."""
    algo = tiny_config.training(lr=lr).build_algo()
    algo.train()
    monkeypatch.setattr(transformers_generator, "copy_weights", lambda *_: None)
    with pytest.raises(StaleWeightsError, match=r"weights version \d+ both"):
        for _ in range(8):
            algo.train()
    algo.stop()


def test_damaged_files_stop_the_run(tiny_config: PUREConfig) -> None:
    algo = tiny_config.env_runners(num_env_runners=1).build_algo()
    algo.train()
    source = algo._published().source
    assert isinstance(source, PublishedFiles)
    path = Path(source.folder) / source.files[0].name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="must arrive as they were sent"):
        algo.train()
    algo.stop()


class Memory:
    """Private memory of some processes and the files in a folder, watched."""

    def __init__(self, pids: list[int], folder: Path):
        self._pids, self._folder = pids, folder
        self.level = self.peak = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _now(self) -> int:
        private = 0
        for pid in self._pids:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            # Mapped files are counted once, as files.
            private += next(
                int(line.split()[1]) * 1024 for line in lines if "RssAnon" in line
            )
        files = 0
        for path in self._folder.rglob("*"):
            try:
                files += path.stat().st_size
            except FileNotFoundError:
                continue
        return private + files

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


def test_a_sync_needs_the_weights_and_one_shard(
    tiny_config: PUREConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    algo = (
        tiny_config.env_runners(num_env_runners=1, num_prompts=1, group_size=2)
        .learners(num_learners=1)
        .rl_module(model_config={"model": LARGE_POLICY})
        .build_algo()
    )
    algo.env_runner_group.foreach_env_runner(
        lambda runner: runner.generator, local_env_runner=False
    )
    # Both have been through it once: libraries are loaded and buffers made.
    for _ in range(2):
        weights = _sync(algo)
    folder = Path(weights.source.folder).parent
    (runner_pid,) = algo.env_runner_group.foreach_env_runner(
        _pid, local_env_runner=False
    )
    (learner_pid,) = on_learners(algo.learner_group, _pid)
    num_bytes = sum(file.num_bytes for file in weights.source.files)
    assert num_bytes > 390e6
    with Memory([runner_pid, learner_pid], folder) as memory:
        _sync(algo)
    growth = memory.peak - memory.level
    print(f"weights {num_bytes / MIB:.0f} MiB, peak +{growth / MIB:.0f} MiB")
    assert growth > 0.9 * num_bytes, "the new version is written beside the old one"
    assert growth <= num_bytes + MAX_SHARD_BYTES + 16 * MIB
    algo.stop()


def _pid(_: Any) -> int:
    import os

    return os.getpid()


def _sync(algo: Any) -> Any:
    algo._weights = None
    weights = algo._published()
    algo.env_runner_group.foreach_env_runner(
        lambda runner: runner._take_over(weights), local_env_runner=False
    )
    return weights
