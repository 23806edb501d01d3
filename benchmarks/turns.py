"""What turns cost: environments in an iteration, and rounds beside the engine alone.

    python benchmarks/turns.py [--prompts 32] [--group-size 8] [--rounds 7]

First `guess_number` trains, and it is told what share of an iteration its environments
and bridges take. Then the arithmetic policy answers two problems in two turns with
vLLM: by our env runner, and by `vllm.LLM.generate` with the same prompts, seeds and
budgets, which needs no environment to know them. Calls alternate; medians are compared.
"""

import argparse
import logging
import statistics
import time
from typing import Any

import ray
import torch

from pure_rllib.algorithms import GRPOConfig
from pure_rllib.cli.experiment import load_experiment
from pure_rllib.data.order import ProblemOrder
from pure_rllib.envs.arithmetic import ArithmeticEnv
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.reporting.tables import format_table
from pure_rllib.rollouts import turns

TURN_TOKENS = 80
PROBLEMS = ArithmeticEnv(process_rewards="none")


class TwoProblems:
    """Poses a problem, and another one whatever the answer."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.number, self.turn = seed % (len(PROBLEMS.problems) - 1), 0
        return PROBLEMS.problems[self.number].prompt, {}

    def step(self, action: str) -> Any:
        self.turn += 1
        asked = PROBLEMS.problems[self.number + 1].prompt
        return asked, 0.0, self.turn == 2, False, {}


class Watched:
    """Passes calls on to a generator and remembers them."""

    def __init__(self, generator: Any):
        self.generator = generator
        self.calls: list[tuple[Any, ...]] = []

    def generate(self, *args: Any) -> Any:
        self.calls.append(args)
        return self.generator.generate(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)


class Stopwatch:
    """Adds up the seconds in a function of a module.

    Args:
        module: whose function is taken the place of.
        name: of the function.
    """

    def __init__(self, module: Any, name: str):
        self.seconds = 0.0
        function = getattr(module, name)

        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(module, name, timed)


def environment_shares(iterations: int) -> tuple[float, float]:
    """Shares of an iteration of guess_number, in [0, 1].

    Returns:
        Of rounds without the policy's writing: environments, bridges and rows. And of
        all but the writing: records and rewards of the responses, too.
    """
    rounds, writing = Stopwatch(turns, "_play"), Stopwatch(turns, "_write")
    algo = load_experiment("guess_number").build_config().build_algo()
    shares = []
    for _ in range(iterations):
        rounds.seconds = writing.seconds = 0.0
        seconds = algo.train()["seconds"]
        beside = rounds.seconds - writing.seconds, seconds["verify"]
        shares.append([part / seconds["iteration"] for part in beside])
    algo.stop()
    in_rounds, in_all = (
        statistics.median(share) for share in zip(*shares, strict=True)
    )
    return in_rounds, in_all


def raw_call(engine: Any, calls: list[tuple[Any, ...]], eos: list[int]) -> float:
    """Seconds of vLLM's own calls with what the env runner asked it for."""
    from vllm import SamplingParams, TokensPrompt

    seconds = 0.0
    for prompts, group_size, params, seeds, *budgets in calls:
        limits = budgets[0] if budgets else [params.max_response_tokens] * len(prompts)
        settings = [
            SamplingParams(
                n=group_size,
                max_tokens=limit,
                seed=seed % 2**62,
                ignore_eos=True,
                stop_token_ids=eos,
                logprobs=0,
                detokenize=False,
            )
            for seed, limit in zip(seeds, limits, strict=True)
        ]
        asked = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        start = time.perf_counter()
        engine.generate(asked, settings, use_tqdm=False)
        seconds += time.perf_counter() - start
    return seconds


def build(num_prompts: int, group_size: int) -> Any:
    return (
        GRPOConfig()
        .environment(
            TextTokenEnv,
            env_config={
                "make_env": TwoProblems,
                "tokenizer": PROBLEMS.tokenizer,
                "max_turn_tokens": TURN_TOKENS,
                "max_prompt_tokens": PROBLEMS.max_prompt_tokens,
                "max_response_tokens": 2 * TURN_TOKENS + PROBLEMS.max_prompt_tokens,
            },
        )
        .env_runners(generator="vllm", num_prompts=num_prompts, group_size=group_size)
        .rl_module(model_config={"model": "embedded:arithmetic-policy"})
        .debugging(seed=0)
        .build_algo()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    in_rounds, in_all = environment_shares(10 * options.rounds)
    print(
        f"guess_number: environments and bridges take {in_rounds:.1%} of an iteration, "
        f"{in_all:.1%} with the responses' records"
    )
    algo = build(options.prompts, options.group_size)
    runner, weights = algo.env_runner_group.local_env_runner, algo._published()
    order = ProblemOrder(len(runner.token_env.problems), seed=0)
    runner.sample(tickets=order.take(0, 1), weights=weights)  # makes the generator
    watched = runner._generator = Watched(runner.generator)
    engine, eos = watched.generator._llm, list(runner.token_env.eos_token_ids)
    ratios, env_shares = [], []
    for i in range(options.rounds + 1):
        watched.calls.clear()
        engine.reset_prefix_cache()
        tickets = order.take(i * options.prompts, options.prompts)
        seconds = runner.sample(tickets=tickets, weights=weights).seconds
        engine.reset_prefix_cache()
        raw_s = raw_call(engine, watched.calls, eos)
        if i:  # the first round is warm-up
            ratios.append(raw_s / (seconds["sample"] + seconds["verify"]))
            env_shares.append(seconds["verify"] / seconds["total"])
    algo.stop()
    rows = [
        ["engine alone / env runner", f"{statistics.median(ratios):.2f}"],
        ["environments / env runner", f"{statistics.median(env_shares):.3f}"],
    ]
    print(format_table(["two turns with vLLM, seconds", "ratio"], rows))


if __name__ == "__main__":
    main()
