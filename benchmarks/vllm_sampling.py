"""Sampling with vLLM: our env runner against `vllm.LLM.generate` alone.

One engine in one process, the embedded default's start policy, the same prompts,
seeds and settings; both return token ids and their log-probabilities. Calls alternate,
and the medians of their rates are compared.

    python benchmarks/vllm_sampling.py [--prompts 32] [--group-size 8] [--rounds 7]
"""

import argparse
import logging
import statistics
import time
from typing import Any

import ray
import torch

from pure_rllib.algorithms import PUREConfig
from pure_rllib.data.order import ProblemOrder
from pure_rllib.generation.vllm_generator import engine_seed
from pure_rllib.reporting.tables import format_table

MAX_RESPONSE_TOKENS = 80


def build(num_prompts: int, group_size: int) -> Any:
    return (
        PUREConfig()
        .environment(
            "pure_rllib/Arithmetic-v0",
            env_config={
                "process_rewards": "exact",
                "max_response_tokens": MAX_RESPONSE_TOKENS,
            },
        )
        .env_runners(generator="vllm", num_prompts=num_prompts, group_size=group_size)
        .rl_module(model_config={"model": "embedded:arithmetic-policy"})
        .debugging(seed=0)
        .build_algo()
    )


def raw_call(runner: Any, tickets: list[Any], group_size: int) -> tuple[int, float]:
    """Response tokens and seconds of vLLM's own call."""
    from vllm import SamplingParams, TokensPrompt

    generator, env = runner.generator, runner.token_env
    prompts = [
        TokensPrompt(
            prompt_token_ids=env.encode_prompt(env.problems[ticket.index]).tolist()
        )
        for ticket in tickets
    ]
    params = [
        SamplingParams(
            n=group_size,
            temperature=1.0,
            max_tokens=MAX_RESPONSE_TOKENS,
            seed=engine_seed(ticket.seed),
            ignore_eos=True,
            stop_token_ids=list(generator.eos_token_ids),
            logprobs=0,
            detokenize=False,
        )
        for ticket in tickets
    ]
    start = time.perf_counter()
    outputs = generator._llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    return sum(len(o.token_ids) for out in outputs for o in out.outputs), seconds


def our_call(runner: Any, tickets: list[Any], weights: Any) -> tuple[int, Any]:
    """Response tokens and seconds by phase of an env runner's call."""
    sample = runner.sample(tickets=tickets, weights=weights)
    num_tokens = sum(r.num_tokens for group in sample.groups for r in group.records)
    return num_tokens, sample.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    algo = build(options.prompts, options.group_size)
    runner, weights = algo.env_runner_group.local_env_runner, algo._published()
    order = ProblemOrder(len(runner.token_env.problems), seed=0)
    rates: dict[str, list[float]] = {"raw": [], "sample": [], "total": []}
    for i in range(options.rounds + 1):
        tickets = order.take(i * options.prompts, options.prompts)
        calls = ["raw", "ours"] if i % 2 else ["ours", "raw"]
        for call in calls:
            # Each starts without the other's keys and values of these prompts.
            runner.generator._llm.reset_prefix_cache()
            if call == "raw":
                num_raw, raw_s = raw_call(runner, tickets, options.group_size)
            else:
                num_ours, seconds = our_call(runner, tickets, weights)
        assert num_raw == num_ours, "the same seeds give the same responses"
        if i:  # the first round is warm-up
            rates["raw"].append(num_raw / raw_s)
            rates["sample"].append(num_ours / seconds["sample"])
            rates["total"].append(num_ours / seconds["total"])
    algo.stop()
    names = {
        "raw": "vllm.LLM.generate",
        "sample": "env runner, sampling",
        "total": "env runner, sampling and judging",
    }
    median = {key: statistics.median(values) for key, values in rates.items()}
    rows = [
        [name, f"{median[key]:,.0f}", f"{median[key] / median['raw']:.2f}"]
        for key, name in names.items()
    ]
    print(format_table(["sampling", "tokens/s", "ratio"], rows))
    ray.shutdown()


if __name__ == "__main__":
    main()
