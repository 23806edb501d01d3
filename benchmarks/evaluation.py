"""Evaluations: an engine against `vllm.LLM.generate` alone, and all but sampling.

One vLLM engine in a process of its own samples the same prompts by both ways, in turn;
the medians of samples per second are compared. Then an evaluation is run, and resumed
when nothing is left to do: what that takes is everything but sampling and judging.

    python benchmarks/evaluation.py [MODEL] [--data-dir DATA] [--problems 50] \
        [--samples 4] [--max-response-tokens 256] [--rounds 3] [--num-cpus 2]

Without a data folder the problems are those of chain arithmetic.
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from pure_rllib.evaluation.benchmarks import environment_benchmark, load_benchmark
from pure_rllib.evaluation.engines import Engine
from pure_rllib.evaluation.plan import make_plan
from pure_rllib.evaluation.run import evaluate, started_ray
from pure_rllib.evaluation.settings import PolicySettings, SamplingSettings
from pure_rllib.generation.vllm_generator import engine_seed
from pure_rllib.reporting.tables import format_table


class MeasuredEngine(Engine):
    """An engine that also samples by vLLM's own call."""

    def raw(self, requests: Any) -> int:
        """Samples with `vllm.LLM.generate`; returns the number of responses."""
        vllm = self._generator._vllm  # type: ignore[attr-defined]
        settings = [
            vllm.SamplingParams(
                temperature=one.params.temperature,
                top_p=one.params.top_p,
                max_tokens=one.params.max_response_tokens,
                seed=engine_seed(one.seed) if one.params.temperature else None,
                ignore_eos=True,
                stop_token_ids=list(self._settings.eos_token_ids),
                detokenize=False,
            )
            for one in requests
        ]
        prompts = [vllm.TokensPrompt(prompt_token_ids=list(r.prompt)) for r in requests]
        llm = self._generator._llm  # type: ignore[attr-defined]
        return len(llm.generate(prompts, settings, use_tqdm=False))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="embedded:arithmetic-policy")
    parser.add_argument("--data-dir")
    parser.add_argument("--problems", type=int, default=50)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-response-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-cpus", type=float, default=2.0)
    options = parser.parse_args()
    policy = PolicySettings(
        model=options.model, generator="vllm", num_cpus=options.num_cpus
    )
    if options.data_dir:
        benchmark = load_benchmark("gsm8k", options.data_dir)
    else:
        benchmark = environment_benchmark(
            "pure_rllib/Arithmetic-v0", {"process_rewards": "none"}
        )
    sampling = SamplingSettings(
        samples=options.samples, max_response_tokens=options.max_response_tokens
    )
    asked = [benchmark.first(options.problems)]
    with started_ray(policy):
        compare_rates(policy, asked, sampling, options.rounds)
        share_of_the_rest(policy, asked, sampling)


def compare_rates(
    policy: PolicySettings, benchmarks: Any, sampling: SamplingSettings, rounds: int
) -> None:
    plan = make_plan(policy, benchmarks, sampling, None)
    settings = plan.engine
    actor_class: Any = ray.remote(MeasuredEngine)
    engine = actor_class.options(
        num_cpus=policy.num_cpus, num_gpus=settings.num_gpus
    ).remote(settings)
    requests = [one.request(key, sampling) for one in plan.asked for key in one.keys]
    rates: dict[str, list[float]] = {"vllm.LLM.generate": [], "engine": []}
    for i in range(rounds + 1):
        start = time.perf_counter()
        num_raw = ray.get(engine.raw.remote(requests))
        between = time.perf_counter()
        stream = engine.sample.options(num_returns="streaming").remote([requests])
        num_ours = sum(len(ray.get(part)) for part in stream)
        end = time.perf_counter()
        assert num_raw == num_ours == len(requests)
        if i:  # the first round is warm-up
            rates["vllm.LLM.generate"].append(num_raw / (between - start))
            rates["engine"].append(num_ours / (end - between))
    ray.kill(engine)
    median = {name: statistics.median(values) for name, values in rates.items()}
    base = median["vllm.LLM.generate"]
    rows = [[n, f"{rate:.2f}", f"{rate / base:.3f}"] for n, rate in median.items()]
    print(format_table(["sampling", "samples/s", "ratio"], rows), flush=True)


def share_of_the_rest(
    policy: PolicySettings, benchmarks: Any, sampling: SamplingSettings
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for resume in (False, True):
            start = time.perf_counter()
            evaluate(
                policy,
                benchmarks,
                sampling,
                out=Path(folder) / "evaluation",
                resume=resume,
                stream=io.StringIO(),
            )
            seconds.append(time.perf_counter() - start)
    whole, rest = seconds
    print(
        f"evaluation {whole:.1f} s, all but sampling {rest:.1f} s: {rest / whole:.1%}"
    )


if __name__ == "__main__":
    main()
