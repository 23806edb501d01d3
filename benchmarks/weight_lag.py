"""What sampling the next batch during an update gains: lag 0 against lag 1.

Two runs of the embedded default, each with one env runner and one local learner of one
thread each, take turns in one process: a busy machine slows both. An iteration that
overlaps takes as long as the slower of its two halves, which is what `possible` says.

    python benchmarks/weight_lag.py [--rounds 4] [--iterations 6]

Needs two idle cores: on one, there is nothing to overlap.
"""

import argparse
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import ray
import torch

from pure_rllib.algorithms import PURE, PUREConfig
from pure_rllib.reporting.tables import format_table

_SAMPLING = ("sync", "sample", "score", "verify")


@dataclass(frozen=True, slots=True)
class LagTimes:
    """Medians over a run's iterations.

    Attributes:
        iteration: seconds of the whole iteration.
        sampling: seconds of sampling and judging, and of bringing the weights there.
        learning: seconds of connectors and updates.
        waiting: seconds for which the algorithm waited for samples.
    """

    iteration: float
    sampling: float
    learning: float
    waiting: float


def make_config(max_weight_lag: int) -> PUREConfig:
    """The embedded default in two processes."""
    return (
        PUREConfig()
        .environment(
            "pure_rllib/Arithmetic-v0",
            env_config={"process_rewards": "neural", "max_response_tokens": 80},
        )
        .env_runners(num_env_runners=1, num_prompts=16, group_size=8)
        .training(
            lr=6.0e-4,
            micro_batch_tokens=2048,
            max_weight_lag=max_weight_lag,
            # The same work for both learners.
            rollout_correction="token_truncated",
        )
        .debugging(seed=0)
    )


def measure_weight_lag(num_rounds: int, num_iterations: int) -> dict[int, LagTimes]:
    """Returns the times of `max_weight_lag` 0 and 1, measured in turns.

    Args:
        num_rounds: how often each of the two has its turn, after one to warm up.
        num_iterations: per turn; one more comes first and is not counted, because what
            it learns from was sampled before the turn.
    """
    times: dict[int, list[LagTimes]] = {0: [], 1: []}
    with ExitStack() as stack:
        algorithms = {}
        for lag in times:
            algorithms[lag] = make_config(lag).build_algo()
            stack.callback(algorithms[lag].stop)
        for number in range(num_rounds + 1):
            for lag, algorithm in algorithms.items():
                turn = [_times_of(algorithm) for _ in range(num_iterations + 1)]
                # What is under way must not take time from the other's turn.
                algorithm._sampler.wait()
                times[lag] += turn[1:] if number else []
    return {
        lag: LagTimes(
            *(
                statistics.median(getattr(one, name) for one in measured)
                for name in LagTimes.__slots__
            )
        )
        for lag, measured in times.items()
    }


def _times_of(algorithm: PURE) -> LagTimes:
    seconds = algorithm.train()["seconds"]
    return LagTimes(
        iteration=seconds["iteration"],
        sampling=sum(seconds[phase] for phase in _SAMPLING),
        learning=seconds["learn"],
        waiting=seconds["wait"],
    )


def gain(times: dict[int, LagTimes]) -> float:
    """Ratio of the iteration times, lag 0 over lag 1; above 1 is faster."""
    return times[0].iteration / times[1].iteration


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=6)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    times = measure_weight_lag(options.rounds, options.iterations)
    alone = times[0]
    slower = max(alone.sampling, alone.learning)
    print(
        "16 prompts x 8 responses, 1 env runner, 1 learner, a thread each; seconds, "
        f"medians of {options.rounds * options.iterations} iterations\n"
    )
    rows = [
        [str(lag), *(f"{getattr(t, name):.3f}" for name in LagTimes.__slots__)]
        for lag, t in times.items()
    ]
    print(format_table(["lag", *LagTimes.__slots__], rows))
    print(
        f"\ngain {gain(times):.2f}x; possible {alone.iteration / slower:.2f}x, the "
        "slower half alone"
    )


if __name__ == "__main__":
    main()
