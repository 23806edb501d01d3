"""Sampling one batch ahead, and correcting for a generator that is one version old."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from pure_rllib.algorithms import PURE, PUREConfig
from pure_rllib.learners.stats import merge
from tests.integration.conftest import built, flat, process_of, stopping, weights


def asked_by(algo: PURE) -> list[str]:
    """Ids of the problems of the last iteration, in the order of their turns."""
    groups = algo._last_batch.groups
    return [group.records[0].metadata["problem_id"] for group in groups]


def lagging(config: PUREConfig, num_env_runners: int) -> PUREConfig:
    return config.env_runners(
        num_env_runners=num_env_runners, num_cpus_per_env_runner=0.5
    ).training(max_weight_lag=1)


@pytest.mark.slow
def test_on_policy_a_correction_changes_nothing(tiny_config: PUREConfig) -> None:
    ends = []
    for correction in ("none", "token_truncated", "sequence_mask"):
        tiny_config = tiny_config.copy(copy_frozen=False)
        # Many micro-batches: log-probabilities must not depend on their cut.
        tiny_config.training(
            rollout_correction=correction, micro_batch_tokens=200, minibatch_size=8
        )
        with built(tiny_config) as algo:
            result = flat(algo.train())
            ends.append(weights(algo))
        assert result["ratio/first_minibatch_max_deviation"] <= 1e-4
        assert result["mismatch/ratio_max"] == pytest.approx(1.0, abs=1e-4)
        assert result["mismatch/ratio_mean"] == pytest.approx(1.0, abs=1e-4)
        assert result["mismatch/kl"] == pytest.approx(0.0, abs=1e-6)
        assert result["mismatch/effective_sample_size"] == pytest.approx(1.0, abs=1e-4)
        assert result["weights/lag_max"] == 0.0
        if correction == "none":
            assert np.isnan(result["correction/weight_mean"])
        else:
            assert result["correction/weight_mean"] == pytest.approx(1.0, abs=1e-4)
            assert result["correction/truncated_share"] == 0.0
            assert result["correction/masked_share"] == 0.0
    for name, array in ends[0].items():
        # AdamW makes the 1e-6 of recomputed log-probabilities a little larger.
        np.testing.assert_allclose(ends[1][name], array, atol=5e-5)
        np.testing.assert_allclose(ends[2][name], array, atol=5e-5)


@pytest.mark.slow
def test_masked_responses_leave_the_loss_but_not_the_baseline(
    tiny_config: PUREConfig,
) -> None:
    results = []
    for cap in (None, 1.0 + 1e-12):
        # The first ratio that is not exactly 1 puts its response out of this band.
        config = tiny_config.copy(copy_frozen=False).training(
            rollout_correction="sequence_mask", rollout_correction_cap=cap
        )
        with built(config) as algo:
            results.append(flat(algo.train()))
    kept, masked = results
    assert kept["correction/masked_share"] == 0.0
    assert masked["correction/masked_share"] > 0.0
    assert masked["correction/weight_mean"] < 1.0
    for name in ("advantage/mean", "advantage/std", "return/mean"):
        assert masked[name] == kept[name]
    assert masked["loss/policy"] != kept["loss/policy"]


@pytest.mark.slow
def test_one_batch_ahead(tiny_config: PUREConfig, tmp_path: Path) -> None:
    # 6 problems, 4 prompts an iteration: three iterations are two epochs.
    config = lagging(tiny_config, 2)
    asked, versions = [], []
    with built(config) as algo:
        results = []
        for _ in range(3):
            before = weights(algo)
            results.append(flat(algo.train()))
            asked += asked_by(algo)
            versions.append(algo._last_batch.weights_version)
            after = weights(algo)
            assert any((before[name] != after[name]).any() for name in before)
        path = algo.save_to_path(tmp_path / "checkpoint")
        # The run that was saved goes on with the batch that was under way.
        through = flat(algo.train())
        went_on = asked_by(algo)
        # Back to the checkpoint in place: what is under way now is of another time.
        algo.restore_from_path(path)
        back = flat(algo.train())
        went_back = asked_by(algo)
        lags = [r.metadata["weights_lag"] for g in algo.rollouts(4) for r in g]
        start = time.monotonic()
    assert time.monotonic() - start < 30.0  # with a batch under way
    assert [result["weights/lag_max"] for result in results] == [0.0, 1.0, 1.0]
    assert [result["weights/lag_mean"] for result in results] == [0.0, 1.0, 1.0]
    assert versions == [0, 0, 1]
    assert [result["problems_seen"] for result in results] == [4.0, 8.0, 12.0]
    assert Counter(asked[:6]) == Counter(asked[6:]) == Counter(set(asked))
    for number, result in enumerate(results):
        # The correction is on by default: the ratio starts at the learner's policy.
        assert result["ratio/first_minibatch_max_deviation"] <= 1e-4
        assert result["correction/weight_mean"] == pytest.approx(
            result["mismatch/ratio_mean"], abs=0.05
        )
        moved = result["mismatch/ratio_max"] - 1.0
        assert moved <= 1e-4 if number == 0 else moved > 1e-3
        assert 0.0 <= result["sampling/overlap_share"] <= 1.0
        assert result["seconds/other"] > -0.01
    assert results[0]["sampling/overlap_share"] == 0.0
    assert through["weights/lag_max"] == 1.0
    assert (back["weights/lag_max"], set(lags)) == (0.0, {0})
    assert through["problems_seen"] == back["problems_seen"] == 16.0
    assert went_on == went_back

    with stopping(PURE.from_checkpoint(path)) as resumed:
        first = flat(resumed.train())
        assert asked_by(resumed) == went_on
        # It is sampling ahead, or has: its answer is lost with it either way.
        os.kill(process_of(resumed, 1), 9)
        second = flat(resumed.train())
        asked += went_on + asked_by(resumed)
    assert (first["weights/lag_max"], second["weights/lag_max"]) == (0.0, 1.0)
    assert first["problems_seen"] == 16.0
    assert second["problems_seen"] == 20.0
    epochs = [asked[i : i + 6] for i in range(0, 18, 6)]
    assert all(Counter(epoch) == Counter(epochs[0]) for epoch in epochs)
    assert len(set(asked[18:])) == 2


@pytest.mark.slow
def test_two_batches_ahead(tiny_config: PUREConfig, tmp_path: Path) -> None:
    config = lagging(tiny_config, 2).training(max_weight_lag=2)
    asked: list[str] = []
    with built(config) as algo:
        lags = []
        for number in range(3):
            if number == 2:
                # It has calls of two batches before it, and all of them are lost.
                os.kill(process_of(algo, 1), 9)
            lags.append(flat(algo.train())["weights/lag_max"])
            asked += asked_by(algo)
            assert len(algo._sampler._pending) == 2
        path = algo.save_to_path(tmp_path / "checkpoint")
        went_on = flat(algo.train()), asked_by(algo)
    assert lags == [0.0, 1.0, 2.0]
    assert went_on[0]["weights/lag_max"] == 2.0
    with stopping(PURE.from_checkpoint(path)) as resumed:
        first = flat(resumed.train())
        assert asked_by(resumed) == went_on[1]
    assert first["weights/lag_max"] == 0.0
    # 6 problems, asked in epochs: nothing was dropped, and nothing asked twice.
    asked += went_on[1]
    epochs = [Counter(asked[i : i + 6]) for i in range(0, 12, 6)]
    assert all(epoch == Counter(set(asked)) for epoch in epochs)


def wait_until_dead(actor: Any) -> None:
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        try:
            ray.get(actor.ping.remote(), timeout=1.0)
        except ray.exceptions.RayActorError:
            return
        except ray.exceptions.GetTimeoutError:
            pass
    pytest.fail("the env runner lives on")


@pytest.mark.slow
def test_groups_without_signal_are_refilled_and_a_run_ends_at_once(
    tiny_config: PUREConfig,
) -> None:
    config = lagging(tiny_config, 1).training(
        process_reward_coeff=0.0,
        no_signal_groups="refill",
        max_refill_rounds=1,
        rollout_correction="none",
    )
    config.environment(env_config={"process_rewards": "none", "num_problems": 60})
    asked = []
    with built(config) as algo:
        results = []
        for _ in range(2):
            results.append(flat(algo.train()))
            asked += asked_by(algo)
        actor = algo.env_runner_group._worker_manager.actors()[1]
        # Busy for longer than the test takes: only killing it ends this.
        (pending,) = algo._sampler._pending
        pending.answers = [
            (1, [actor.__ray_call__.remote(lambda _: time.sleep(600.0))])
        ]
        algo._sampler.close(patience_s=0.5)
        wait_until_dead(actor)
        start = time.monotonic()
    assert time.monotonic() - start < 30.0
    # A random policy never answers right: 4 prompts and 4 more, of 60.
    assert [result["problems_seen"] for result in results] == [8.0, 16.0]
    assert len(set(asked)) == 16
    # The first half was sampled ahead, the refill with the newest weights.
    assert [result["weights/lag_mean"] for result in results] == [0.0, 0.5]
    # With "none", the ratio is to the generator and measured on the first mini-batch.
    assert np.isnan(results[1]["correction/weight_mean"])
    assert results[1]["mismatch/ratio_mean"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_the_old_policy_of_learners_that_hold_parts_of_it(ray_cluster: None) -> None:
    """With unequal numbers of micro-batches, all learners take part in each pass."""
    from tests.integration import test_deepspeed as zero

    ends, reports = [], []
    for num_learners, deepspeed in ((0, None), (2, zero.STAGES["stage 3"])):
        config = zero.learner_config(zero.TINY_POLICY, num_learners, deepspeed)
        config.training(rollout_correction="token_truncated")
        with zero.learners(config) as group:
            reports.append(merge(zero.update(group, range(1))[0]))
            ends.append(zero.weights(group))
    zero.assert_close(ends[1], ends[0], 1e-4)
    local, parts = reports
    # These responses were made up: the policy is far from their log-probabilities.
    assert local["correction/weight_mean"] != pytest.approx(1.0, abs=1e-2)
    for name in ("mismatch/kl", "mismatch/ratio_max", "correction/weight_mean"):
        assert parts[name] == pytest.approx(local[name], rel=1e-4)
    for report in reports:
        assert report["ratio/first_minibatch_max_deviation"] <= 1e-4
