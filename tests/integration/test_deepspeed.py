"""DeepSpeed ZeRO on real learner actors: the same updates as replicas make."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO
from transformers import AutoModelForCausalLM

from pure_rllib.algorithms import PUREConfig
from pure_rllib.data.problems import Problem
from pure_rllib.distributed.calls import on_learners
from pure_rllib.distributed.collectives import num_ranks, rank
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.generation.base import Response
from pure_rllib.learners.deepspeed_learner import DeepSpeedLearner
from pure_rllib.learners.stats import merge
from pure_rllib.learners.torch_learner import LLMTorchLearner, NonFiniteLossError
from pure_rllib.learners.train_batch import plan_mini_batches
from pure_rllib.models import columns
from pure_rllib.rollouts.group import SampledResponse
from pure_rllib.testing import tiny_model_config
from tests.integration.conftest import built

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make engines")
pytestmark = pytest.mark.slow

TINY_POLICY = tiny_model_config(32, initializer_range=0.02)
_PROBES = ((3, 1, 4, 1, 5), (9, 2, 6))
_GROUPS, _GROUP_SIZE, _MAX_TOKENS = 5, 4, 40
# Small, so that parameters are really partitioned and gradients fill several buckets.
_SMALL = {"reduce_bucket_size": 4000}
STAGES: dict[str, dict[str, Any]] = {
    "stage 1": {"stage": 1, **_SMALL},
    "stage 2": {"stage": 2, **_SMALL},
    "stage 3": {"stage": 3, **_SMALL, "stage3_param_persistence_threshold": 64},
}


def make_groups() -> list[list[Any]]:
    """Groups of responses of very unequal lengths, as an env runner would send them."""
    rng = np.random.default_rng(0)
    groups = []
    for group_id in range(_GROUPS):
        prompt = rng.integers(0, 32, 5)
        group = []
        for _ in range(_GROUP_SIZE):
            length = int(rng.integers(2, _MAX_TOKENS if group_id == 0 else 9))
            cut = length // 2
            spans = np.array([[0, cut], [cut, length]])
            rewards = rng.uniform(-1.0, 1.0, 2).astype(np.float32)
            logps = rng.normal(-3.5, 0.1, length).astype(np.float32)
            ids = rng.integers(0, 32, length)
            group.append(
                SampledResponse(
                    group_id=group_id,
                    problem=Problem(""),
                    prompt_ids=prompt,
                    response=Response(ids, logps, True),
                    judged=JudgedResponse("x", spans, rewards, True, None),
                    weights_version=0,
                ).episode()
            )
        groups.append(group)
    return groups


class _Noting:
    """Notes what the loss sees: advantages by update and row, and passes by step."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.seen: dict[tuple[Any, ...], list[float]] = {}
        self.num_passes: list[int] = []
        self.num_calls = 0

    def update(self, **kwargs: Any) -> Any:
        # Not the learner's own number, which a state that is set turns back.
        self.num_calls += 1
        return super().update(**kwargs)  # type: ignore[misc]

    def _step(self, *arguments: Any) -> None:
        self.num_passes.append(0)
        super()._step(*arguments)  # type: ignore[misc]

    def compute_loss_for_module(self, *, batch: Any, **kwargs: Any) -> Any:
        self.num_passes[-1] += 1
        lens = columns.row_lens(batch)
        for ids, end, size, advantages in zip(
            batch[columns.INPUT_IDS],
            lens,
            batch[columns.RESPONSE_LENS],
            batch[Columns.ADVANTAGES],
            strict=True,
        ):
            row = (self.num_calls, *ids[:end].tolist())
            assert row not in self.seen, "a row is learned from once"
            self.seen[row] = advantages[:size].tolist()
        return super().compute_loss_for_module(batch=batch, **kwargs)  # type: ignore[misc]


class NotingLearner(_Noting, LLMTorchLearner):
    pass


class NotingDeepSpeedLearner(_Noting, DeepSpeedLearner):
    pass


def seen_by(group: Any) -> tuple[dict[Any, list[float]], list[list[int]]]:
    """What the losses of all learners saw, and each one's passes by step."""
    found = on_learners(group, lambda learner: (learner.seen, learner.num_passes))
    seen: dict[Any, list[float]] = {}
    for of_one, _ in found:
        assert not seen.keys() & of_one.keys(), "a row is on one learner"
        seen |= of_one
    return seen, [passes for _, passes in found]


def learner_config(
    policy: dict[str, Any], num_learners: int, deepspeed: dict[str, Any] | None
) -> PUREConfig:
    return (
        PUREConfig()
        .environment("pure_rllib/Arithmetic-v0")
        .env_runners(group_size=_GROUP_SIZE, max_response_tokens=_MAX_TOKENS)
        .rl_module(model_config={"model": policy})
        # Between 1 and 8 micro-batches in a learner's share of a step.
        .training(
            lr=1.0e-3,
            micro_batch_tokens=64,
            minibatch_size=12,
            grad_clip=0.05,
            weight_decay=0.1,
            lr_warmup_updates=3,
            entropy_coeff=0.01,
            adam_epsilon=1.0e-6,
        )
        .learners(
            num_learners=num_learners,
            num_cpus_per_learner=0.5,
            deepspeed=deepspeed,
            learner_class=NotingDeepSpeedLearner if deepspeed else NotingLearner,
        )
    )


@contextmanager
def learners(config: PUREConfig) -> Iterator[Any]:
    config.validate()
    space: Any = (gym.spaces.Discrete(32), gym.spaces.Discrete(32))
    spec = config.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: space})
    group = config.build_learner_group(rl_module_spec=spec)
    try:
        yield group
    finally:
        group.shutdown()


def update(group: Any, iterations: range) -> list[Any]:
    """Two optimiser steps per iteration: three groups, then the two that are left."""
    groups = make_groups()
    # The long group alone on the first of two learners, which give each other rows.
    shares = [range(_GROUPS)]
    if group.is_remote and len(group) == 2:
        shares = [range(1), range(1, _GROUPS)]
    reports = []
    for iteration in iterations:
        on_learners(
            group,
            lambda learner, share: learner.fetch_groups(share),
            [{i: groups[i] for i in share} for share in shares],
        )
        arguments = {
            "plan": plan_mini_batches(
                range(_GROUPS),
                groups_per_step=3,
                num_epochs=1,
                seed=0,
                iteration=iteration,
                max_response_tokens=_MAX_TOKENS,
            ),
            "timesteps": {NUM_ENV_STEPS_SAMPLED_LIFETIME: 100 * iteration},
        }
        reports.append(
            on_learners(group, lambda learner, own=arguments: learner.update(**own))
        )
    return reports


def weights(group: Any) -> dict[str, np.ndarray]:
    return module_state(group.get_state())


def module_state(state: dict[str, Any]) -> dict[str, np.ndarray]:
    module = state["learner"]["rl_module"][DEFAULT_MODULE_ID]
    return {name: np.array(array) for name, array in module.items()}


def set_back(group: Any, state: dict[str, Any]) -> None:
    # RLlib takes weights for outdated that have seen fewer updates, but never these.
    group.set_state({"learner": {**state["learner"], WEIGHTS_SEQ_NO: 0}})


def assert_close(
    actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], atol: float
) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=atol, rtol=0, err_msg=name)


def shards_of(group: Any, max_bytes: int = 4096) -> list[dict[str, torch.Tensor]]:
    """The first learner's shards, copied; all learners gather them together."""

    def collect(learner: Any) -> list[dict[str, torch.Tensor]]:
        return [
            {name: tensor.clone() for name, tensor in shard.items()}
            for shard in learner.weight_shards(max_bytes)
        ]

    return on_learners(group, collect)[0]


def gradient_bytes(learner: Any) -> int:
    buffer = learner._engine.optimizer.grad_partitions_flat_buffer
    return int(buffer.untyped_storage().nbytes())


def probe_logps(group: Any) -> list[list[np.ndarray]]:
    return on_learners(group, lambda learner: learner.probe_logps(_PROBES))


def fail_at_the_next_backward(group: Any) -> None:
    """Makes one gradient of the last learner NaN, while the loss stays finite."""

    def plant(learner: Any) -> None:
        norm = learner._policy.model.norm.weight
        if rank() == num_ranks() - 1:
            learner._planted = norm.register_hook(lambda grad: grad * float("nan"))

    on_learners(group, plant)


def heal(group: Any) -> None:
    def remove(learner: Any) -> None:
        if rank() == num_ranks() - 1:
            learner._planted.remove()

    on_learners(group, remove)


@pytest.fixture(scope="module")
def reference(ray_cluster: None) -> dict[str, Any]:
    """What one local learner makes of the same episodes."""
    with learners(learner_config(TINY_POLICY, 0, None)) as group:
        reports = update(group, range(3))
        halfway = group.get_state()
        reports += update(group, range(3, 5))
        return {
            "weights": weights(group),
            "seen": seen_by(group)[0],
            "logps": probe_logps(group)[0],
            "reports": [merge(report) for report in reports],
            "halfway": halfway,
        }


def test_replicas_make_the_local_learners_updates(reference: dict[str, Any]) -> None:
    with learners(learner_config(TINY_POLICY, 2, None)) as group:
        reports = update(group, range(5))
        assert_close(weights(group), reference["weights"], 1e-4)
        seen, _ = seen_by(group)
    # Bit for bit, wherever a row's group was and wherever the row was learned from.
    assert seen == reference["seen"]
    # Without the exchange one step's would be 2.0: all of it on the second learner.
    assert all(1.0 <= merge(r)["tokens/imbalance"] < 1.2 for r in reports)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage(reference: dict[str, Any], tmp_path: Path, name: str) -> None:
    """All of one stage at once: starting learners takes most of the time."""
    expected = reference["weights"]
    config = learner_config(TINY_POLICY, 2, STAGES[name])
    with learners(config) as group:
        reports = update(group, range(3))
        state = group.get_state()
        reports += update(group, range(3, 5))
        final = weights(group)
        seen, passes = seen_by(group)
        assert seen == reference["seen"]
        assert passes[0] != passes[1], "idle passes make them equal"
        # Between updates stage 3 holds no gradients.
        if STAGES[name]["stage"] == 3:
            assert on_learners(group, gradient_bytes) == [0, 0]
        # 1. The same updates, and the same report of them.
        assert_close(final, expected, 1e-4)
        for report, local in zip(reports, reference["reports"], strict=True):
            merged = merge(report)
            for key in ("gradient_norm", "learning_rate", "loss/total", "entropy"):
                assert merged[key] == pytest.approx(local[key], rel=1e-4), key
        # 2. The same weights leave it in shards and on disk, and think the same.
        shards = shards_of(group)
        assert len(shards) > 3
        sizes = [sum(t.nbytes for t in shard.values()) for shard in shards]
        assert max(sizes) <= 4096 or any(len(shard) == 1 for shard in shards)
        named = {key: t.numpy() for shard in shards for key, t in shard.items()}
        assert "lm_head.weight" not in named  # tied: travels once
        assert_close(named, {key: final[key] for key in named}, 0.0)
        assert set(final) - set(named) == {"lm_head.weight"}
        on_learners(
            group, lambda learner: learner.export_policy(None, str(tmp_path / "policy"))
        )
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
        state_dict = {key: t.numpy() for key, t in exported.state_dict().items()}
        assert_close(state_dict, final, 0.0)
        logps = probe_logps(group)
        for ours, theirs in zip(logps[0], reference["logps"], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
        # 3. A state that is set goes on as if nothing had happened.
        set_back(group, state)
        update(group, range(3, 5))
        assert_close(weights(group), final, 1e-6)
        # 4. So does the state of a learner without DeepSpeed.
        set_back(group, reference["halfway"])
        update(group, range(3, 5))
        assert_close(weights(group), expected, 1e-6)
        # 5. A gradient that is not finite leaves weights and optimiser as they were.
        set_back(group, state)
        fail_at_the_next_backward(group)
        with pytest.raises(NonFiniteLossError, match="mini-batch 1 of 2"):
            update(group, range(3, 4))
        heal(group)
        assert_close(weights(group), module_state(state), 0.0)
        update(group, range(3, 5))
        assert_close(weights(group), final, 1e-6)
    # 6. And a learner without DeepSpeed goes on from its state.
    with learners(learner_config(TINY_POLICY, 0, None)) as group:
        set_back(group, state)
        update(group, range(3, 5))
        assert_close(weights(group), final, 1e-4)


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stage 1, master weights": (STAGES["stage 1"], {}),
    "stage 3, master weights, offloaded, recomputed": (
        {
            **STAGES["stage 3"],
            "offload_optimizer": {"device": "cpu", "pin_memory": False},
            "offload_param": {"device": "cpu", "pin_memory": False},
        },
        {"gradient_checkpointing": True},
    ),
}


@pytest.fixture(scope="module")
def bfloat16_state(ray_cluster: None) -> dict[str, Any]:
    with learners(bfloat16(learner_config(TINY_POLICY, 0, None))) as group:
        update(group, range(5))
        return optimizer_state(group.get_state())


def bfloat16(config: PUREConfig, **settings: Any) -> PUREConfig:
    return config.rl_module(
        model_config={**config.model_config, "dtype": "bfloat16", **settings}
    )


def optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    (adam,) = state["learner"]["optimizer"].values()
    return dict(adam)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_bfloat16_policy_keeps_its_master_weights(
    bfloat16_state: dict[str, Any], name: str
) -> None:
    deepspeed, settings = VARIANTS[name]
    config = bfloat16(learner_config(TINY_POLICY, 2, deepspeed), **settings)
    with learners(config) as group:
        update(group, range(3))
        halfway = group.get_state()
        update(group, range(3, 5))
        state = optimizer_state(group.get_state())
        set_back(group, halfway)
        update(group, range(3, 5))
        again = optimizer_state(group.get_state())
    assert state["num_updates"] == 10
    master_weights, moments = state["float32_masters"], state["state"]["state"]
    assert len(master_weights) == len(moments) == len(bfloat16_state["float32_masters"])
    for index, master in enumerate(master_weights):
        # Sums in another order, rounded to 8 bits.
        plain = bfloat16_state["float32_masters"][index]
        torch.testing.assert_close(master, plain, atol=1e-3, rtol=0.0)
        assert torch.equal(master, again["float32_masters"][index])
        assert moments[index]["step"] == 10
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(
                moments[index][name], again["state"]["state"][index][name]
            )


def test_a_run_under_stage_3_goes_on_without_deepspeed(
    tiny_config: PUREConfig, tmp_path: Path
) -> None:
    """A real run: sampling, publication, checkpoint, export, and a resumed one."""
    tiny_config.training(minibatch_size=8, kl_coeff=0.01, micro_batch_tokens=128)
    sharded = tiny_config.copy(copy_frozen=False).learners(
        num_learners=2, num_cpus_per_learner=0.5, deepspeed=STAGES["stage 3"]
    )
    with built(sharded) as algo:
        algo.train()
        path = algo.save_to_path(tmp_path / "checkpoint")
        result = algo.train()
        final = module_state(algo.learner_group.get_state())
        folder = algo.export_policy(tmp_path / "policy")
    assert result["generator_learner_logp_gap"] <= 1e-4
    assert result["ratio"]["first_minibatch_max_deviation"] <= 1e-4
    exported = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert_close({name: t.numpy() for name, t in exported.items()}, final, 0.0)
    with built(tiny_config) as plain:
        plain.restore_from_path(path)
        plain.train()
        assert_close(module_state(plain.learner_group.get_state()), final, 1e-4)
