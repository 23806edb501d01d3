"""Sampling from tiny random models."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pure_rllib.generation.base import Response, SamplingParams
from pure_rllib.generation.transformers_generator import (
    TransformersGenerator,
    choose_tokens,
    row_uniforms,
)
from pure_rllib.models.logprobs import LOGP, response_logps
from pure_rllib.weight_sync.object_store import LiveWeights

VOCAB_SIZE, PAD, EOS = 23, 0, 1
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": None,
}
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [5, 6, 7]]
NAMES = ["qwen2", "llama", "gpt2", "eager", "sliding window"]


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False)).eval()
    if name == "sliding window":
        return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=5)).eval()
    if name == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        ids = {"vocab_size": VOCAB_SIZE, "eos_token_id": EOS, "bos_token_id": None}
        config = GPT2Config(**sizes, **ids, initializer_range=0.3)
        return GPT2LMHeadModel(config).eval()
    model = Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True))
    if name == "eager":
        model.set_attn_implementation("eager")
    return model.eval()


def make_generator(name="qwen2", **settings) -> TransformersGenerator:
    settings = {"pad_token_id": PAD, "eos_token_ids": [EOS], **settings}
    return TransformersGenerator(make_model(name), **settings)


def same(first: list[Response], second: list[Response]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-5)
        assert one.terminated == other.terminated


@pytest.mark.parametrize("name", NAMES)
def test_greedy_is_the_models_own_generate(name):
    generator = make_generator(name)
    greedy = SamplingParams(20, temperature=0.0)
    responses = generator.generate(PROMPTS, 1, greedy, [0] * len(PROMPTS))
    for prompt, (response,) in zip(PROMPTS, responses, strict=True):
        expected = generator.model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
            pad_token_id=PAD,
            eos_token_id=EOS,
        )[0, len(prompt) :]
        assert response.token_ids.tolist() == expected.tolist()
    same(responses[0], responses[3])


@pytest.mark.parametrize("name", NAMES)
def test_logps_are_those_of_the_learner(name):
    generator = make_generator(name)
    params = SamplingParams(20, temperature=0.7)
    responses = generator.generate(PROMPTS, 3, params, [1, 2, 3, 4])
    for prompt, group in zip(PROMPTS, responses, strict=True):
        for response in group:
            ids = torch.tensor([[*prompt, *response.token_ids]])
            logps = response_logps(
                generator.model,
                ids,
                torch.tensor([len(prompt)]),
                ids[:, len(prompt) :],
                torch.ones(1, len(response.token_ids), dtype=torch.bool),
                temperature=0.7,
            )[LOGP]
            np.testing.assert_allclose(
                response.logps, logps[0].detach().numpy(), atol=1e-5
            )


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "sliding window"])
def test_a_response_depends_on_its_own_seed_only(name):
    generator = make_generator(name)
    params = SamplingParams(20)
    together = generator.generate(PROMPTS, 4, params, [7, 8, 9, 7])
    lengths = {len(response.token_ids) for group in together for response in group}
    assert len(lengths) > 3, "responses of like length would not test dropped rows"
    for i, prompt in enumerate(PROMPTS):
        (alone,) = generator.generate([prompt], 4, params, [[7, 8, 9, 7][i]])
        same(together[i], alone)
    # Prompts 0 and 3 and their seeds are the same, the members of a group are not.
    same(together[0], together[3])
    assert len({tuple(r.token_ids.tolist()) for r in together[0]}) > 1
    small_batches = make_generator(name, max_batch_size=3)
    again = small_batches.generate(PROMPTS, 4, params, [7, 8, 9, 7])
    for group, other in zip(together, again, strict=True):
        same(group, other)


def test_a_smaller_budget_gives_the_beginning():
    generator = make_generator()
    (long,) = generator.generate([[5, 6]], 6, SamplingParams(20), [3])
    (short,) = generator.generate([[5, 6]], 6, SamplingParams(4), [3])
    for first, second in zip(long, short, strict=True):
        assert first.token_ids[:4].tolist() == second.token_ids.tolist()


def test_each_prompt_has_its_own_budget():
    generator, params = make_generator(), SamplingParams(9)
    prompts, seeds, budgets = [[5, 6], [7], [8, 9, 10]], [1, 2, 3], [9, 1, 4]
    whole = generator.generate(prompts, 3, params, seeds)
    cut = generator.generate(prompts, 3, params, seeds, budgets)
    for group, long_group, budget in zip(cut, whole, budgets, strict=True):
        for one, long_one in zip(group, long_group, strict=True):
            assert one.token_ids.tolist() == long_one.token_ids[:budget].tolist()
            np.testing.assert_allclose(one.logps, long_one.logps[:budget], atol=1e-5)


def test_responses_end_at_any_stop_id_or_at_the_budget():
    generator = make_generator(eos_token_ids=[EOS, 4, 5])
    (group,) = generator.generate([[8, 9]], 64, SamplingParams(10), [0])
    assert {r.terminated for r in group} == {True, False}
    assert {int(r.token_ids[-1]) for r in group if r.terminated} == {EOS, 4, 5}
    for response in group:
        stops = np.isin(response.token_ids, [EOS, 4, 5])
        assert not stops[:-1].any() and stops[-1] == response.terminated
        assert response.terminated or len(response.token_ids) == 10
        assert response.token_ids.dtype == np.int64
        assert response.logps.dtype == np.float32
        assert response.logps.shape == response.token_ids.shape


def test_a_budget_of_one_token():
    (group,) = make_generator().generate([[8, 9]], 16, SamplingParams(1), [0])
    assert all(len(response.token_ids) == 1 for response in group)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error(temperature):
    generator = make_generator()
    with torch.no_grad():
        generator.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="logits are NaN"):
        generator.generate([[8]], 2, SamplingParams(3, temperature=temperature), [0])


def test_rows_are_dropped_late_on_cuda_without_a_difference(monkeypatch):
    # Counting finished rows at each token or rarely gives the same responses.
    params = SamplingParams(20)
    often = make_generator().generate(PROMPTS, 4, params, [7, 8, 9, 7])
    monkeypatch.setattr(
        "pure_rllib.generation.transformers_generator._TOKENS_PER_COUNT", {"cpu": 8}
    )
    rarely = make_generator().generate(PROMPTS, 4, params, [7, 8, 9, 7])
    for group, other in zip(often, rarely, strict=True):
        same(group, other)


def test_no_prompts():
    assert make_generator().generate([], 4, SamplingParams(3), []) == []


def test_the_live_module_and_its_mode_are_used():
    generator = make_generator()
    greedy = SamplingParams(10, temperature=0.0)
    (before,) = generator.generate([[8, 9]], 1, greedy, [0])
    generator.model.train()
    with torch.no_grad():
        for parameter in generator.model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    (after,) = generator.generate([[8, 9]], 1, greedy, [0])
    assert generator.model.training
    assert before[0].token_ids.tolist() != after[0].token_ids.tolist()


def test_loaded_weights_are_sampled_from():
    source, generator = make_generator(), make_generator()
    with torch.no_grad():
        for parameter in source.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    generator.load_weights(LiveWeights.of(source.model, version=5))
    params = SamplingParams(10)
    (first,) = source.generate([[8, 9]], 4, params, [0])
    (second,) = generator.generate([[8, 9]], 4, params, [0])
    same(first, second)
    assert generator.weights_version == 5


def test_given_sequences_have_the_log_probabilities_of_sampled_ones():
    generator = make_generator()
    ((response,),) = generator.generate([[8, 9]], 1, SamplingParams(12), [3])
    (logps,) = generator.logps([[8, 9, *response.token_ids.tolist()]])
    np.testing.assert_allclose(logps[1:], response.logps, atol=1e-5)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_sampled_tokens_have_the_models_distribution(temperature, top_p):
    generator = make_generator()
    params = SamplingParams(1, temperature=temperature, top_p=top_p)
    (group,) = generator.generate([[8, 9]], 4000, params, [11])
    with torch.no_grad():
        logits = generator.model(torch.tensor([[8, 9]])).logits[0, -1]
    probs = (logits / temperature).softmax(-1).double().numpy()
    if top_p < 1.0:
        order = np.argsort(-probs)
        outside = order[np.cumsum(probs[order]) - probs[order] >= top_p]
        assert len(outside) > 3
        probs[outside] = 0.0
        probs /= probs.sum()
    counts = np.bincount([r.token_ids[0] for r in group], minlength=VOCAB_SIZE)
    assert counts[probs == 0.0].sum() == 0
    # Cells with fewer than 5 expected are pooled. For at most 22 degrees of freedom
    # chi-square exceeds 68 with probability 1.3e-6.
    rare = probs * 4000 < 5
    expected = np.append(probs[~rare], probs[rare].sum()) * 4000
    observed = np.append(counts[~rare], counts[rare].sum())
    keep = expected > 0
    chi_square = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
    assert chi_square < 68, chi_square


def test_uniforms_belong_to_their_key():
    rows = row_uniforms([(0, 0), (0, 1), (1, 0), (-3, 0), (2**70, 5)], 2000)
    assert rows.shape == (5, 2000) and rows.dtype == np.float32
    assert (rows >= 0).all() and (rows < 1).all()
    # Independent streams: 10 correlations of 2,000 pairs, each beyond 0.12 with
    # probability 8e-8.
    correlations = np.corrcoef(rows) - np.eye(5)
    assert np.abs(correlations).max() < 0.12
    np.testing.assert_array_equal(row_uniforms([(1, 0)], 7)[0], rows[2, :7])


def test_impossible_tokens_are_never_chosen():
    logits = torch.full((3, 6), float("-inf"))
    logits[:, 2] = 0.0
    # Just below 1, rounding must not reach the impossible ids at the end.
    uniforms = torch.tensor([0.0, 0.5, 1 - 2**-24])
    chosen, logps = choose_tokens(logits, SamplingParams(1), uniforms)
    assert chosen.tolist() == [2, 2, 2] and logps.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("prompts", "params", "match"),
    [
        ([[5]], SamplingParams(0), "`max_response_tokens`"),
        ([[5]], SamplingParams(3, temperature=-1.0), "`temperature`"),
        ([[5]], SamplingParams(3, top_p=0.0), "`top_p`"),
        ([[5], []], SamplingParams(3), "at least one token"),
        ([[5] * 60], SamplingParams(5), "context"),
    ],
)
def test_wrong_calls_are_refused(prompts, params, match):
    with pytest.raises(ValueError, match=match):
        make_generator().generate(prompts, 2, params, [0] * len(prompts))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"eos_token_ids": []}, "`eos_token_ids` must hold"),
        ({"eos_token_ids": [99]}, "`eos_token_ids` .99. must lie"),
        ({"pad_token_id": -1}, "`pad_token_id`"),
        ({"max_batch_size": 0}, "`max_batch_size`"),
    ],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        make_generator(**settings)
