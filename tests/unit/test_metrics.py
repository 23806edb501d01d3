import math

import numpy as np
import pytest

from pure_rllib.reporting.metrics import METRICS
from pure_rllib.reporting.records import ResponseRecord
from pure_rllib.reporting.response_metrics import response_metrics


def record(group="a", tokens=4, spans=((0, 2), (2, 4)), **fields):
    return ResponseRecord(
        group_id=group,
        prompt="1+1",
        answer="2",
        response_text="1\n\n2",
        response_tokens=["x"] * tokens,
        token_ids=list(range(tokens)),
        step_spans=spans,
        **fields,
    )


@pytest.fixture
def batch():
    """Group a: right (4 tokens) and wrong (2, truncated); group b: unknown, blank."""
    return [
        record(
            step_rewards=[0.9, 0.1],
            verifiable_reward=1.0,
            outcome="correct",
            num_separators=1,
            model_reward=1.5,
            total_reward=2.0,
            num_prompt_tokens=10,
            repetition=0.2,
            reflection=3,
            hacks=["repetition"],
        ),
        record(
            tokens=2,
            spans=((0, 2),),
            step_rewards=[0.4],
            verifiable_reward=0.0,
            outcome="no_answer",
            terminated=False,
            model_reward=-0.5,
            total_reward=0.5,
            num_prompt_tokens=10,
        ),
        record(
            "b",
            tokens=2,
            spans=((0, 2),),
            step_rewards=[-1.0],
            has_visible=False,
            hacks=["chatter"],
            model_reward=-4.0,
            total_reward=-1.0,
            num_prompt_tokens=20,
        ),
    ]


def test_numbers_by_hand(batch):
    metrics = response_metrics(batch)
    expected = {
        "reward/process_mean": (0.9 + 0.1 + 0.4 - 1.0) / 4,
        "reward/process_min": (0.1 + 0.4 - 1.0) / 3,
        "reward/verifiable": 0.5,
        "reward/model": (1.5 - 0.5 - 4.0) / 3,
        "reward/total": (2.0 + 0.5 - 1.0) / 3,
        "accuracy": 0.5,
        "groups/verified": 1.0,
        "pass_at_g": 1.0,  # of one group with gold answers
        "prm/verifier_agreement": 0.5,  # the wrong response's minimum is above 0
        "response/tokens": 8 / 3,
        "response/tokens_correct": 4.0,
        "response/tokens_incorrect": 2.0,
        "response/steps": 4 / 3,
        "response/tokens_per_step": 2.0,
        "response/separator_rate": 1 / 8,
        "response/blank_share": 1 / 3,
        "response/one_step_share": 2 / 3,
        "response/truncated_share": 1 / 3,
        "response/no_answer_share": 0.5,
        "response/repetition": 0.2 / 3,
        "response/reflection": 1.0,
        "prompt/tokens": 15.0,  # per prompt, not per response
        "verifier/correct": 1.0,
        "verifier/incorrect": 0.0,
        "verifier/no_answer": 1.0,
        "verifier/timeout": 0.0,
        "verifier/error": 0.0,
        "hacking/empty_step_share": 0.0,
        "hacking/short_share": 0.0,
        "hacking/repetition_share": 1 / 3,
        "hacking/after_answer_share": 0.0,
        "hacking/chatter_share": 1 / 3,
        # The only correct response repeats itself.
        "hacking/pseudo_positive_share": 1.0,
        # The minimum of the wrong response is 0.4; the third has no gold answer.
        "hacking/hacked_share": 0.5,
    }
    assert metrics == pytest.approx(expected)


def test_arrays_and_any_order_are_as_good_as_lists(batch):
    before = response_metrics(batch)
    for r in batch:
        r.step_rewards = np.asarray(r.step_rewards, dtype=np.float64)
        r.step_spans = np.asarray(r.step_spans)
    assert response_metrics(batch) == pytest.approx(before)
    assert response_metrics(batch[::-1]) == pytest.approx(before)


def test_every_key_is_registered_whatever_is_measured(batch):
    full, empty = response_metrics(batch), response_metrics([])
    assert list(full) == list(empty)
    assert full.keys() <= METRICS.keys()
    assert all(type(value) is float for value in (*full.values(), *empty.values()))
    assert math.isnan(empty["accuracy"]) and empty["verifier/correct"] == 0.0


def test_registry_is_complete():
    for metric in METRICS.values():
        assert metric.meaning.endswith(".") and metric.estimator.endswith(".")
        assert metric.unit and metric.group


def test_record_refuses_lengths_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`advantages` \(3 values\) must have 4"):
        record(advantages=[0.0] * 3)
    with pytest.raises(ValueError, match=r"`step_rewards` \(1 values\) must have 2"):
        record(step_rewards=[0.0])


def test_correct_is_what_the_verifier_says_whatever_the_reward():
    graded = [record(verifiable_reward=0.8, outcome="incorrect"), record()]
    graded.append(record("b", verifiable_reward=0.4, outcome="correct"))
    assert [r.correct for r in graded] == [False, None, True]
    metrics = response_metrics(graded)
    assert metrics["accuracy"] == 0.5
    assert metrics["reward/verifiable"] == pytest.approx(0.6)
