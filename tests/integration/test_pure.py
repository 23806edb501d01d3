"""PURE end to end on a small random policy: real env, real verifier, real Ray."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from transformers import AutoModelForCausalLM, AutoTokenizer

from pure_rllib.algorithms import PURE, PUREConfig
from pure_rllib.learners.torch_learner import NonFiniteLossError
from pure_rllib.reporting.metrics import METRICS
from tests.integration.conftest import built, flat, process_of, stopping, weights

# Wall-clock times differ between runs; everything else must not.
_TIMES = ("seconds/", "throughput/", "time", "date", "perf/", "iterations_since")


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """The registered metrics of a result that do not measure time."""
    values = flat(result)
    return {
        name: values[name]
        for name in METRICS
        if name in values and not name.startswith(_TIMES)
    }


def assert_same(first: dict[str, float], second: dict[str, float]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        both_nan = math.isnan(value) and math.isnan(second[name])
        assert both_nan or value == second[name], name


def reference_of(algo: PURE) -> Any:
    module = algo.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped()
    return module.reference


def test_an_iteration_logs_every_metric_of_the_registry(
    tiny_config: PUREConfig,
) -> None:
    tiny_config.training(kl_coeff=0.01, kl_placement="loss", entropy_coeff=0.01)
    tiny_config.evaluation(evaluation_interval=1)
    with built(tiny_config) as algo:
        before = weights(algo)
        result = flat(algo.train())
        after = weights(algo)
        assert reference_of(algo) is not None
        assert flat(algo.train())["kl/reference"] > 0.0
    missing = [name for name in METRICS if name not in result]
    assert missing == [n for n in METRICS if METRICS[n].needs & {"turns"}]
    assert result["ratio/first_minibatch_max_deviation"] <= 1e-4
    assert result["generator_learner_logp_gap"] <= 1e-4
    assert result["num_env_steps_sampled_lifetime"] == result["response/tokens"] * 16
    assert result["kl/reference"] == pytest.approx(0.0, abs=1e-6)
    assert any((before[name] != after[name]).any() for name in before)


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_never_stopped(
    tiny_config: PUREConfig, tmp_path: Path
) -> None:
    # 6 problems and 4 prompts an iteration: the second one crosses into epoch 1.
    tiny_config.training(
        lr=[[0, 1.0e-3], [4000, 0.0]], lr_warmup_updates=3, minibatch_size=8
    )
    asked, results = [], []
    with built(tiny_config) as algo:
        for i in range(3):
            if i == 1:
                path = algo.save_to_path(tmp_path / "checkpoint")
            results.append(algo.train())
            asked += [
                group.records[0].metadata["problem_id"]
                for group in algo._last_batch.groups
            ]
        final = weights(algo)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    # Every problem is asked once per epoch.
    assert len(asked) == 12
    assert sorted(asked[:6]) == sorted(asked[6:]) == sorted(set(asked))
    # By the last iteration the tokens of two have been sampled, of the 4,000 to zero.
    num_tokens = results[1]["num_env_steps_sampled_lifetime"]
    expected_lr = 1.0e-3 * (1 - num_tokens / 4000)
    assert results[2]["learning_rate"] == pytest.approx(expected_lr)
    through = [metrics_of(result) for result in results[1:]]
    with stopping(PURE.from_checkpoint(path)) as restored:
        resumed = [metrics_of(restored.train()) for _ in range(2)]
        assert restored.training_iteration == 3
        for one, other in zip(through, resumed, strict=True):
            assert_same(one, other)
        for name, array in weights(restored).items():
            np.testing.assert_array_equal(array, final[name])


@pytest.mark.slow
def test_two_env_runners_and_two_learners_make_the_same_updates(
    tiny_config: PUREConfig,
) -> None:
    tiny_config.training(minibatch_size=8)
    with built(tiny_config) as algo:
        local = [metrics_of(algo.train()) for _ in range(3)]
        expected = weights(algo)
    spread = (
        tiny_config.copy(copy_frozen=False)
        .env_runners(num_env_runners=2, num_cpus_per_env_runner=0.5)
        .learners(num_learners=2, num_cpus_per_learner=0.5)
    )
    with built(spread) as algo:
        remote = [metrics_of(algo.train()) for _ in range(3)]
        actual = weights(algo)
    for one, other in zip(local, remote, strict=True):
        assert one.keys() == other.keys()
        assert other["response/tokens"] == one["response/tokens"]
        assert other["loss/policy"] == pytest.approx(one["loss/policy"], abs=1e-5)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("num_env_runners", [1, 2])
def test_a_lost_env_runner_is_replaced_and_its_prompts_asked_again(
    tiny_config: PUREConfig, num_env_runners: int
) -> None:
    tiny_config.env_runners(
        num_env_runners=num_env_runners, num_cpus_per_env_runner=0.5
    )
    with built(tiny_config) as algo:
        algo.train()
        os.kill(process_of(algo, 1), 9)
        result = flat(algo.train())
        assert result["problems_seen"] == 8
        assert result["groups/resampled"] == 4 / num_env_runners
        assert flat(algo.train())["problems_seen"] == 12


@pytest.mark.slow
def test_micro_batches_do_not_change_an_update(tiny_config: PUREConfig) -> None:
    ends = []
    for budget in (64, 16_384):
        config = tiny_config.copy(copy_frozen=False).training(micro_batch_tokens=budget)
        with built(config) as algo:
            algo.train()
            ends.append(weights(algo))
    for name, array in ends[0].items():
        np.testing.assert_allclose(array, ends[1][name], atol=1e-5)


def test_a_loss_that_is_not_finite_leaves_the_weights(tiny_config: PUREConfig) -> None:
    with built(tiny_config) as algo:
        policy = algo.learner_group._learner._policy
        good = {name: p.detach().clone() for name, p in policy.named_parameters()}
        handle = policy.model.norm.weight.register_hook(lambda g: g * float("nan"))
        with pytest.raises(NonFiniteLossError, match=r"mini-batch 1 of 1.*groups are"):
            algo.train()
        handle.remove()
        for name, parameter in policy.named_parameters():
            assert torch.equal(parameter, good[name])


@pytest.mark.slow
def test_groups_without_signal_are_dropped_and_refilled(
    tiny_config: PUREConfig,
) -> None:
    # A random policy never answers right: without process rewards nothing differs.
    tiny_config.training(process_reward_coeff=0.0, no_signal_groups="refill")
    tiny_config.training(max_refill_rounds=2)
    tiny_config.environment(env_config={"process_rewards": "none", "num_problems": 60})
    with built(tiny_config) as algo:
        result = flat(algo.train())
    assert result["problems_seen"] == 12
    assert result["groups/no_signal_share"] == 1.0
    assert result["groups/dropped"] == 11  # one is kept: a learner needs a group
    assert result["gradient_norm"] == 0.0


def test_exported_policy_loads_and_is_the_learners(
    tiny_config: PUREConfig, tmp_path: Path
) -> None:
    with built(tiny_config) as algo:
        algo.train()
        folder = algo.export_policy(tmp_path / "policy")
        expected = weights(algo)
    policy = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, tensor in policy.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name])
    assert tokenizer.decode(tokenizer("1+2=?")["input_ids"]) == "1+2=?"
    assert (tmp_path / "policy" / "model.safetensors").is_file()


@pytest.mark.slow
def test_evaluation_is_repeatable_and_rollouts_hold_the_advantages_of_the_loss(
    tiny_config: PUREConfig,
) -> None:
    with built(tiny_config) as algo:
        assert reference_of(algo) is None  # without a KL term
        first, second = algo.evaluate(), algo.evaluate()
        algo.train()
        groups = algo.rollouts(num_groups=2)
        mean = flat(algo.train())["advantage/mean"]
        both = [record for group in algo.rollouts(4) for record in group]
    for result in (first, second):
        assert result["env_runners"].pop("episode_duration_sec_mean") > 0  # a time
    assert first == second
    for kind in ("greedy_accuracy", "sampled_accuracy"):
        assert first[f"{kind}_low"] <= first[kind] <= first[f"{kind}_high"]
    assert [len(group) for group in groups] == [4, 4]
    record = groups[0][0]
    assert record.response_tokens is not None
    assert "".join(record.response_tokens).startswith(record.response_text[:3])
    advantages = np.concatenate([np.asarray(r.advantages) for r in both])
    assert advantages.mean() == pytest.approx(mean, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpoints_hold_every_dtype_and_steps_start_without_gradients(
    tiny_config: PUREConfig, tmp_path: Path, dtype: str
) -> None:
    tiny_config.rl_module(model_config={**tiny_config.model_config, "dtype": dtype})
    with built(tiny_config) as algo:
        algo.train()
        policy = algo.learner_group._learner._policy
        assert all(p.grad is None for p in policy.parameters())
        path = algo.save_to_path(tmp_path / "checkpoint")
        expected = weights(algo)
        algo.train()
        algo.restore_from_path(path)
        for name, array in weights(algo).items():
            np.testing.assert_array_equal(array, expected[name])


@pytest.mark.slow
def test_small_updates_of_bfloat16_weights_add_up(tiny_config: PUREConfig) -> None:
    # One update of 1e-6 is far below the spacing of bfloat16 numbers near 0.02.
    tiny_config.rl_module(
        model_config={**tiny_config.model_config, "dtype": "bfloat16"}
    )
    tiny_config.training(lr=1.0e-6)
    with built(tiny_config) as algo:
        learner = algo.learner_group._learner
        before = [master.detach().clone() for master in learner._masters.copies]
        algo.train()
        moved = [
            (master - start).abs().max().item()
            for master, start in zip(learner._masters.copies, before, strict=True)
        ]
        assert max(moved) == pytest.approx(1.0e-6, rel=0.1)
        state = learner._get_optimizer_state()
        algo.train()
        learner._set_optimizer_state(state)
        saved = next(iter(state.values()))["float32_masters"]
        for master, kept in zip(learner._masters.copies, saved, strict=True):
            assert torch.equal(master, kept)


@pytest.mark.slow
def test_packed_and_padded_rows_make_the_same_update(tiny_config: PUREConfig) -> None:
    tiny_config.training(kl_coeff=0.1, kl_placement="loss", entropy_coeff=0.01)
    # AdamW's first step is the gradient's sign, which rounding turns where it is 0.
    tiny_config.training(adam_epsilon=1.0e-4)
    tiny_config.rl_module(model_config={"gradient_checkpointing": True})
    ends, results = [], []
    for packing in (False, True):
        config = tiny_config.copy(copy_frozen=False).learners(packing=packing)
        with built(config) as algo:
            results.append(flat(algo.train()))
            ends.append(weights(algo))
    padded, packed = results
    assert packed["loss/total"] == pytest.approx(padded["loss/total"], abs=1e-6)
    for name, array in ends[0].items():
        np.testing.assert_allclose(array, ends[1][name], atol=1e-6)
    assert packed["tokens/padding_share"] == 0.0 < padded["tokens/padding_share"]
    # Four responses to each prompt, of which three find it passed already.
    assert packed["tokens/prompt_saved_share"] == pytest.approx(0.75)
    assert padded["tokens/prompt_saved_share"] == 0.0
