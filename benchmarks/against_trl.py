"""One iteration of RLOO: ours against TRL's `RLOOTrainer`, on one machine.

    python benchmarks/against_trl.py                       # a small random model
    python benchmarks/against_trl.py --model FOLDER        # a real one
    python benchmarks/against_trl.py --model qwen2.5-0.5b  # its shape, random weights

Both start from the same weights, with the same prompts, numbers of responses, dtype and
learning rate; responses have all the same length (no end-of-sequence token ends them),
the reward is the same rule, and there is one optimiser step, no KL and no evaluation.
TRL is installed into an environment of its own, `--trl-env`, with the versions of
constraints.txt. Processes alternate, ours, then TRL with bfloat16 and float32 weights;
TRL's faster one counts. Seconds are medians over the iterations after the first ones of
all rounds, of sampling, rewards and update together; memory is the most that a process
had resident, on a GPU what torch had allocated.

Two loads: short prompts (one question), and long ones (two solved examples before it).
The last line is a JSON object.
"""

import argparse
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from shapes import SHAPES

TRL = "trl==1.16.0"
REPO = Path(__file__).resolve().parents[1]
# Prompts of an iteration, responses to each, tokens of a response.
LOADS = {"short": (8, 4, 32), "long": (8, 8, 24)}
SOLVED = (
    "Question: Ann has 7 apples and buys 5 more. How many apples does she have now?\n"
    "Answer: She starts with 7 apples.\n\n7 + 5 = 12\n\nThe answer is \\boxed{12}.\n\n"
    "Question: Tom has 9 + 6 cards and gives away 4 of them. How many does he keep?\n"
    "Answer: He starts with 9 + 6 = 15 cards.\n\n15 - 4 = 11\n\nThe answer is "
    "\\boxed{11}.\n\n"
)


def problems(load: str) -> list[tuple[str, str]]:
    """Questions in words, each with its answer."""
    draw = random.Random(0)
    rows = []
    for _ in range(256):
        a, b = draw.randint(3, 20), draw.randint(2, 9)
        question = (
            f"Question: Sam has {a} marbles and finds {b} more. How many marbles are "
            "there now?\nAnswer:"
        )
        rows.append((SOLVED * (load == "long") + question, str(a + b)))
    return rows


def is_right(gold: str, text: str) -> bool:
    """Whether the last number of a response is the answer."""
    return re.findall(r"\d+", text)[-1:] == [gold]


def peak_gb() -> float:
    """The most memory that this process has used, in 10^9 bytes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure_ours(model: str, load: str, dtype: str, steps: int) -> list[float]:
    import ray
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from pure_rllib.algorithms import RLOOConfig
    from pure_rllib.data.problems import Problem
    from pure_rllib.rewards.base import FunctionVerifier

    num_prompts, group_size, num_tokens = LOADS[load]
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [
        Problem(text, gold, str(i)) for i, (text, gold) in enumerate(problems(load))
    ]
    longest = max(len(tokenizer.encode(row.prompt)) for row in rows)
    ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False)
    config = (
        RLOOConfig()
        .environment(
            "pure_rllib/Math-v0",
            env_config={
                "tokenizer": tokenizer,
                "problems": rows,
                "verifier": FunctionVerifier(is_right),
                "prompt_template": "plain",
                "max_prompt_tokens": longest + 8,
                # Hardly ever sampled, in place of those that end a response.
                "eos_token_ids": [AutoConfig.from_pretrained(model).vocab_size - 1],
            },
        )
        .env_runners(
            num_env_runners=0,
            num_prompts=num_prompts,
            group_size=group_size,
            max_response_tokens=num_tokens,
        )
        .rl_module(model_config={"model": model, "dtype": dtype})
        .training(lr=1.0e-6)
        .learners(num_learners=0, num_gpus_per_learner=torch.cuda.device_count() and 1)
        .debugging(seed=0)
    )
    algo = config.build_algo()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        result = algo.train()
        seconds.append(time.perf_counter() - start)
        assert result["response"]["tokens"] > 0.95 * num_tokens
    algo.stop()
    return seconds


def measure_trl(model: str, load: str, dtype: str, steps: int) -> list[float]:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    num_prompts, group_size, num_tokens = LOADS[load]
    rows = [{"prompt": text, "gold": gold} for text, gold in problems(load)]
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Notes when each step ends; the first begins with the training."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.last = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            now = time.perf_counter()
            seconds.append(now - self.last)
            self.last = now

    def reward(completions: list[str], gold: list[str], **kwargs: Any) -> list[float]:
        pairs = zip(gold, completions, strict=True)
        return [float(is_right(answer, text)) for answer, text in pairs]

    with tempfile.TemporaryDirectory() as out:
        settings = RLOOConfig(
            output_dir=out,
            model_init_kwargs={"dtype": dtype},
            per_device_train_batch_size=num_prompts * group_size,
            num_generations=group_size,
            max_completion_length=num_tokens,
            generation_kwargs={"min_new_tokens": num_tokens},
            temperature=1.0,
            learning_rate=1.0e-6,
            lr_scheduler_type="constant",
            beta=0.0,
            max_steps=steps,
            gradient_checkpointing=False,
            bf16=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=0,
        )
        trainer = RLOOTrainer(
            model=model,
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            callbacks=[Clock()],
        )
        trainer.train()
    return seconds


def made_model(shape: str, out: Path) -> str:
    """Writes a folder of random weights, whose tokenizer has a token per byte."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from pure_rllib.testing import byte_tokenizer

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(**SHAPES[shape])
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return str(out)


def trl_python(folder: Path) -> str:
    """Returns the interpreter of TRL's environment, which is made if it is missing."""
    python = folder / "bin/python"
    if not python.exists():
        print(f"installing {TRL} into {folder}", flush=True)
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "-q"]
    pinned = ["-c", str(REPO / "constraints.txt"), TRL, "torch", "transformers"]
    subprocess.run([*pip, *pinned], check=True)
    return str(python)


def run_side(python: str, side: str, *arguments: str) -> dict[str, Any]:
    """Measures in a process of its own, whose last line is what it found."""
    done = subprocess.run(
        [python, __file__, "--side", side, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(
    options: argparse.Namespace, model: str, trl: str, load: str
) -> dict[str, float]:
    sides = [("ours", sys.executable, options.dtype)]
    sides += [("trl", trl, dtype) for dtype in ("bfloat16", "float32")]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for side, python, dtype in sides:
            steps = str(options.warmup + options.steps)
            one = run_side(
                python, side, "--model", model, "--load", load, "--dtype", dtype,
                *("--steps", steps),
            )  # fmt: skip
            found.setdefault((side, dtype), []).append(one)
            shown = " ".join(f"{s:.2f}" for s in one["seconds"])
            print(
                f"{load:5} {side:4} {dtype:8} {one['gb']:5.1f} GB  s: {shown}",
                flush=True,
            )

    def median(key: tuple[str, str]) -> float:
        measured = [s for one in found[key] for s in one["seconds"][options.warmup :]]
        return statistics.median(measured)

    ours = ("ours", options.dtype)
    best = min((key for key in found if key[0] == "trl"), key=median)
    return {
        "ours_s": median(ours),
        "trl_s": median(best),
        "ratio": median(best) / median(ours),
        "ours_gb": max(one["gb"] for one in found[ours]),
        "trl_gb": max(one["gb"] for one in found[best]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--model", default="toy", help=f"a folder, or of {list(SHAPES)}"
    )
    parser.add_argument("--dtype", default="bfloat16", help="of our weights")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--trl-env", type=Path, default=REPO / ".venv-trl")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--load", choices=LOADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure = measure_ours if options.side == "ours" else measure_trl
        seconds = measure(options.model, options.load, options.dtype, options.steps)
        print(json.dumps({"seconds": seconds, "gb": peak_gb()}))
        return
    trl = trl_python(options.trl_env)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model in SHAPES:
            model = made_model(model, Path(folder))
        found = {load: compare(options, model, trl, load) for load in options.loads}
    line = dict(found.get("short", {}))
    if "long" in found:
        renamed = {"ratio": "ratio_long_prompt"}
        for name, value in found["long"].items():
            line[renamed.get(name, f"{name}_long_prompt")] = value
    print(json.dumps({name: round(value, 3) for name, value in line.items()}))


if __name__ == "__main__":
    main()
