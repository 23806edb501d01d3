"""An update on flat rows, a group's prompt once, against the same on padded rows.

Groups of 8 responses to one prompt, 143 prompt tokens and 32 response tokens each, as
few-shot prompts make them; the learner's whole update, with AdamW, in one micro-batch.
Each layout has processes of its own, in turn; the best time of all, and the peak of
resident memory in the updates after the first, Python, weights and AdamW included;
beside it what the memory plan says.

    python benchmarks/shared_prompt.py [--model FOLDER] [--dtype bfloat16] [--groups 6]

The last line is a JSON object: `ratio`, padded seconds over flat ones, and
`memory_ratio`, flat peak over padded one.
"""

import argparse
import json
import logging
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from updates import forget_peak, make_group, make_learners, peak_bytes, update

from pure_rllib.algorithms import RLOOConfig
from pure_rllib.models.loading import policy_config
from pure_rllib.models.memory_plan import MemorySettings, ModelSize, plan_memory
from pure_rllib.reporting.tables import format_table

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


def measure(options: Any) -> dict[str, float]:
    """Updates a learner on one layout; returns `seconds`, and two peaks in bytes."""
    forget_peak()
    libraries = peak_bytes()
    model = options.model or MODEL
    vocab_size = policy_config(model).vocab_size
    rng, longest = np.random.default_rng(0), options.response_tokens
    groups, num_tokens = {}, 0
    for i in range(options.groups):
        # Of 1/2 to 1 times the given length, as sampled ones differ.
        others = rng.integers(longest // 2, longest + 1, options.responses - 1)
        lengths = [longest, *others]
        # With one length in all rows, or none of the prompt again.
        num_tokens += (
            sum(lengths) + options.prompt_tokens
            if LAYOUTS[options.layout]
            else len(lengths) * (options.prompt_tokens + longest)
        )
        groups[i] = make_group(rng, i, vocab_size, options.prompt_tokens, lengths)
    config = (
        RLOOConfig()
        .environment("pure_rllib/Arithmetic-v0")
        .env_runners(group_size=options.responses, max_response_tokens=longest)
        .rl_module(model_config={"model": model, "dtype": options.dtype})
        .training(lr=1.0e-6)
        .learners(packing=LAYOUTS[options.layout])
    )
    learners = make_learners(config, vocab_size)
    update(learners, [groups])  # AdamW makes its moments
    forget_peak()
    seconds = [update(learners, [groups], i + 1)[1] for i in range(options.updates)]
    settings = MemorySettings(
        ModelSize.of(model),
        dtype=options.dtype,
        pass_tokens=min(num_tokens, config.micro_batch_tokens),
    )
    return {
        "seconds": min(seconds),
        "peak": peak_bytes(),
        "planned": int(libraries + plan_memory(settings)["learn"].tensors),
    }


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
    rows = [
        [name, v["seconds"], v["peak"] / GIB, v["planned"] / GIB]
        for name, v in best.items()
    ]
    titles = ["rows", "seconds", "peak GiB", "planned GiB"]
    print(format_table(titles, rows, markdown=True))
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
