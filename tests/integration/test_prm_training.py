"""A PRM from labelled steps to its benchmark, on chain arithmetic."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pure_rllib.arithmetic.checker import check_steps
from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.arithmetic.traces import TraceMaker
from pure_rllib.cli.main import main
from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.models.loading import resolve_model
from pure_rllib.prm_training.solutions import read_solutions, scoring_requests
from pure_rllib.rewards.prm.model import ProcessRewardModel

pytestmark = pytest.mark.slow


def labelled(number: int, seed: int) -> list[dict[str, Any]]:
    maker = TraceMaker(TASK_Z, build_tokenizer(TASK_Z).get_vocab())
    rng = random.Random(seed)
    rows = []
    for i in range(number):
        prompt = TASK_Z.problem(i, seed=seed).prompt
        steps = maker.corrupt_steps(prompt, rng, rng.choice((0.0, 0.15, 0.45)))
        labels = check_steps(prompt, steps, modulus=TASK_Z.modulus).labels.tolist()
        rows.append({"prompt": prompt, "steps": steps, "labels": labels})
    return rows


def benchmark_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same solutions as ProcessBench stores them."""
    return [
        {
            "id": f"arithmetic-{i}",
            "problem": row["prompt"],
            "steps": row["steps"],
            "label": row["labels"].index(False) if False in row["labels"] else -1,
        }
        for i, row in enumerate(rows)
    ]


def test_train_then_measure_then_score(tmp_path: Path, capsys: pytest.CaptureFixture):
    data = tmp_path / "steps"
    data.mkdir()
    lines = [json.dumps(row) for row in labelled(2500, seed=2)]
    (data / "part.jsonl").write_text("\n".join(lines) + "\n")
    bench = tmp_path / "bench"
    bench.mkdir()
    held_out = labelled(200, seed=99)
    for k, name in enumerate(("gsm8k", "math")):
        rows = benchmark_rows(held_out[k::2])
        (bench / f"{name}.json").write_text(json.dumps(rows))
    steps = tmp_path / "held_out.jsonl"
    steps.write_text("\n".join(json.dumps(row) for row in held_out) + "\n")
    prm_folder, out = tmp_path / "prm", tmp_path / "quality"
    words = ["prm-train", "--model", "embedded:arithmetic-policy", "--data", str(data)]
    words += ["--out", str(prm_folder), "--after-first-error", "keep"]
    words += ["--head-lr", "3e-3", "--head-epochs", "0.5", "--lr", "1.5e-3"]
    words += ["--epochs", "1", "--batch-size", "32", "--micro-batch-size", "32"]
    assert main([*words, "--head-dropout", "0"]) == 0
    words = ["prm-eval", "--prm", str(prm_folder), "--processbench", str(bench)]
    assert main([*words, "--steps", str(steps), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "average F1" in printed
    report = json.loads((out / "prm_eval.json").read_text())
    # It has learned something: chance is 0.5 for both.
    assert report["steps"]["auc"] > 0.55, report["steps"]
    assert (out / "prm_eval.png").stat().st_size > 10_000

    # The figures are those of the scores beside them.
    lines = (out / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    for name, figures in report["processbench"]["subsets"].items():
        hits: dict[bool, list[bool]] = {True: [], False: []}
        for row in predictions:
            if row["set"] == "processbench" and row["subset"] == name:
                low = [s < figures["threshold"] for s in row["scores"]]
                said = low.index(True) if True in low else -1
                hits[row["first_error"] == -1].append(said == row["first_error"])
        accuracies = [sum(hits[k]) / len(hits[k]) for k in (False, True)]
        assert figures["error_accuracy"] == pytest.approx(accuracies[0])
        assert figures["correct_accuracy"] == pytest.approx(accuracies[1])

    # Half a minute of training does not make a reward that withstands a policy.
    capsys.readouterr()
    assert main(["prm-eval", "--prm", str(prm_folder), "--arithmetic", "--gate"]) == 1
    assert "gate: closed" in capsys.readouterr().out

    # The folder is a reward model, and scores as it was measured.
    prm = ProcessRewardModel.from_pretrained(str(prm_folder))
    solutions = read_solutions(str(steps))
    requests = scoring_requests(solutions, prm.tokenizer, PromptTemplate())
    scores = prm.score(requests)
    assert all((np.abs(row) <= 1).all() for row in scores)
    measured = [row["scores"] for row in predictions if row["set"] == "steps"]
    for ours, theirs in zip(scores, measured, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)

    # Beside another one each step gets the lower score.
    other = resolve_model("embedded:arithmetic-prm")
    words = ["prm-eval", "--prm", str(prm_folder), other, "--steps", str(steps)]
    assert main([*words, "--out", str(out / "both")]) == 0
    lines = (out / "both" / "predictions.jsonl").read_text().splitlines()
    others = ProcessRewardModel.from_pretrained(other).score(requests)
    for line, ours, theirs in zip(lines, scores, others, strict=True):
        lowest = np.minimum(ours, theirs)
        np.testing.assert_allclose(json.loads(line)["scores"], lowest, atol=1e-5)
