"""The embedded models as a user gets them: files of the package, of stated quality."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from pure_rllib.arithmetic.prm_quality import score_traces
from pure_rllib.arithmetic.task import TASK_Z, steps_of
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.arithmetic.traces import TraceMaker
from pure_rllib.envs.arithmetic import TASKS
from pure_rllib.models.loading import resolve_model
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.prm.model import ProcessRewardModel

REPO = Path(__file__).resolve().parents[2]
POLICIES = {reference: task for task, reference, _ in TASKS.values()}
PRMS = ("embedded:arithmetic-prm", "embedded:arithmetic-prm-rounds")
MAX_BYTES = 9_000_000


def recipe_of(reference: str) -> dict[str, Any]:
    """What an embedded model was made from, and its measured figures."""
    return json.loads(Path(resolve_model(reference), "recipe.json").read_text())


@pytest.mark.parametrize("reference", [*POLICIES, *PRMS])
def test_every_model_loads(reference: str) -> None:
    folder = resolve_model(reference)
    is_prm = reference in PRMS
    auto = AutoModelForTokenClassification if is_prm else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = POLICIES.get(reference, TASK_Z)
    assert tokenizer.get_vocab() == build_tokenizer(task).get_vocab()
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.eos_token_id == model.config.eos_token_id


def test_the_package_stays_small() -> None:
    folders = {Path(resolve_model(ref)) for ref in (*POLICIES, *PRMS)}
    [models] = {folder.parent for folder in folders}
    assert set(models.iterdir()) == folders
    sizes = [path.stat().st_size for path in models.rglob("*.safetensors")]
    assert len(sizes) == len(folders) and sum(sizes) <= MAX_BYTES


def test_the_start_policy_is_half_taught() -> None:
    figures = recipe_of("embedded:arithmetic-policy")["figures"]
    assert 0.5 <= figures["greedy"] <= 0.75
    assert 0.2 <= figures["sampled"] <= 0.38


@pytest.mark.parametrize("reference", PRMS)
def test_the_prm_knows_each_kind_of_error(reference: str) -> None:
    figures = recipe_of(reference)["figures"]
    assert min(figures["auc"].values()) >= 0.85, figures["auc"]
    assert figures["auc"]["result"] >= 0.95
    assert figures["first_error_f1"] >= 0.85


def test_the_step_scorer_reads_the_prm_as_it_was_taught() -> None:
    prm = ProcessRewardModel.from_pretrained(resolve_model("embedded:arithmetic-prm"))
    tokenizer = prm.tokenizer
    prompt, text = "3-2+4+1=?", "3-2=1\n\n1+5=6\n\n6+1=7\n\n\\boxed{7}"
    response_ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    ends = [
        i + 1 for i, t in enumerate(response_ids) if tokenizer.decode([t]) == "\n\n"
    ]
    bounds = [0, *ends, len(response_ids)]
    request = ScoringRequest(
        prompt,
        None,
        np.array(tokenizer(prompt)["input_ids"]),
        np.array(response_ids),
        np.array(list(pairwise(bounds))),
        tuple(steps_of(text)),
    )
    trace = TraceMaker(TASK_Z, tokenizer.get_vocab()).trace(prompt, steps_of(text))
    [expected] = score_traces(prm.model, [trace], tokenizer.pad_token_id)
    [scores] = prm.score([request])
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert scores[0] > 0 > scores[1]


@pytest.mark.slow
def test_the_smallest_model_is_made_again(tmp_path: Path) -> None:
    name = "arithmetic-policy"
    subprocess.run(
        [sys.executable, "-m", "scripts.embedded_models", name, "--out", tmp_path],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    made = json.loads((tmp_path / name / "recipe.json").read_text())
    shipped = recipe_of(f"embedded:{name}")
    for recipe in (made, shipped):
        del recipe["figures"]["seconds"]
    assert made["recipe"] == shipped["recipe"]
    # Another machine rounds differently, and 200 problems are greedy ones.
    assert made["figures"] == pytest.approx(shipped["figures"], abs=0.06)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / name).config.vocab_size == 22
