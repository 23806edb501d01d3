"""What an algorithm adds to the engine: GRPO, RLOO, losses and pages of one's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.annotations import override
from torch import Tensor

from pure_rllib.algorithms import (
    GRPOConfig,
    LLMConfig,
    RiskPOConfig,
    RLOOConfig,
    ROVERConfig,
)
from pure_rllib.learners.torch_learner import LLMTorchLearner
from pure_rllib.models import columns
from pure_rllib.rewards.base import FunctionVerifier
from tests.integration.conftest import built, python_blocks, run_python, weights


def verified(config: LLMConfig, like: LLMConfig) -> LLMConfig:
    """A run of the tiny policy on the verifier's reward alone."""
    return (
        config.environment(like.env, env_config={**like.env_config})
        .env_runners(num_prompts=4, group_size=4, max_response_tokens=24)
        .rl_module(model_config=like._model_config)
        .training(lr=1.0e-3)
        .debugging(seed=3)
    )


def trained(config: Any, iterations: int = 1) -> dict[str, Any]:
    with built(config) as algo:
        for _ in range(iterations):
            result: dict[str, Any] = algo.train()
        return result


@pytest.mark.parametrize(
    "config",
    [
        GRPOConfig(),
        RLOOConfig(),
        RiskPOConfig().training(bundle_size=2),
        ROVERConfig().training(minibatch_size=8),
    ],
    ids=["GRPO", "RLOO", "RiskPO", "ROVER"],
)
def test_an_algorithm_on_verified_answers_trains(config: Any, tiny_config: Any) -> None:
    made = verified(config, tiny_config)
    made.environment(env_config={**made.env_config, "process_rewards": "none"})
    result = trained(made)
    assert 0.0 <= result["accuracy"] <= 1.0
    assert torch.tensor(result["loss"]["total"]).isfinite()
    assert result["learners"]["default_policy"]["total_loss"] == pytest.approx(
        result["loss"]["total"]
    )


def test_variants_of_the_loss_are_settings(tiny_config: Any) -> None:
    made = verified(GRPOConfig(), tiny_config).training(
        scale_by_std=False,
        loss_aggregation="fixed_length",
        clip_param_high=0.28,
        dual_clip=3.0,
        ratio_level="sequence",
        kl_coeff=0.0,
    )
    assert torch.tensor(trained(made)["loss"]["total"]).isfinite()


@pytest.mark.slow
def test_tune_knows_every_algorithm_by_name(tmp_path: Path) -> None:
    # In a process of its own: what is registered goes with the cluster that it was
    # registered with.
    code = """
from pure_rllib.algorithms import ALGORITHMS
from ray import tune
for name, algorithm in ALGORITHMS.items():
    assert tune.registry.get_trainable_cls(name) is algorithm
    assert algorithm.get_default_config().algo_class is algorithm
"""
    run_python(code, tmp_path)


class Regularised(LLMTorchLearner):
    """RLlib's own example of a custom loss: the mean weight is a term of it."""

    @override(LLMTorchLearner)
    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: Any, fwd_out: Any
    ) -> Tensor:
        loss = super().compute_loss_for_module(
            module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
        )
        weights = self.get_parameters(self.module[module_id])
        mean_weight = torch.mean(torch.stack([w.mean() for w in weights]))
        self.metrics.log_value((module_id, "mean_weight"), mean_weight, window=1)
        return loss + config.learner_config_dict["coeff"] * mean_weight


@pytest.mark.slow
def test_a_custom_loss_in_rllibs_form_acts_and_logs(tiny_config: Any) -> None:
    losses = []
    for coeff in (0.0, 100.0):
        own = tiny_config.copy(copy_frozen=False)
        own.training(learner_class=Regularised, learner_config_dict={"coeff": coeff})
        result = trained(own)
        losses.append(result["loss"]["total"])
        logged = result["learners"]["default_policy"]["mean_weight"]
        assert logged != 0.0
    assert losses[1] - losses[0] == pytest.approx(100.0 * logged, rel=1e-3)


class NeedsPairs(ConnectorV2):
    """Stands where groups are compared two by two."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        ids = set(batch[DEFAULT_MODULE_ID][columns.GROUP_ID].tolist())
        assert ids == {i ^ 1 for i in ids}, ids
        return batch


class PairsConfig(RLOOConfig):
    def groups_together(self) -> int:
        return 2

    def advantage_connectors(self) -> list[ConnectorV2]:
        return [NeedsPairs(), *super().advantage_connectors()]


@pytest.mark.slow
def test_a_bundle_of_groups_reaches_one_learner(tiny_config: Any) -> None:
    made = verified(PairsConfig(), tiny_config).env_runners(num_prompts=8)
    trained(made.learners(num_learners=2), iterations=2)


def risky(like: LLMConfig) -> RiskPOConfig:
    """Bundles of two, on process rewards: a random policy answers nothing right."""
    made = verified(RiskPOConfig(), like).training(
        bundle_size=2, process_reward_coeff=1.0, mean_baseline=True
    )
    return made.env_runners(num_prompts=6)


@pytest.mark.slow
def test_reports_show_the_advantages_that_riskpo_trained_on(tiny_config: Any) -> None:
    with built(risky(tiny_config)) as algo:
        algo.train()
        result = algo.train()
        groups = algo.rollouts(num_groups=5)
        assert len(groups) == 6, "the last bundle is whole"
        shown = [a for group in groups for one in group for a in one.advantages or ()]
        mean = result["advantage"]["mean"]
        assert sum(shown) / len(shown) == pytest.approx(mean, abs=1e-5)
        assert any(shown)


@pytest.mark.slow
def test_riskpo_resumes_with_what_it_has_tracked(
    tiny_config: Any, tmp_path: Path
) -> None:
    made = risky(tiny_config)
    with built(made) as algo:
        algo.train()
        algo.save_to_path(str(tmp_path / "checkpoint"))
        expected = algo.train()
    with built(made) as algo:
        algo.restore_from_path(str(tmp_path / "checkpoint"))
        resumed = algo.train()
    for name in ("risk", "loss", "advantage"):
        assert resumed[name] == expected[name]


@pytest.mark.slow
def test_the_number_of_learners_does_not_change_risk(tiny_config: Any) -> None:
    results = []
    for num_learners in (0, 2):
        made = risky(tiny_config)
        made.learners(num_learners=num_learners, num_cpus_per_learner=0.5)
        results.append(trained(made, iterations=2))
    for name in ("lower_quantile", "upper_quantile", "mixed"):
        assert results[0]["risk"][name] == pytest.approx(
            results[1]["risk"][name], abs=1e-4
        )
    for name in ("mean", "std"):
        assert results[0]["advantage"][name] == pytest.approx(
            results[1]["advantage"][name], abs=1e-3
        )


def share_of_ones(_: str, text: str) -> float:
    """A reward in which a random policy's responses differ."""
    return text.count("1") / max(1, len(text))


def valued(like: LLMConfig) -> ROVERConfig:
    made = verified(ROVERConfig(), like).training(minibatch_size=4)
    verifier = FunctionVerifier(share_of_ones)
    made.environment(env_config={**made.env_config, "verifier": verifier})
    return made


def test_rover_regresses_on_what_its_steps_have_changed(tiny_config: Any) -> None:
    result = trained(valued(tiny_config))
    # Four steps, the first of which finds nothing changed.
    assert result["rover"]["log_ratio"] != 0.0
    assert result["rover"]["next_value"] != 0.0
    # A policy that is all but uniform over 32 tokens: about -log(32).
    assert result["rover"]["mean_logp"] == pytest.approx(-3.47, abs=0.1)
    assert result["ratio"]["first_minibatch_max_deviation"] < 1e-4
    assert result["loss"]["policy"] == pytest.approx(result["loss"]["total"], abs=1e-6)


# Small, so that gradients fill several buckets and parameters are really partitioned.
ZERO: dict[str, dict[str, Any]] = {
    "ZeRO 2": {"stage": 2, "reduce_bucket_size": 4000},
    "ZeRO 3": {
        "stage": 3,
        "reduce_bucket_size": 4000,
        "stage3_param_persistence_threshold": 64,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, *ZERO])
def test_neither_learners_nor_zero_change_rover(
    tiny_config: Any, deepspeed: str | None
) -> None:
    if deepspeed is not None:
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: not run")
    alone = valued(tiny_config).training(minibatch_size=8, micro_batch_tokens=96)
    several = alone.copy(copy_frozen=False).learners(
        num_learners=2,
        num_cpus_per_learner=0.5,
        deepspeed=deepspeed and ZERO[deepspeed],
    )
    found = []
    for made in (alone, several):
        with built(made) as algo:
            found.append((algo.train()["rover"], weights(algo)))
    (expected, policy), (values, of_several) = found
    assert values == pytest.approx(expected, rel=1e-3)
    for name, array in policy.items():
        np.testing.assert_allclose(of_several[name], array, atol=1e-5, rtol=0)


def test_the_algorithm_of_the_page_is_short() -> None:
    (code,) = python_blocks("algorithms.md")
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 50


@pytest.mark.slow
def test_the_algorithm_of_the_page_trains(tmp_path: Path) -> None:
    (code,) = python_blocks("algorithms.md")
    assert float(run_python(code, tmp_path).split()[-1]) >= 0.0
