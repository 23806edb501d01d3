"""How long new weights take from the learner to an env runner of the same node.

Random Qwen2 policies of three sizes in float32, one local learner and one env runner
actor. Publishing puts the weights into Ray's object store, taking over copies them into
the generator; both end with the log-probabilities of the check.

    python benchmarks/weight_sync.py [--millions 1 100 500] [--rounds 3]
"""

import argparse
import logging
import statistics
import time
from typing import Any

import ray
import torch

from pure_rllib.algorithms import PUREConfig
from pure_rllib.reporting.tables import format_table

# Millions of parameters -> width, width of the MLP, layers.
SIZES = {1: (128, 344, 6), 100: (1024, 2816, 8), 500: (1536, 4096, 18)}


def config_for(millions: int) -> PUREConfig:
    width, mlp_width, num_layers = SIZES[millions]
    policy = {
        "model_type": "qwen2",
        "vocab_size": 32,
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    return (
        PUREConfig()
        .environment(
            "pure_rllib/Arithmetic-v0",
            env_config={"process_rewards": "exact", "num_problems": 8},
        )
        .env_runners(
            num_env_runners=1, num_prompts=1, group_size=2, max_response_tokens=8
        )
        .rl_module(model_config={"model": policy})
        .debugging(seed=0)
    )


def measure(millions: int, num_rounds: int) -> list[str]:
    """Returns one row of the table."""
    algo: Any = config_for(millions).build_algo()
    publish_s, take_over_s = [], []
    for _ in range(num_rounds + 1):
        start = time.perf_counter()
        algo._weights = None
        weights = algo._published()
        published = time.perf_counter()
        algo.env_runner_group.foreach_env_runner(
            lambda runner, weights=weights: runner.receiver.take_over(weights),
            local_env_runner=False,
        )
        publish_s.append(published - start)
        take_over_s.append(time.perf_counter() - published)
    num_bytes = weights.source.num_bytes
    algo.stop()
    # The first round loads the generator.
    publish, take_over = (
        statistics.median(seconds[1:]) for seconds in (publish_s, take_over_s)
    )
    return [
        f"{num_bytes / 4e6:.0f} M",
        f"{num_bytes / 2**20:,.0f} MiB",
        f"{publish:.3f} s",
        f"{take_over:.3f} s",
        f"{publish + take_over:.3f} s",
        f"{num_bytes / 1e9 / (publish + take_over):.2f} GB/s",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--millions", type=int, nargs="+", choices=SIZES, default=list(SIZES)
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    rows = [measure(millions, options.rounds) for millions in options.millions]
    header = ["parameters", "weights", "publish", "take over", "sync", "rate"]
    print(format_table(header, rows))
    ray.shutdown()


if __name__ == "__main__":
    main()
