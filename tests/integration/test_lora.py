"""LoRA end to end: sampled from, trained, checkpointed, exported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pure_rllib.algorithms import PUREConfig
from tests.integration.conftest import built, flat, weights

LORA = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}


@pytest.mark.slow
def test_training_moves_only_the_adapter(
    tiny_config: PUREConfig, tmp_path: Path
) -> None:
    model_config = {**tiny_config.model_config, "lora": LORA}
    tiny_config.rl_module(model_config=model_config)
    tiny_config.training(kl_coeff=0.05, kl_placement="loss", lr=1.0e-2)
    with built(tiny_config) as algo:
        learner = algo.learner_group._learner
        start = {n: p.detach().clone() for n, p in learner._policy.named_parameters()}
        results = [flat(algo.train()) for _ in range(2)]
        # The generator holds the merged weights of each version.
        assert all(r["generator_learner_logp_gap"] <= 1e-4 for r in results)
        assert all(r["ratio/first_minibatch_max_deviation"] <= 1e-4 for r in results)
        # The first update of a new adapter moves its second factors alone.
        assert results[0]["kl/reference"] == pytest.approx(0.0, abs=1e-6)
        assert results[1]["kl/reference"] > 1e-6
        for name, parameter in learner._policy.named_parameters():
            assert torch.equal(parameter, start[name]) != (".lora_" in name), name

        checkpoint = algo.save_to_path(tmp_path / "checkpoint")
        saved, optimizer = weights(algo), learner._get_optimizer_state()
        assert saved and all(".lora_" in name for name in saved)
        (state,) = optimizer.values()
        assert len(state["state"]["state"]) == len(saved)
        folder = algo.export_policy(tmp_path / "policy")
        ids = torch.tensor([[3, 4, 5, 6]])
        with torch.no_grad():
            expected = learner._policy(ids).logits
            exported = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(exported, expected, atol=1e-5, rtol=1e-5)
        algo.train()
        algo.restore_from_path(checkpoint)
        for name, array in weights(algo).items():
            np.testing.assert_array_equal(array, saved[name])
        again = flat(algo.train())
        assert again["generator_learner_logp_gap"] <= 1e-4


def test_autocast_trains_and_reports_its_gap(tiny_config: PUREConfig) -> None:
    model_config = {**tiny_config.model_config, "autocast_dtype": "bfloat16"}
    tiny_config.rl_module(model_config=model_config)
    with built(tiny_config) as algo:
        before = weights(algo)
        result = flat(algo.train())
        # Weights arrive exactly; what is computed from them is rounded.
        assert result["generator_learner_logp_gap"] <= 1e-4
        assert 1e-4 < result["ratio/first_minibatch_max_deviation"] < 0.1
        after = weights(algo)
    assert {array.dtype for array in after.values()} == {np.dtype(np.float32)}
    assert any((before[name] != after[name]).any() for name in before)
