import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

from pure_rllib.arithmetic.prm_quality import (
    area_under_curve,
    first_error_accuracy,
    format_quality,
    score_traces,
)
from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.arithmetic.traces import IGNORED, TraceMaker
from pure_rllib.models.loading import policy_config, random_model
from pure_rllib.testing import tiny_model_config


def test_area_under_curve_counts_pairs():
    # Pairs (positive, negative): .9>.5, .9>.1, .3<.5, .3>.1 -> 3 of 4.
    assert area_under_curve([0.9, 0.3], [0.5, 0.1]) == 0.75
    assert area_under_curve([0.5], [0.5]) == 0.5
    assert math.isnan(area_under_curve([], [0.5]))


def test_first_error_f1_is_the_harmonic_mean_of_two_shares():
    scores = [np.array(s) for s in ([1, -1, 1], [1, 1, -1], [1, 1], [1, -1], [1, 1])]
    first_errors = [1, 1, -1, -1, -1]
    # With an error: found, missed -> 1/2. Without: 2/3 left alone. 2*(1/2)(2/3)/(7/6).
    assert first_error_accuracy(scores, first_errors).f1 == pytest.approx(4 / 7)


def test_a_scorer_that_likes_everything_has_no_f1():
    assert first_error_accuracy([np.ones(2), np.ones(1)], [1, -1]).f1 == 0.0


def test_scores_are_read_at_the_newlines_and_do_not_hang_on_the_batch():
    tokenizer = build_tokenizer(TASK_Z)
    config = policy_config(tiny_model_config(len(tokenizer), num_labels=2))
    prm = random_model(AutoModelForTokenClassification, config, 0).eval()
    maker = TraceMaker(TASK_Z, tokenizer.get_vocab())
    traces = [
        maker.trace("3-2+4=?", ["3-2=1", "1+4=5", "\\boxed{5}"]),
        maker.trace("3-2+4=?", ["\\boxed{1}"]),
    ]
    together = score_traces(prm, traces, tokenizer.pad_token_id)
    for trace, scores in zip(traces, together, strict=True):
        logits = prm(input_ids=torch.tensor([trace.ids])).logits[0].detach().double()
        ends = [i for i, label in enumerate(trace.labels) if label != IGNORED]
        assert [trace.ids[i] for i in ends] == [tokenizer.get_vocab()["\n"]] * len(ends)
        probabilities = logits[ends].softmax(-1)
        expected = probabilities[:, 1] - probabilities[:, 0]
        np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)


def test_the_figures_print_as_a_table():
    figures = {
        "auc": {"result": 0.99, "operand_a": 0.5},
        "auc_all": 0.75,
        "first_error_f1": 0.6,
        "first_error_f1_sampled": 0.5,
        "auc_minimum": 0.9,
    }
    lines = format_quality(figures).splitlines()
    assert len(lines) == 6
    assert lines[1].split() == ["AUC", "operand_a", "0.500"]
