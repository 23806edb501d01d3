"""The engines against what they are made of, in one run.

Runs the benchmarks below one after another, each in a process of its own, and prints
what they print: sampling against vLLM alone, the learner against a plain PyTorch loop,
the way of the weights, the gain of sampling while learning, and two learners.

    python benchmarks/engines.py
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# Title, file, arguments.
PARTS: list[tuple[str, str, str]] = [
    ("Sampling: env runner against vLLM alone", "vllm_sampling.py", ""),
    (
        "Learning: against a plain loop, and by two learners",
        "learner.py",
        "--learners 2 --zero 1 2 3 --prompts 4 --response-tokens 48 --rounds 3",
    ),
    ("Weights: from the learner to an env runner", "weight_sync.py", ""),
    ("Overlap: max_weight_lag=1 against 0", "weight_lag.py", ""),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    failed = []
    for title, name, arguments in PARTS:
        print(f"\n{title}\n", flush=True)
        command = [sys.executable, str(FOLDER / name), *arguments.split()]
        # One thread per process: with two processes on two cores more would compete.
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
