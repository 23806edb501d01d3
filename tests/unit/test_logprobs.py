"""Chunked log-probabilities against the whole softmax."""

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pure_rllib.models.logprobs import (
    check_chunked_logps,
    chunked_logps,
    response_logps,
)

SMALL: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def qwen(**changes) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, **changes)).eval()


def naive(hidden, weight, ids, bias, temperature):
    logps = (
        torch.nn.functional.linear(hidden, weight, bias).float() / temperature
    ).log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    return logps.gather(1, ids[:, None]).squeeze(1), entropy


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 100, None])
def test_values_and_gradients_equal_the_naive_way(
    with_bias, with_entropy, chunk_tokens
):
    torch.manual_seed(1)
    leaves = [torch.randn(10, 6), torch.randn(31, 6), torch.randn(31)]
    ids = torch.randint(0, 31, (10,))
    weights, entropy_weights = torch.randn(10), torch.randn(10)
    grads, values = [], []
    for chunked in (True, False):
        hidden, weight, bias = (x.clone().requires_grad_() for x in leaves)
        bias_or_none = bias if with_bias else None
        if chunked:
            logps, entropy = chunked_logps(
                hidden,
                weight,
                ids,
                bias=bias_or_none,
                temperature=0.7,
                chunk_tokens=chunk_tokens,
                with_entropy=with_entropy,
            )
        else:
            logps, entropy = naive(hidden, weight, ids, bias_or_none, 0.7)
        loss = (logps * weights).sum()
        if entropy is not None and with_entropy:
            loss = loss + (entropy * entropy_weights).sum()
        loss.backward()
        values.append(logps)
        if entropy is not None and with_entropy:
            values.append(entropy)
        grads.append([x.grad for x in (hidden, weight, bias) if x.grad is not None])
    half = len(values) // 2
    torch.testing.assert_close(values[:half], values[half:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-5)
    assert len(grads[0]) == 2 + with_bias


def test_only_the_gradients_that_are_needed_are_made():
    hidden = torch.randn(4, 6, requires_grad=True)
    weight = torch.randn(9, 6)
    logps, _ = chunked_logps(hidden, weight, torch.tensor([0, 1, 2, 3]))
    logps.sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_entropy_alone_has_a_gradient():
    hidden = torch.randn(4, 6, requires_grad=True)
    weight = torch.randn(9, 6)
    ids = torch.zeros(4, dtype=torch.long)
    _, entropy = chunked_logps(hidden, weight, ids, with_entropy=True)
    assert entropy is not None
    (grad,) = torch.autograd.grad(entropy.sum(), hidden)
    _, slow = naive(hidden, weight, ids, None, 1.0)
    (expected,) = torch.autograd.grad(slow.sum(), hidden)
    torch.testing.assert_close(grad, expected, atol=1e-6, rtol=1e-5)


def test_bfloat16_softmax_is_float32():
    torch.manual_seed(2)
    hidden = torch.randn(8, 16, dtype=torch.bfloat16)
    weight = torch.randn(500, 16, dtype=torch.bfloat16)
    ids = torch.randint(0, 500, (8,))
    logps, _ = chunked_logps(hidden, weight, ids, chunk_tokens=3)
    expected, _ = naive(hidden, weight, ids, None, 1.0)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)


def test_no_tokens_give_no_logps_and_zero_gradients():
    weight = torch.randn(9, 6, requires_grad=True)
    hidden = torch.randn(0, 6, requires_grad=True)
    logps, _ = chunked_logps(hidden, weight, torch.zeros(0, dtype=torch.long))
    logps.sum().backward()
    assert logps.shape == (0,) and weight.grad is not None
    assert (weight.grad == 0).all()


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="must be > 0 because it divides"):
        chunked_logps(
            torch.zeros(1, 2),
            torch.zeros(3, 2),
            torch.zeros(1, dtype=torch.long),
            temperature=0.0,
        )


def models():
    torch.manual_seed(0)
    gpt2 = GPT2Config(
        vocab_size=37, n_embd=16, n_layer=2, n_head=4, n_positions=64, n_inner=32
    )
    phi = PhiForCausalLM(PhiConfig(**SMALL)).eval()
    torch.nn.init.normal_(phi.lm_head.bias)
    return {
        "tied": qwen(tie_word_embeddings=True),
        "untied": qwen(tie_word_embeddings=False),
        "absolute positions": GPT2LMHeadModel(gpt2).eval(),
        "head with bias": phi,
    }


@pytest.mark.parametrize(
    "name", ["tied", "untied", "absolute positions", "head with bias"]
)
@pytest.mark.parametrize("with_mask", [True, False])
def test_response_logps_reads_the_right_positions(name, with_mask):
    model = models()[name]
    # Row 0: P P P a b c . .    prompt 3, response 3
    # Row 1: P P P P P a b c    prompt 5, response 3, the second one off the mask
    ids = torch.randint(0, 37, (2, 8), generator=torch.Generator().manual_seed(3))
    prompt_lens = torch.tensor([3, 5])
    response_ids = torch.stack([ids[0, 3:6], ids[1, 5:8]])
    loss_mask = torch.tensor([[True, True, True], [True, False, True]])
    attention_mask = torch.ones(2, 8, dtype=torch.long)
    attention_mask[0, 6:] = 0
    logps, entropy = response_logps(
        model,
        ids,
        attention_mask if with_mask else None,
        prompt_lens,
        response_ids,
        loss_mask,
        temperature=0.5,
        chunk_tokens=2,
        with_entropy=True,
    )
    assert entropy is not None
    for row, length in enumerate([6, 8]):
        logits = model(ids[row : row + 1, :length]).logits[0].float() / 0.5
        every = logits.log_softmax(-1)
        for t in range(3):
            at = int(prompt_lens[row]) + t
            if not loss_mask[row, t]:
                assert logps[row, t] == 0.0 and entropy[row, t] == 0.0
                continue
            expected = every[at - 1, ids[row, at]]
            torch.testing.assert_close(logps[row, t], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                entropy[row, t],
                -(every[at - 1].exp() * every[at - 1]).sum(),
                atol=1e-5,
                rtol=1e-5,
            )


def test_tied_embeddings_collect_both_gradients():
    model = qwen(tie_word_embeddings=True)
    ids = torch.tensor([[1, 2, 3, 4]])
    arguments = (ids, None, torch.tensor([1]), ids[:, 1:], torch.ones(1, 3).bool())
    response_logps(model, *arguments, chunk_tokens=2)[0].sum().backward()
    weight = model.get_output_embeddings().weight
    chunked = weight.grad.clone()
    model.zero_grad()
    logps = model(ids).logits[:, :-1].log_softmax(-1)
    logps.gather(2, ids[:, 1:, None]).sum().backward()
    torch.testing.assert_close(chunked, weight.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["tied", "untied", "absolute positions", "head with bias"]
)
def test_ordinary_models_pass_the_check(name):
    check_chunked_logps(models()[name])


def test_models_that_change_their_logits_are_refused():
    torch.manual_seed(0)
    gemma = Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=4)).eval()
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        check_chunked_logps(gemma)
    granite = GraniteForCausalLM(
        GraniteConfig(**SMALL, logits_scaling=8.0, initializer_range=0.5)
    )
    with pytest.raises(ValueError, match="scales or caps"):
        check_chunked_logps(granite.eval())
