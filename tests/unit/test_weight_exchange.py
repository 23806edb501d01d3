"""The proof that weights arrived."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pure_rllib.algorithms.pure.weight_exchange import (
    Probe,
    StaleWeightsError,
    Weights,
    check_arrival,
)
from pure_rllib.generation.logprobs import sequence_logps
from pure_rllib.generation.transformers_generator import TransformersGenerator
from pure_rllib.generation.weights import LiveWeights, cut_into_shards, untied_tensors

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


def published(model: Qwen2ForCausalLM, version: int = 7) -> Weights:
    with torch.no_grad():
        logps = tuple(sequence_logps(model, ids) for ids in PROBE_IDS)
    source = LiveWeights.of(model, version)
    return Weights(version, "p", source, Probe(PROBE_IDS, logps))


@pytest.mark.parametrize("tied", [True, False])
def test_a_generator_with_all_tensors_passes(tied: bool) -> None:
    weights = published(make_model(tied, seed=0))
    generator = TransformersGenerator(
        make_model(tied, seed=1), pad_token_id=0, eos_token_ids=[1]
    )
    assert isinstance(weights.source, LiveWeights)
    generator.load_weights(weights.source)
    gap = check_arrival(weights, generator.logps(PROBE_IDS), 1e-4)
    assert 0.0 <= gap < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_each_stale_tensor_is_caught(tied: bool) -> None:
    learner = make_model(tied, seed=0)
    weights = published(learner)
    names = [name for name, _ in untied_tensors(learner)]
    for stale in names:
        model = make_model(tied, seed=0)
        parameter = model.get_parameter(stale)
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn_like(parameter))
        generator = TransformersGenerator(model, pad_token_id=0, eos_token_ids=[1])
        with pytest.raises(StaleWeightsError, match="weights version 7"):
            check_arrival(weights, generator.logps(PROBE_IDS), 1e-3)


def test_a_broken_generator_is_caught() -> None:
    weights = published(make_model(True, seed=0))
    broken = [np.full(len(ids) - 1, np.nan, np.float32) for ids in PROBE_IDS]
    with pytest.raises(StaleWeightsError, match=r"\(nan\)"):
        check_arrival(weights, broken, 1.0)


def test_the_probe_takes_the_largest_difference() -> None:
    probe = Probe(
        ((1, 2, 3), (4, 5)),
        (np.array([-1.0, -2.0]), np.array([-3.0])),
    )
    assert probe.gap([np.array([-1.5, -2.0]), np.array([-2.25])]) == 0.75


def test_shards_of_a_source_can_be_read_twice() -> None:
    source = LiveWeights(1, lambda: cut_into_shards([("a", torch.ones(2))]))
    assert len(list(source.shards())) == len(list(source.shards())) == 1
