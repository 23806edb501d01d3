"""From what an iteration did to its metrics."""

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pure_rllib.algorithms import GRPOConfig, PUREConfig
from pure_rllib.algorithms.metrics import (
    RunCounts,
    evaluation_metrics,
    iteration_metrics,
    single_step_warning,
)
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.reporting.metrics import METRICS
from pure_rllib.reporting.records import ResponseRecord
from pure_rllib.rewards.base import Verdict
from pure_rllib.rollouts.env_summary import EnvSummary
from pure_rllib.rollouts.group import Group, has_signal
from pure_rllib.rollouts.sampler import SampledBatch


def record(
    group: int, num_tokens: int, rewards: list[float], correct: bool | None
) -> ResponseRecord:
    return ResponseRecord(
        group_id=str(group),
        prompt="1+1=?",
        answer=None if correct is None else "2",
        response_text="2",
        response_tokens=None,
        token_ids=[0] * num_tokens,
        step_spans=[(0, num_tokens)],
        step_rewards=rewards,
        verifiable_reward=None if correct is None else float(correct),
        outcome=None if correct is None else "correct" if correct else "incorrect",
        total_reward=sum(rewards),
        num_prompt_tokens=5,
        metadata={"weights_lag": group % 2},
    )


def group(group_id: int, *records: ResponseRecord) -> Group:
    return Group(group_id, [], sum(5 + r.num_tokens for r in records), list(records))


def sampled() -> SampledBatch:
    """Group 4 differs in what it earned, group 5 does not."""
    return SampledBatch(
        groups=[
            group(4, record(4, 6, [0.5], True), record(4, 2, [-1.0], False)),
            group(5, record(5, 3, [0.5], None), record(5, 1, [0.5], None)),
        ],
        seconds={"sample": 2.0, "score": 0.5, "verify": 0.25, "sync": 0.125},
        num_resampled=1,
        counts=Counter({"prm/overlong": 3, "prm/retries": 2}),
        weights_version=6,
    )


LEARNED = {"num_tokens": 12.0, "loss/policy": 0.75, "advantage/mean": 0.1}
SECONDS = {"wait": 3.0, "learn": 4.0, "publish": 0.375, "iteration": 8.0}


SHARE = "response/one_step_share"
ENV = EnvSummary(
    num_problems=8,
    num_answers=8,
    num_eval_problems=0,
    num_dropped_prompts=2,
    probe_ids=((1, 2),),
    tokenizer_size=32,
    max_prompt_tokens=16,
    max_response_tokens=16,
    has_step_scorer=True,
    has_verifier=True,
    default_policy=None,
)


def metrics(
    counts: RunCounts | None = None,
    seconds: dict[str, float] = SECONDS,
    env: EnvSummary = ENV,
    batch: SampledBatch | None = None,
    **settings: Any,
) -> dict[str, float]:
    return iteration_metrics(
        batch or sampled(),
        num_kept=1,
        learned=LEARNED,
        seconds=seconds,
        counts=counts or RunCounts(cursor=10, weights_version=7),
        env=env,
        config=PUREConfig().training(**settings),
    )


def test_metrics_by_hand() -> None:
    made = metrics(num_epochs=2)
    # 6 + 2 + 3 + 1 tokens in 4 responses
    assert made["response/tokens"] == 3.0
    assert made["throughput/sampled_tokens_per_s"] == 12 / 2.0
    # 12 tokens, passed over twice, in 4 seconds
    assert made["throughput/learned_tokens_per_s"] == 24 / 4.0
    # Group 5 earned the same twice, but the token baseline pays its lengths, 3 and 1.
    assert made["groups/no_signal_share"] == 0.0
    assert metrics(baseline="response")["groups/no_signal_share"] == 0.5
    assert made["groups/dropped"] == 1.0
    assert made["groups/resampled"] == 1.0
    assert made["prm/overlong"] == 3.0 and made["prm/retries"] == 2.0
    assert made["verifier/opinion_accepted"] == 0.0
    assert made["throughput/scoring_share"] == 0.5 / 8.0
    assert made["prompt/dropped"] == 2.0
    assert made["epoch"] == 10 / 8
    assert made["problems_seen"] == 10.0
    assert made["accuracy"] == 0.5
    assert made["seconds/sync"] == 0.125 + 0.375
    # 8 - (2 + .5 + .25 + 4 + .5)
    assert made["seconds/other"] == 0.75
    # Waited for longer than the env runners worked: nothing was hidden.
    assert made["seconds/wait"] == 3.0
    assert made["sampling/overlap_share"] == 0.0
    # Group 5's two responses are one version old.
    assert made["weights/lag_mean"] == 0.5
    assert made["weights/lag_max"] == 1.0
    assert made["env_runners/episode_return_mean"] == 0.5 / 4  # .5 - 1 + .5 + .5


def test_what_was_sampled_during_the_update_before_is_no_time_of_this_iteration() -> (
    None
):
    made = metrics(seconds={**SECONDS, "wait": 0.575, "iteration": 5.0})
    # Env runners worked for 2 + .5 + .25 + .125 = 2.875 seconds; .575 was waited for.
    assert made["sampling/overlap_share"] == pytest.approx(0.8)
    # 5 - (.575 + 4 + .375)
    assert made["seconds/other"] == pytest.approx(0.05)


def test_the_version_is_that_of_the_weights_that_sampled() -> None:
    # By now the learner has published version 7.
    assert metrics()["weights/version"] == 6.0


def test_what_the_learner_knows_wins_and_the_rest_is_nan() -> None:
    made = metrics()
    assert made["advantage/mean"] == 0.1
    assert math.isnan(made["kl/reference"])
    registered = {name for name in METRICS if not name.startswith("evaluation/")}
    of_turns = {name for name in METRICS if "turns" in METRICS[name].needs}
    assert registered - of_turns <= made.keys()
    assert of_turns.isdisjoint(made)
    rllibs = {"num_env_steps_sampled_lifetime"}
    ours = {name for name in made if not name.startswith("env_runners/")} - rllibs
    assert ours <= METRICS.keys()


@pytest.mark.parametrize(
    ("env", "absent", "present"),
    [
        (
            replace(ENV, has_step_scorer=False),
            {"reward/process_mean", "prm/overlong", "hacking/hacked_share"},
            {"reward/total", "accuracy", "hacking/pseudo_positive_share"},
        ),
        (
            replace(ENV, has_verifier=False),
            {"accuracy", "verifier/correct", "groups/verified", "hacking/hacked_share"},
            {"reward/total", "reward/process_min", "seconds/score"},
        ),
    ],
)
def test_what_the_environment_lacks_has_no_metric(env, absent, present) -> None:
    made = metrics(env=env)
    assert absent <= METRICS.keys() - made.keys() and present <= made.keys()
    assert env.absent_metrics.isdisjoint(made)
    greedy = [group(0, record(0, 4, [1.0], None))]
    evaluated = evaluation_metrics(greedy, [], num_samples=0, absent=env.absent_metrics)
    assert ("greedy_accuracy" in evaluated) == env.has_verifier
    assert "response_tokens" in evaluated


def test_unscored_responses_have_no_process_reward() -> None:
    batch = sampled()
    for one in batch.groups:
        for unscored in one.records:
            unscored.step_rewards = None
    made = metrics(batch=batch, process_reward_coeff=0.0)
    assert math.isnan(made["reward/process_mean"])
    assert made["env_runners/episode_return_mean"] == 0.0


def test_counts_go_on_from_iteration_to_iteration() -> None:
    counts = RunCounts(cursor=10, num_tokens_sampled=100, num_responses=20)
    made = metrics(counts)
    assert (counts.num_tokens_sampled, counts.num_responses) == (112, 24)
    assert made["num_env_steps_sampled_lifetime"] == 112.0


def test_a_reward_stream_without_a_coefficient_is_no_signal() -> None:
    config = PUREConfig()
    same_steps = [record(1, 2, [0.5], True), record(1, 2, [0.5], False)]
    assert has_signal(same_steps, config)
    config.training(verifiable_reward_coeff=0.0)
    assert not has_signal(same_steps, config)
    config.training(verifiable_reward_coeff=1.0, process_reward_coeff=0.0)
    same_answers = [record(1, 2, [0.5], True), record(1, 2, [-0.5], True)]
    for without_process_rewards in (config, GRPOConfig()):
        assert not has_signal(same_answers, without_process_rewards)
        assert has_signal(same_steps, without_process_rewards)


def test_the_total_reward_is_of_what_the_algorithm_rewards() -> None:
    spans, rewards = np.array([[0, 2], [2, 3]]), np.array([0.5, -0.25], np.float32)
    judged = [
        JudgedResponse("", spans, rewards, True, verdict)
        for verdict in (Verdict("correct"), None)
    ]
    assert GRPOConfig().total_rewards(judged) == [1.0, 0.0]
    config = PUREConfig().training(credit_assignment="sum", process_reward_coeff=2.0)
    # 2 * (.5 - .25), with a right answer and without one
    assert config.total_rewards(judged) == [1.5, 0.5]


def test_batches_of_several_rounds_add_up() -> None:
    first = sampled()
    first.extend(sampled())
    assert [g.group_id for g in first.groups] == [4, 5, 4, 5]
    assert first.seconds["sample"] == 4.0
    assert first.num_resampled == 2
    assert first.counts == {"prm/overlong": 6, "prm/retries": 4}


def test_evaluation_names_are_registered_with_and_without_samples() -> None:
    greedy = [group(0, record(0, 4, [1.0], True)), group(1, record(1, 2, [1.0], False))]
    for samples in ([], greedy):
        made = evaluation_metrics(greedy, samples, num_samples=len(samples[:1]))
        names = {f"evaluation/{name}" for name in made}
        assert names == {name for name in METRICS if name.startswith("evaluation/")}
        assert made["greedy_accuracy"] == 0.5
        assert made["response_tokens"] == 3.0
    assert math.isnan(evaluation_metrics(greedy, [], num_samples=0)["sampled_accuracy"])


def test_evaluation_without_gold_answers_is_nan() -> None:
    made = evaluation_metrics([group(0, record(0, 4, [1.0], None))], [], num_samples=0)
    assert math.isnan(made["greedy_accuracy"])


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, "no blank lines. Ask for them"),
        ({"response/separator_rate": 0.01}, "before or behind all of its text"),
        ({"response/truncated_share": 1.0}, r"cut at `max_response_tokens` \(16\)"),
        ({"response/blank_share": 1.0}, "nothing visible"),
    ],
)
def test_single_steps_under_process_rewards_are_explained(changed, reason):
    metrics = dict.fromkeys(METRICS, 0.0) | {SHARE: 1.0, **changed}
    config = PUREConfig()
    warning = single_step_warning(metrics, ENV, config)
    assert warning is not None
    assert re.search(f"every response is a single step.*{reason}", warning)
    assert single_step_warning({**metrics, SHARE: 0.99}, ENV, config) is None
    no_scorer = replace(ENV, has_step_scorer=False)
    assert single_step_warning(metrics, no_scorer, config) is None
    config.training(process_reward_coeff=0.0)
    assert single_step_warning(metrics, ENV, config) is None
