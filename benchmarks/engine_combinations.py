"""The same training on every combination of engines: does each learn as much?

Runs `pure-rllib train arithmetic` once per combination and seed, one after the other,
and prints a table from the runs' `progress.csv`: accuracy on held-out problems after
the last iteration, the largest gap between generator and learner, and the median
seconds of an iteration.

    python benchmarks/engine_combinations.py [--only NAME] [--seeds 0] --out FOLDER
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
from pathlib import Path

from pure_rllib.reporting.tables import format_table

# Name -> settings, beside those of the tuned example.
COMBINATIONS: dict[str, list[str]] = {
    "transformers, local learner": [],
    "vllm, local learner": ["env_runners.generator=vllm"],
    "1 env runner, lag 1": [
        "env_runners.num_env_runners=1",
        "training.max_weight_lag=1",
    ],
    "vllm, 1 env runner, lag 1": [
        "env_runners.generator=vllm",
        "env_runners.num_env_runners=1",
        "training.max_weight_lag=1",
    ],
    "2 env runners, 1 learner": [
        "env_runners.num_env_runners=2",
        "learners.num_learners=1",
    ],
    "2 learners": ["learners.num_learners=2"],
    "2 learners, ZeRO 1": ["learners.num_learners=2", "learners.deepspeed.stage=1"],
    "2 learners, ZeRO 2": ["learners.num_learners=2", "learners.deepspeed.stage=2"],
    "2 learners, ZeRO 3": ["learners.num_learners=2", "learners.deepspeed.stage=3"],
    "vllm, 1 env runner, 2 learners, ZeRO 2": [
        "env_runners.generator=vllm",
        "env_runners.num_env_runners=1",
        "learners.num_learners=2",
        "learners.deepspeed.stage=2",
    ],
}


def run(name: str, seed: int, folder: Path, iterations: int | None) -> list[str]:
    """Trains once; returns one row of the table."""
    out = folder / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
    command = [sys.executable, "-m", "pure_rllib.cli.main", "train", "arithmetic"]
    command += ["--seed", str(seed), "--out", str(out)]
    command += [part for text in COMBINATIONS[name] for part in ("--set", text)]
    if iterations is not None:
        command += ["--iterations", str(iterations)]
    # One thread per process: learners and env runners share the cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        return [name, str(seed), "failed", "", "", ""]
    with (out / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if int(row["training_iteration"])]
    gaps = [float(row["generator_learner_logp_gap"]) for row in rows]
    seconds = [float(row["seconds/iteration"]) for row in rows]
    return [
        name,
        str(seed),
        f"{float(rows[-1]['evaluation/greedy_accuracy']):.3f}",
        f"{float(rows[-1]['evaluation/sampled_accuracy']):.3f}",
        f"{max(gaps):.0e}",
        f"{statistics.median(seconds):.2f}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=COMBINATIONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    header = ["engines", "seed", "greedy", "sampled", "logp gap", "s per iteration"]
    rows = []
    for name in options.only or COMBINATIONS:
        for seed in options.seeds:
            rows.append(run(name, seed, options.out, options.iterations))
            print("\t".join(rows[-1]), flush=True)
    print(format_table(header, rows))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
