"""Updates of learners alone, on groups that are made up, and the memory they take."""

import ctypes
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID

from pure_rllib.data.problems import Problem
from pure_rllib.distributed.calls import on_learners
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.generation.base import Response
from pure_rllib.learners.train_batch import plan_mini_batches
from pure_rllib.rollouts.group import SampledResponse


def make_group(
    rng: np.random.Generator, group_id: int, vocab_size: int, prompt: int, lengths: Any
) -> list[Any]:
    """Episodes of responses of these lengths to one prompt of so many tokens."""
    prompt_ids = rng.integers(3, vocab_size, prompt)
    return [
        SampledResponse(
            group_id=group_id,
            problem=Problem(""),
            prompt_ids=prompt_ids,
            response=Response(
                rng.integers(3, vocab_size, length),
                np.full(length, -9.0, np.float32),
                True,
            ),
            judged=JudgedResponse(
                "x",
                np.array([[0, length]]),
                rng.uniform(-1, 1, 1).astype(np.float32),
                True,
                None,
            ),
            weights_version=0,
            total_reward=float(number % 2),
        ).episode()
        for number, length in enumerate(lengths)
    ]


def make_learners(config: Any, vocab_size: int) -> Any:
    """The learner group that an algorithm would make, without the algorithm."""
    config.validate()
    space: Any = (gym.spaces.Discrete(vocab_size), gym.spaces.Discrete(vocab_size))
    spec = config.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: space})
    return config.build_learner_group(rl_module_spec=spec)


def update(
    learners: Any, shares: Sequence[Mapping[int, Any]], iteration: int = 0
) -> tuple[list[Any], float]:
    """One optimiser step on each learner's groups; its reports and its seconds."""
    plan = plan_mini_batches(
        [group_id for share in shares for group_id in share],
        groups_per_step=None,
        num_epochs=1,
        seed=0,
        iteration=iteration,
        max_response_tokens=learners.config.max_response_tokens,
    )
    on_learners(learners, lambda learner, own: learner.fetch_groups(own), shares)
    start = time.perf_counter()
    reports = on_learners(learners, lambda learner: learner.update(plan=plan))
    return reports, time.perf_counter() - start


def forget_peak() -> None:
    """Begins anew with the peak of this process's resident memory."""
    # What was freed before goes back to the system first.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most resident memory of this process since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kib) * 1024
