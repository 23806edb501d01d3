"""Ray, started once for all integration tests."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.rllib.core import DEFAULT_MODULE_ID

from pure_rllib.algorithms import PURE, PUREConfig
from pure_rllib.cli.main import main
from pure_rllib.testing import tiny_model_config

TrainHere = Callable[..., tuple[int, str, str]]

TINY_EXPERIMENT = """
tiny:
  run: PURE
  stop: {training_iteration: 2}
  config:
    environment:
      env: pure_rllib/Arithmetic-v0
      env_config:
        {process_rewards: exact, max_response_tokens: 16, num_eval_problems: 4}
    env_runners: {num_prompts: 2, group_size: 4}
    training: {lr: 1e-3}
    rl_module:
      model_config:
        model:
          {model_type: qwen2, vocab_size: 32, hidden_size: 16, intermediate_size: 16,
           num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1,
           max_position_embeddings: 128, tie_word_embeddings: true}
    evaluation: {evaluation_interval: 2}
    debugging: {seed: 0}
"""
TINY_POLICY = tiny_model_config(32, max_position_embeddings=256, initializer_range=0.02)
NUM_CPUS = 4
NEEDS_VLLM = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed: not run (make engines)",
)


@contextmanager
def stopping(algo: Any) -> Iterator[Any]:
    """Stops an algorithm at the end, whatever happens."""
    try:
        yield algo
    finally:
        algo.stop()


def built(config: PUREConfig) -> AbstractContextManager[PURE]:
    return stopping(config.build_algo())


def flat(result: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in result.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{name}/")
        else:
            values[prefix + name] = value
    return values


def weights(algo: PURE) -> dict[str, np.ndarray]:
    state = algo.learner_group.get_weights()[DEFAULT_MODULE_ID]
    return {name: np.array(array) for name, array in state.items()}


def python_blocks(page: str) -> list[str]:
    """The Python code of a page of docs/."""
    text = (Path(__file__).resolve().parents[2] / "docs" / page).read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


def run_python(code: str, folder: Path) -> str:
    """Runs code in a process and a folder of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def env_runner(algo: PURE, index: int) -> Any:
    return algo.env_runner_group._worker_manager.actors()[index]


def process_of(algo: PURE, index: int) -> int:
    """The process id of an env runner."""
    call = env_runner(algo, index).__ray_call__.remote(lambda _: os.getpid())
    pid: int = ray.get(call, timeout=60.0)
    return pid


def start_ray() -> None:
    ray.init(
        "local",  # never another cluster that happens to run on this machine
        num_cpus=NUM_CPUS,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
    )


@pytest.fixture(scope="session")
def ray_ended() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def ray_cluster(ray_ended: None) -> None:
    # A command that ran in this process may have ended the cluster, and what came next
    # have started one with as many CPUs as the machine has.
    if not ray.is_initialized() or ray.cluster_resources().get("CPU") != NUM_CPUS:
        ray.shutdown()
        start_ray()


@pytest.fixture(scope="module")
def no_ray() -> Iterator[None]:
    """Makes room for a cluster of a module's own, between the session's tests."""
    was_there = ray.is_initialized()
    ray.shutdown()
    yield
    ray.shutdown()
    if was_there:
        start_ray()


@pytest.fixture
def train_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_ray: None
) -> TrainHere:
    """`pure-rllib train` in this process, which has imported everything already."""

    def train(folder: Path, *words: str) -> tuple[int, str, str]:
        """Returns exit status, output and errors."""
        monkeypatch.chdir(folder)
        status = main(["train", *words])
        return status, *capsys.readouterr()

    return train


def make_tiny_config() -> PUREConfig:
    """Real parts throughout: a small random policy, the exact scorer, Math-Verify."""
    return (
        PUREConfig()
        .environment(
            "pure_rllib/Arithmetic-v0",
            env_config={"process_rewards": "exact", "num_problems": 6},
        )
        .env_runners(num_prompts=4, group_size=4, max_response_tokens=24)
        .rl_module(model_config={"model": TINY_POLICY})
        .training(lr=1.0e-3)
        .evaluation(evaluation_duration=10, num_samples_per_problem=2)
        .debugging(seed=3)
    )


@pytest.fixture
def tiny_config(ray_cluster: None) -> PUREConfig:
    return make_tiny_config()
