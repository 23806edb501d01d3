"""Graded verdicts: the score is the reward, the outcome says what is correct."""

from typing import Any

import numpy as np
import pytest
import torch

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.data.problems import Problem
from pure_rllib.envs.vector import ResponseJudge
from pure_rllib.generation.base import Response
from pure_rllib.reporting.metrics import FAMILIES, METRICS
from pure_rllib.reporting.response_metrics import response_metrics
from pure_rllib.rewards.base import FunctionVerifier, Outcome, Verdict
from pure_rllib.rollouts.group import SampledResponse
from pure_rllib.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()
SPLITTER = StepSplitter.from_tokenizer(TOKENIZER)
PROBLEM = Problem("p", "2")


@pytest.mark.parametrize(
    ("found", "outcome", "reward"),
    [
        (True, "correct", 1.0),
        (False, "incorrect", 0.0),
        (np.bool_(True), "correct", 1.0),
        (None, "incorrect", 0.0),
        (0.75, "correct", 0.75),
        (np.float32(0.5), "incorrect", 0.5),
        (1, "correct", 1.0),
        (torch.tensor(0.25), "incorrect", 0.25),
        (np.array([0.75]), "correct", 0.75),
        (Verdict("no_answer"), "no_answer", 0.0),
        (Verdict("incorrect", score=0.9), "incorrect", 0.9),
        (Verdict("correct", score=0.2), "correct", 0.2),
    ],
)
def test_what_a_function_may_say(found, outcome: Outcome, reward: float):
    (verdict,) = FunctionVerifier(lambda gold, text: found).verify(["2"], ["x"])
    assert (verdict.outcome, verdict.reward) == (outcome, reward)
    assert type(verdict.reward) is float


def test_a_function_that_says_something_else_is_an_error():
    found: Any = "incorrect"
    with pytest.raises(ValueError, match=r"returned .incorrect.; it must return True"):
        FunctionVerifier(lambda gold, text: found).verify(["2"], ["x"])


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan")])
def test_a_score_out_of_its_range_is_an_error(score):
    with pytest.raises(ValueError, match=r"`score` .* must be in \[0, 1\]"):
        FunctionVerifier(lambda gold, text: score).verify(["2"], ["x"])


def graded(gold: str, text: str) -> Verdict:
    form, value = 0.5 * ("box" in text), 0.5 * (gold in text)
    outcome: Outcome = "correct" if value else "incorrect"
    parts: dict[str, Any] = {"form": form, "value": np.float32(value)}
    return Verdict(outcome, score=form + value, parts=parts if text != "x" else {})


def test_parts_are_logged_by_name():
    judge = ResponseJudge(TOKENIZER, SPLITTER, None, FunctionVerifier(graded))
    texts = ["box 2", "box 3", "2", "x"]
    responses = [np.array(TOKENIZER.encode(text)) for text in texts]
    prompts = [np.array([1])] * len(texts)
    judged, _ = judge.judge([PROBLEM] * len(texts), prompts, responses)
    records = [
        SampledResponse(
            group_id=0,
            problem=PROBLEM,
            prompt_ids=prompts[0],
            response=Response(ids, np.zeros(len(ids), np.float32), terminated=True),
            judged=one,
            weights_version=0,
        ).numbers()
        for ids, one in zip(responses, judged, strict=True)
    ]
    assert [r.verifiable_reward for r in records] == [1.0, 0.5, 0.5, 0.0]
    assert [r.correct for r in records] == [True, False, True, False]
    metrics = response_metrics(records)
    assert all(name in METRICS or name.startswith(FAMILIES) for name in metrics)
    assert metrics["accuracy"] == 0.5 and metrics["reward/verifiable"] == 0.5
    # The last response has no parts.
    assert metrics["verifier/part/form"] == pytest.approx(2 / 6)
    assert metrics["verifier/part/value"] == pytest.approx(2 / 6)
