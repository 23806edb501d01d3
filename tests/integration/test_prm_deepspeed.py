"""PRM training with DeepSpeed: processes that share the state train as one does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pure_rllib.cli.main import main
from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.prm_training.solutions import read_solutions, scoring_requests
from pure_rllib.prm_training.trainer import SETTINGS_FILE
from pure_rllib.rewards.prm.model import ProcessRewardModel
from tests.unit.test_prm_trainer import write_policy

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make engines")
pytestmark = pytest.mark.slow


def write_steps(file: Path) -> Path:
    """Solutions with an unequal number of labels, so that their mean is no mean of
    means."""
    rows = [
        {
            "prompt": f"{i}?",
            "steps": [f"{i}"] * (1 + i % 4),
            "labels": [(i + k) % 3 > 0 for k in range(1 + i % 4)],
        }
        for i in range(24)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_two_processes_with_zero_2_train_as_one_without(tmp_path: Path):
    steps = write_steps(tmp_path / "steps.jsonl")
    words = ["prm-train", "--model", str(write_policy(tmp_path / "policy"))]
    words += ["--data", str(steps), "--after-first-error", "keep"]
    words += ["--head-lr", "0.02", "--lr", "1e-3", "--head-dropout", "0"]
    # Two forward passes per process and update, and clipping that bites.
    words += ["--batch-size", "8", "--micro-batch-size", "2", "--log-every", "1"]
    words += ["--max-grad-norm", "0.1", "--head-epochs", "1"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert main([*words, "--out", str(alone)]) == 0

    config = tmp_path / "zero2.json"
    # Small buckets, so that gradients fill several.
    zero = {"stage": 2, "reduce_bucket_size": 4000}
    config.write_text(json.dumps({"zero_optimization": zero}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "2", "-m", "pure_rllib.cli.main"]
    done = subprocess.run(
        [*launch, *words, "--out", str(shared), "--deepspeed", str(config)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # One process prints, a line per update.
    stages = [line.split()[0] for line in done.stdout.splitlines() if "loss" in line]
    assert stages == ["head"] * 3 + ["all"] * 3

    # Losses and gradients too: AdamW would hide a wrong factor of theirs.
    ours, theirs = (
        json.loads((folder / SETTINGS_FILE).read_text())["history"]
        for folder in (alone, shared)
    )
    for stage in ("head", "all"):
        for one, two in zip(ours[stage][:3], theirs[stage][:3], strict=True):
            for key in ("loss", "grad_norm", "learning_rate"):
                assert one[key] == pytest.approx(two[key], rel=1e-4), (stage, key)
    ours, theirs = (load_file(f / "model.safetensors") for f in (alone, shared))
    before = load_file(tmp_path / "policy" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=0)
        assert name.startswith("score") or (weight - before[name]).abs().max() > 1e-3

    prm = ProcessRewardModel.from_pretrained(str(shared))
    solutions = read_solutions(str(steps))
    requests = scoring_requests(solutions, prm.tokenizer, PromptTemplate())
    assert [len(row) for row in prm.score(requests)] == [
        len(s.steps) for s in solutions
    ]
