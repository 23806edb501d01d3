"""How fast RLlib samples responses: our env runner against its stock one.

The same environment, the embedded default's start policy, one thread. RLlib's
`SingleAgentEnvRunner` steps the environment token by token; `LLMEnvRunner` samples
whole groups.

    python benchmarks/stock_env_runner.py [--tokens 400] [--threads 1]
"""

import argparse
import logging
import time
from typing import Any

import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from pure_rllib.algorithms import PUREConfig
from pure_rllib.models.llm_rl_module import LLMRLModule
from pure_rllib.models.loading import resolve_model
from pure_rllib.reporting.tables import format_table

NUM_CALLS = 10
ENV = "pure_rllib/Arithmetic-v0"
ENV_CONFIG = {"process_rewards": "exact", "max_response_tokens": 80}
POLICY = "embedded:arithmetic-policy"


def stock_rate(num_tokens: int, num_envs: int) -> float:
    """Tokens per second of RLlib's own env runner."""
    config = (
        PPOConfig()
        .environment(ENV, env_config=ENV_CONFIG)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=num_envs)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=LLMRLModule,
                model_config={"model": resolve_model(POLICY)},
            )
        )
    )
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    runner.sample(num_timesteps=2 * num_envs, random_actions=False)  # warm-up
    start = time.perf_counter()
    episodes = runner.sample(num_timesteps=num_tokens, random_actions=False)
    seconds = time.perf_counter() - start
    runner.stop()
    return sum(len(episode) for episode in episodes) / seconds


def our_rate() -> float:
    """Response tokens per second of a PURE algorithm's sampling calls, all included."""
    config = (
        PUREConfig()
        .environment(ENV, env_config=ENV_CONFIG)
        .env_runners(num_prompts=16, group_size=8)
        .rl_module(model_config={"model": POLICY})
        .debugging(seed=0)
    )
    algo: Any = config.build_algo()
    algo._sample()  # warm-up: the model is loaded, the verifier's worker started
    start = time.perf_counter()
    batches = [algo._sample() for _ in range(NUM_CALLS)]
    seconds = time.perf_counter() - start
    algo.stop()
    groups = [group for batch in batches for group in batch.groups]
    return sum(r.num_tokens for group in groups for r in group.records) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    rates = {
        "SingleAgentEnvRunner, 1 environment": stock_rate(options.tokens, 1),
        "SingleAgentEnvRunner, 16 environments": stock_rate(options.tokens, 16),
        "LLMEnvRunner, 16 prompts x 8": our_rate(),
    }
    baseline = next(iter(rates.values()))
    rows = [
        [name, f"{rate:,.0f}", f"{rate / baseline:.1f}x"]
        for name, rate in rates.items()
    ]
    print(format_table(["env runner", "tokens/s", "ratio"], rows))
    ray.shutdown()


if __name__ == "__main__":
    main()
