"""An update on flat rows, a group's prompt once, against the same on padded rows.

Groups of 8 responses to one prompt, 143 prompt tokens and 32 response tokens each, as
few-shot prompts make them; the learner's whole update, with AdamW, in one micro-batch.
Each layout has processes of its own, in turn; the best time of all, and the peak of
resident memory in the updates after the first, Python, weights and AdamW included.

    python benchmarks/shared_prompt.py [--model FOLDER] [--dtype bfloat16] [--groups 6]

The last line is a JSON object: `ratio`, padded seconds over flat ones, and
`memory_ratio`, flat peak over padded one.
"""

import argparse
import ctypes
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from pure_rllib.algorithms import RLOOConfig
from pure_rllib.data.problems import Problem
from pure_rllib.distributed.calls import on_learners
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.generation.base import Response
from pure_rllib.learners.train_batch import plan_mini_batches
from pure_rllib.models.loading import policy_config
from pure_rllib.reporting.tables import format_table
from pure_rllib.rollouts.group import SampledResponse

MODEL = {
    "model_type": "llama",
    "vocab_size": 8000,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
LAYOUTS = {"padded": False, "flat": True}
GIB = 2**30


def make_group(
    rng: np.random.Generator, group_id: int, vocab_size: int, options: Any
) -> list[Any]:
    """Responses of 1/2 to 1 times the given length, as sampled ones differ."""
    prompt = rng.integers(3, vocab_size, options.prompt_tokens)
    longest = options.response_tokens
    lengths = [longest, *rng.integers(longest // 2, longest + 1, options.responses - 1)]
    return [
        SampledResponse(
            group_id=group_id,
            problem=Problem(""),
            prompt_ids=prompt,
            response=Response(
                rng.integers(3, vocab_size, length),
                np.full(length, -9.0, np.float32),
                True,
            ),
            judged=JudgedResponse(
                "x", np.array([[0, length]]), np.zeros(1, np.float32), True, None
            ),
            weights_version=0,
            total_reward=float(number % 2),
        ).episode()
        for number, length in enumerate(lengths)
    ]


def measure(options: Any) -> dict[str, float]:
    """Updates a learner on one layout; returns `seconds` and `peak` (bytes)."""
    model = options.model or MODEL
    vocab_size = policy_config(model).vocab_size
    rng = np.random.default_rng(0)
    groups = {i: make_group(rng, i, vocab_size, options) for i in range(options.groups)}
    config = (
        RLOOConfig()
        .environment("pure_rllib/Arithmetic-v0")
        .env_runners(group_size=options.responses)
        .rl_module(model_config={"model": model, "dtype": options.dtype})
        .training(lr=1.0e-6)
        .learners(packing=LAYOUTS[options.layout])
    )
    config.validate()
    space: Any = (gym.spaces.Discrete(vocab_size), gym.spaces.Discrete(vocab_size))
    spec = config.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: space})
    learners = config.build_learner_group(rl_module_spec=spec)
    seconds = []
    for iteration in range(1 + options.updates):
        if iteration == 1:  # AdamW makes its moments in the first step
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        plan = plan_mini_batches(
            list(groups),
            groups_per_step=None,
            num_epochs=1,
            seed=0,
            iteration=iteration,
            max_response_tokens=options.response_tokens,
        )
        on_learners(learners, lambda learner: learner.fetch_groups(groups))
        start = time.perf_counter()
        on_learners(learners, lambda learner, own=plan: learner.update(plan=own))
        seconds.append(time.perf_counter() - start)
    peak = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return {"seconds": min(seconds[1:]), "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a folder; default: a Llama made here, 21M")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=143)
    parser.add_argument("--response-tokens", type=int, default=32)
    parser.add_argument("--updates", type=int, default=2, help="timed, per process")
    parser.add_argument("--rounds", type=int, default=1, help="processes per layout")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layout", choices=LAYOUTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.layout:
        logging.disable(logging.WARNING)
        print(json.dumps(measure(options)))
        return
    found: dict[str, list[dict[str, float]]] = {layout: [] for layout in LAYOUTS}
    for _ in range(options.rounds):
        for layout, runs in found.items():
            command = [sys.executable, *sys.argv, "--layout", layout]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True
            )
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    best = {
        layout: {key: min(run[key] for run in runs) for key in runs[0]}
        for layout, runs in found.items()
    }
    rows = [[name, v["seconds"], v["peak"] / GIB] for name, v in best.items()]
    print(format_table(["rows", "seconds", "peak GiB"], rows, markdown=True))
    padded, flat = best["padded"], best["flat"]
    print(
        json.dumps(
            {
                "ratio": round(padded["seconds"] / flat["seconds"], 3),
                "memory_ratio": round(flat["peak"] / padded["peak"], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
