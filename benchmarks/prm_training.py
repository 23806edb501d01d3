"""Two small PRMs, trained and measured by the commands that everyone has.

    python benchmarks/prm_training.py arithmetic OUT
    python benchmarks/prm_training.py prm800k OUT --data DATA

`arithmetic` writes labelled solutions of chain arithmetic: generated ones with errors,
and samples of the embedded policy, on held-out problems for the benchmark. It starts
from that policy: a few minutes from random weights do not teach the arithmetic. The
embedded PRM is measured beside. `prm800k` takes PRM800K, ProcessBench, PRMBench and the
tokenizer of Qwen2.5 as published from DATA, and starts from a Qwen2 of random weights.
The commands are printed, and can be run by hand; what they print and write are the
figures of docs/prm_training.md.
"""

import argparse
import json
import random
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from pure_rllib.arithmetic.checker import check_steps
from pure_rllib.arithmetic.prm_quality import sample_texts
from pure_rllib.arithmetic.task import TASK_Z, steps_of
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.arithmetic.traces import TraceMaker
from pure_rllib.cli.main import main
from pure_rllib.models.loading import resolve_model

POLICY = "embedded:arithmetic-policy"
PRM = "embedded:arithmetic-prm"
Row = dict[str, Any]


def write_model(folder: Path, config: Qwen2Config, tokenizer: Any, seed: int) -> None:
    """Writes a language model of random weights."""
    torch.manual_seed(seed)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Writes JSON Lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def labelled(prompt: str, steps: Sequence[str]) -> Row:
    """Judges each step by the exact checker."""
    labels = check_steps(prompt, steps, modulus=TASK_Z.modulus).labels.tolist()
    return {"prompt": prompt, "steps": list(steps), "labels": labels}


def generated(prompts: Sequence[str], seed: int) -> list[Row]:
    """Writes a solution of each problem, a third of them without errors."""
    rng = random.Random(seed)
    maker = TraceMaker(TASK_Z, build_tokenizer(TASK_Z).get_vocab())
    return [
        labelled(p, maker.corrupt_steps(p, rng, rng.choice((0.0, 0.15, 0.45))))
        for p in prompts
    ]


def sampled(prompts: Sequence[str], seed: int) -> list[Row]:
    """Samples the embedded policy once per problem."""
    folder = resolve_model(POLICY)
    policy = Qwen2ForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    groups = sample_texts(policy, tokenizer, prompts, seed=seed)
    pairs = [(p, steps_of(g[0])) for p, g in zip(prompts, groups, strict=True)]
    return [labelled(prompt, steps) for prompt, steps in pairs if steps]


def as_benchmark(rows: Sequence[Row]) -> list[Row]:
    """The same solutions as ProcessBench stores them."""
    return [
        {
            "id": str(n),
            "problem": row["prompt"],
            "steps": row["steps"],
            "label": row["labels"].index(False) if False in row["labels"] else -1,
        }
        for n, row in enumerate(rows)
    ]


def run(words: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Prints a command, runs it, and prints how long it took."""
    options = [str(x) for name, value in settings.items() for x in (f"--{name}", value)]
    print(f"$ pure-rllib {shlex.join([*words, *options])}", flush=True)
    start = time.monotonic()
    if main([*words, *options]):
        raise SystemExit(1)
    print(f"{(time.monotonic() - start) / 60:.1f} minutes\n", flush=True)


def arithmetic(out: Path, num_solutions: int, settings: Mapping[str, Any]) -> None:
    """Chain arithmetic; a quarter of the solutions are samples."""
    prompts = [TASK_Z.problem(i, seed=7).prompt for i in range(num_solutions)]
    quarter = num_solutions // 4
    rows = sampled(prompts[:quarter], 0) + generated(prompts[quarter:], 0)
    write_rows(out / "steps" / "train.jsonl", rows)
    held_out = [problem.prompt for problem in TASK_Z.held_out(1000, seed=7)]
    measured = {"generated": generated(held_out, 1), "sampled": sampled(held_out, 1)}
    for name, part in measured.items():
        write_rows(out / "bench" / f"{name}.jsonl", as_benchmark(part))
    write_rows(out / "held_out.jsonl", [*measured["generated"], *measured["sampled"]])
    words = ["prm-train", "--model", POLICY, "--data", f"{out}/steps"]
    run([*words, "--out", f"{out}/prm"], settings)
    for prm, name in ((f"{out}/prm", "quality"), (PRM, "quality_embedded")):
        words = ["prm-eval", "--prm", prm, "--processbench", f"{out}/bench"]
        words += ["--steps", f"{out}/held_out.jsonl", "--arithmetic"]
        run(words, {"out": f"{out}/{name}"})


def prm800k(out: Path, data: Path, settings: Mapping[str, Any]) -> None:
    """PRM800K's first phase, on problems that its test part does not have."""
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizers/qwen2.5")
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    write_model(out / "start", config, tokenizer, 0)
    steps = data / "process/prm800k"
    words = ["prm-train", "--model", f"{out}/start", "--out", f"{out}/prm"]
    words += ["--data", f"{steps}/phase1_train_plus.stepwise-critic.parquet"]
    run(words, settings)
    measure = ["prm-eval", "--prm", f"{out}/prm"]
    test = f"{steps}/phase1_test.stepwise-critic.parquet"
    run([*measure, "--steps", test], {"out": f"{out}/steps_quality"})
    prmbench = next((data / "process").rglob("subset400_target_data.jsonl"))
    words = [*measure, "--processbench", f"{data}/process/processbench"]
    words += ["--prmbench", str(prmbench)]
    # Per subset: the benchmarks' solutions are long.
    run(words, {"out": f"{out}/quality", "limit": 100})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=["arithmetic", "prm800k"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the published data")
    parser.add_argument("--solutions", type=int, default=16_000, help="of arithmetic")
    options = parser.parse_args()
    small = {"head-epochs": 0, "batch-size": 32, "micro-batch-size": 32}
    if options.task == "arithmetic":
        chosen = small | {"after-first-error": "keep", "head-dropout": 0, "lr": 2e-3}
        arithmetic(options.out, options.solutions, chosen | {"epochs": 3})
    elif options.data is None:
        parser.error("prm800k needs --data")
    else:
        chosen = small | {"lr": 1e-3, "max-length": 512, "limit": 2000}
        chosen["micro-batch-size"] = 8
        prm800k(options.out, options.data, chosen)
