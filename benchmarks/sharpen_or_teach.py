"""Does RL sharpen or teach? pass@k and CoT-Pass@K before and after training.

The embedded start policy of chain arithmetic is trained by PURE with the minimum of
process rewards, with their sum, and with the verifiable reward alone, by several seeds.
All policies are asked the same held-out problems, and the exact checker follows their
steps. Sharpening raises small k only; what is taught is there at large k as well. What
came out: docs/evaluation.md.

    python benchmarks/sharpen_or_teach.py [--out runs/sharpen_or_teach] [--seeds 0 1 2]

A quarter of an hour on two cores. What is finished in the folder is kept: after a stop,
call it again.
"""

import argparse
from pathlib import Path

from pure_rllib.cli.main import main as pure_rllib

ARMS = {
    "min": ["training.credit_assignment=min"],
    "sum": ["training.credit_assignment=sum"],
    "verifiable": [
        "training.process_reward_coeff=0.0",
        "environment.env_config.process_rewards=none",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/sharpen_or_teach"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    evaluations = {"before": [evaluate(options.out / "before")]}
    for arm, settings in ARMS.items():
        runs = [
            train(options.out / f"{arm}-{seed}", settings, seed)
            for seed in options.seeds
        ]
        evaluations[arm] = [
            evaluate(run / "evaluation", run / "policy") for run in runs
        ]
    named = [
        f"{label}={','.join(map(str, folders))}"
        for label, folders in evaluations.items()
    ]
    call("eval", "--compare", *named, "--out", options.out / "comparison")


def train(run: Path, settings: list[str], seed: int) -> Path:
    if run.is_dir() and not (run / "policy").is_dir():
        call("train", "--resume", run)
    elif not run.is_dir():
        chosen = [word for one in settings for word in ("--set", one)]
        call("train", "arithmetic", "--seed", seed, *chosen, "--out", run)
    return run


def evaluate(out: Path, policy: Path | None = None) -> Path:
    if (out / "settings.json").is_file():
        call("eval", "--resume", out)
    else:
        model = ["--set", f"policy.model={policy}"] if policy else []
        call("eval", "eval_arithmetic", *model, "--out", out)
    return out


def call(*words: object) -> None:
    if status := pure_rllib([str(word) for word in words]):
        raise SystemExit(status)


if __name__ == "__main__":
    main()
