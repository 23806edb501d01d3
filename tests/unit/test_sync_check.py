"""The check that weights arrived, on real models and on numbers chosen by hand."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pure_rllib.generation.transformers_generator import TransformersGenerator
from pure_rllib.models.export import untied_tensors
from pure_rllib.models.logprobs import sequence_logps
from pure_rllib.weight_sync.check import (
    Probe,
    StaleWeightsError,
    SyncCheck,
)
from pure_rllib.weight_sync.object_store import LiveWeights

PROBE_IDS = ((3, 4, 5, 6, 7), (9, 2, 8))


def make_model(tied: bool, seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return Qwen2ForCausalLM(config).eval()


def probe_of(model: Qwen2ForCausalLM) -> Probe:
    with torch.no_grad():
        logps = tuple(sequence_logps(model, ids) for ids in PROBE_IDS)
    return Probe(PROBE_IDS, logps)


def generator_of(model: Qwen2ForCausalLM) -> TransformersGenerator:
    return TransformersGenerator(model, pad_token_id=0, eos_token_ids=[1])


def probe(*logps: float) -> Probe:
    return Probe(((0,) * (len(logps) + 1),), (np.array(logps, np.float32),))


def given(*logps: float) -> list[np.ndarray]:
    return [np.array(logps, np.float32)]


@pytest.mark.parametrize("tied", [True, False])
def test_a_generator_with_all_tensors_passes(tied: bool) -> None:
    learner, generator = make_model(tied, 0), generator_of(make_model(tied, 1))
    generator.load_weights(LiveWeights.of(learner, version=7))
    logps = generator.logps(PROBE_IDS)
    assert 0.0 <= SyncCheck(1e-4).check(7, probe_of(learner), logps) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_each_tensor_that_is_stale_after_a_large_update_is_caught(tied: bool) -> None:
    learner = make_model(tied, seed=0)
    for stale, _ in untied_tensors(learner):
        model = make_model(tied, seed=0)
        parameter = model.get_parameter(stale)
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn_like(parameter))
        logps = generator_of(model).logps(PROBE_IDS)
        with pytest.raises(StaleWeightsError, match="weights version 7"):
            SyncCheck(1e-3).check(7, probe_of(learner), logps)


@pytest.mark.parametrize("stale", ["all", "model.embed_tokens.weight"])
def test_small_updates_that_do_not_arrive_are_caught(stale: str) -> None:
    """Far below the limit: parameters change by 1e-5 in each update."""
    learner, generator = make_model(True, 0), generator_of(make_model(True, 0))
    check = SyncCheck(limit=0.01)
    torch.manual_seed(1)
    with pytest.raises(StaleWeightsError, match="must move with the learner"):
        for version in range(20):
            check.check(version, probe_of(learner), generator.logps(PROBE_IDS))
            for name, parameter in learner.named_parameters():
                with torch.no_grad():
                    parameter.add_(1e-5 * torch.randn_like(parameter).sign())
                if stale not in ("all", name):
                    generator.model.get_parameter(name).data.copy_(parameter)
    assert version < 15


def test_small_updates_that_arrive_pass() -> None:
    learner, generator = make_model(True, 0), generator_of(make_model(True, 0))
    check = SyncCheck(limit=0.01)
    torch.manual_seed(1)
    for version in range(40):
        generator.load_weights(LiveWeights.of(learner, version))
        check.check(version, probe_of(learner), generator.logps(PROBE_IDS))
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(1e-7 * torch.randn_like(parameter).sign())


def test_a_constant_difference_of_two_kernels_passes() -> None:
    check = SyncCheck(limit=1.0)
    # The generator's numbers are off by +0.3 and -0.2; the learner moves by 4 nats.
    for step in range(5):
        change = float(step)
        gap = check.check(
            step,
            probe(-9.0 + change, -2.0),
            given(-9.0 + change + 0.3, -2.0 - 0.2),
        )
        assert gap == pytest.approx(0.3, abs=1e-6)


def test_numbers_that_stay_the_same_are_caught_at_the_third_update() -> None:
    check = SyncCheck(limit=1.0)
    # Moves by less than ten times the 0.1 that they disagree by.
    check.check(0, probe(-2.0), given(-2.1))
    check.check(1, probe(-2.01), given(-2.1))
    check.check(2, probe(-2.02), given(-2.1))
    with pytest.raises(StaleWeightsError, match="did not in 3 updates"):
        check.check(3, probe(-2.03), given(-2.1))


def test_a_learner_that_does_not_learn_is_no_fault() -> None:
    check = SyncCheck(limit=1.0)
    for version in range(10):
        check.check(version, probe(-2.0), given(-2.1))


def test_a_broken_generator_is_caught() -> None:
    learner = make_model(True, seed=0)
    broken = [np.full(len(ids) - 1, np.nan, np.float32) for ids in PROBE_IDS]
    with pytest.raises(StaleWeightsError, match=r"\(nan\)"):
        SyncCheck(1.0).check(1, probe_of(learner), broken)


def test_the_largest_difference_is_reported() -> None:
    two = Probe(((1, 2, 3), (4, 5)), (np.array([-1.0, -2.0]), np.array([-3.0])))
    logps = [np.array([-1.5, -2.0]), np.array([-2.25])]
    assert SyncCheck(1.0).check(1, two, logps) == 0.75
