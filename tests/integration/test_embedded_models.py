"""The embedded models as a user gets them: made on first use, at the stated quality.

They are made in the ordinary cache, so a second run of this test takes seconds.
"""

import json
from itertools import pairwise

import numpy as np
import pytest
from transformers import Qwen2ForCausalLM

from pure_rllib.arithmetic.cache import prepare, resolve_model
from pure_rllib.arithmetic.commands import prm_by_commands
from pure_rllib.arithmetic.prm_quality import score_traces
from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.arithmetic.traces import TraceMaker
from pure_rllib.arithmetic.training import steps_of
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.prm.model import ProcessRewardModel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared():
    return prepare(["arithmetic-policy", "arithmetic-prm"])


def test_the_start_policy_is_half_taught(prepared):
    figures = prepared["arithmetic-policy"]["figures"]
    assert 0.5 <= figures["greedy"] <= 0.75
    assert 0.2 <= figures["sampled"] <= 0.38


def test_the_prm_knows_each_kind_of_error(prepared):
    figures = prepared["arithmetic-prm"]["figures"]
    assert min(figures["auc"].values()) >= 0.85, figures["auc"]
    assert figures["auc"]["result"] >= 0.95
    assert figures["first_error_f1"] >= 0.85


def test_the_step_scorer_reads_the_prm_as_it_was_taught(prepared):
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


def test_commands_make_a_prm(prepared, tmp_path):
    data = tmp_path / "steps.jsonl"
    row = {"prompt": "3-2=?", "steps": ["3-2=1"], "labels": [True]}
    data.write_text(json.dumps(row) + "\n")
    commands = (
        f"prm-train --model embedded:arithmetic-prm --data {data} --out FOLDER/first "
        "--head-epochs 0 --lr 1e-9 --batch-size 1 --micro-batch-size 1",
        f"prm-train --model FOLDER/first --data {data} --out FOLDER/prm "
        "--head-epochs 0 --lr 1e-9 --batch-size 1 --micro-batch-size 1",
    )
    told = []
    folder = resolve_model("embedded:arithmetic-policy")
    policy = Qwen2ForCausalLM.from_pretrained(folder).eval()
    prm, tokenizer, figures = prm_by_commands(
        commands, policy, TASK_Z, lambda *progress: told.append(progress)
    )
    assert [fraction for _, fraction in told] == [0.0, 0.5]
    # Hardly trained, it is the PRM that it was.
    before = prepared["arithmetic-prm"]["figures"]
    assert figures["first_error_f1"] == pytest.approx(
        before["first_error_f1"], abs=0.02
    )
    assert figures["seconds"] > 0
    assert tokenizer.get_vocab()["\n"] < prm.config.vocab_size
