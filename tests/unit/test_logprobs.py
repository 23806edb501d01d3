"""Chunked log-probabilities against the whole softmax."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
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
    ENTROPY,
    LOGP,
    MEAN_LOGP,
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
    return Qwen2ForCausalLM(Qwen2Config(**{**SMALL, **changes})).eval()


def naive(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """Each output from whole logits: `[N, V]` and `[N]` ids."""
    logps = (logits.float() / temperature).log_softmax(-1)
    return {
        LOGP: logps.gather(1, ids[:, None]).squeeze(1),
        ENTROPY: -(logps.exp() * logps).sum(-1),
        MEAN_LOGP: logps.mean(-1).detach(),
    }


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    "outputs", [(LOGP,), (LOGP, ENTROPY), (LOGP, MEAN_LOGP), (ENTROPY, MEAN_LOGP, LOGP)]
)
@pytest.mark.parametrize("chunk_tokens", [1, 3, 100, None])
def test_values_and_gradients_equal_the_naive_way(with_bias, outputs, chunk_tokens):
    torch.manual_seed(1)
    leaves = [torch.randn(10, 6), torch.randn(31, 6), torch.randn(31)]
    ids = torch.randint(0, 31, (10,))
    upstream = {LOGP: torch.randn(10), ENTROPY: torch.randn(10)}
    grads, values = [], []
    for chunked in (True, False):
        hidden, weight, bias = (x.clone().requires_grad_() for x in leaves)
        bias_or_none = bias if with_bias else None
        if chunked:
            found = chunked_logps(
                hidden,
                weight,
                ids,
                bias=bias_or_none,
                temperature=0.7,
                chunk_tokens=chunk_tokens,
                outputs=outputs,
            )
        else:
            logits = torch.nn.functional.linear(hidden, weight, bias_or_none)
            every = naive(logits, ids, 0.7)
            found = {name: every[name] for name in outputs}
        for name in set(outputs) & set(upstream):
            (found[name] * upstream[name]).sum().backward(retain_graph=True)
        values.append(found)
        grads.append([x.grad for x in (hidden, weight, bias) if x.grad is not None])
    assert tuple(values[0]) == outputs
    close(*values)
    close(*grads)
    assert len(grads[0]) == 2 + with_bias


def test_the_mean_over_the_vocabulary_has_no_gradient_and_changes_nothing():
    hidden = torch.randn(5, 6, requires_grad=True)
    weight, ids = torch.randn(9, 6), torch.arange(5)
    plain = chunked_logps(hidden, weight, ids, outputs=(LOGP, ENTROPY))
    more = chunked_logps(hidden, weight, ids, outputs=(LOGP, ENTROPY, MEAN_LOGP))
    assert more[LOGP].requires_grad and not more[MEAN_LOGP].requires_grad
    for name, values in plain.items():
        assert torch.equal(values, more[name])
        grads = [
            torch.autograd.grad(found[name].sum(), hidden, retain_graph=True)[0]
            for found in (plain, more)
        ]
        assert torch.equal(*grads)


def test_only_the_gradients_that_are_needed_are_made():
    hidden = torch.randn(4, 6, requires_grad=True)
    weight = torch.randn(9, 6)
    found = chunked_logps(hidden, weight, torch.tensor([0, 1, 2, 3]))
    found[LOGP].sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_entropy_alone_has_a_gradient():
    hidden = torch.randn(4, 6, requires_grad=True)
    weight = torch.randn(9, 6)
    ids = torch.zeros(4, dtype=torch.long)
    entropies = [
        chunked_logps(hidden, weight, ids, outputs=(ENTROPY,))[ENTROPY],
        naive(hidden @ weight.t(), ids)[ENTROPY],
    ]
    close(*(torch.autograd.grad(each.sum(), hidden)[0] for each in entropies))


def test_bfloat16_softmax_is_float32():
    torch.manual_seed(2)
    hidden = torch.randn(8, 16, dtype=torch.bfloat16)
    weight = torch.randn(500, 16, dtype=torch.bfloat16)
    ids = torch.randint(0, 500, (8,))
    outputs = (LOGP, ENTROPY, MEAN_LOGP)
    found = chunked_logps(hidden, weight, ids, chunk_tokens=3, outputs=outputs)
    assert {values.dtype for values in found.values()} == {torch.float32}
    close(found, naive(hidden @ weight.t(), ids))


def test_no_tokens_give_no_logps_and_zero_gradients():
    weight = torch.randn(9, 6, requires_grad=True)
    hidden = torch.randn(0, 6, requires_grad=True)
    logps = chunked_logps(hidden, weight, torch.zeros(0, dtype=torch.long))[LOGP]
    logps.sum().backward()
    assert logps.shape == (0,) and weight.grad is not None
    assert (weight.grad == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "must be > 0 because it divides"),
        ({"outputs": ("logits",)}, r"`outputs` \(\('logits',\)\) must be some of"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    ids = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        chunked_logps(torch.zeros(1, 2), torch.zeros(3, 2), ids, **settings)


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


MODELS = ["tied", "untied", "absolute positions", "head with bias"]


@pytest.mark.parametrize("name", MODELS)
def test_response_logps_reads_the_right_positions(name):
    model = models()[name]
    # Row 0: P P P a b c . .    prompt 3, response 3
    # Row 1: P P P P P a b c    prompt 5, response 3, the second one off the mask
    ids = torch.randint(0, 37, (2, 8), generator=torch.Generator().manual_seed(3))
    prompt_lens = torch.tensor([3, 5])
    loss_mask = torch.tensor([[True, True, True], [True, False, True]])
    found = response_logps(
        model,
        ids,
        prompt_lens,
        torch.stack([ids[0, 3:6], ids[1, 5:8]]),
        loss_mask,
        temperature=0.5,
        chunk_tokens=2,
        outputs=(LOGP, ENTROPY, MEAN_LOGP),
    )
    for row, (prompt, length) in enumerate([(3, 6), (5, 8)]):
        logits = model(input_ids=ids[row : row + 1, :length]).logits[0]
        expected = naive(logits[prompt - 1 : -1], ids[row, prompt:length], 0.5)
        for output, values in expected.items():
            close(found[output][row], values * loss_mask[row])


def test_tied_embeddings_collect_both_gradients():
    model = qwen(tie_word_embeddings=True)
    ids = torch.tensor([[1, 2, 3, 4]])
    arguments = (ids, torch.tensor([1]), ids[:, 1:], torch.ones(1, 3).bool())
    response_logps(model, *arguments, chunk_tokens=2)[LOGP].sum().backward()
    weight = model.get_output_embeddings().weight
    chunked = weight.grad.clone()
    model.zero_grad()
    logps = model(ids).logits[:, :-1].log_softmax(-1)
    logps.gather(2, ids[:, 1:, None]).sum().backward()
    torch.testing.assert_close(chunked, weight.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_ordinary_models_pass_the_check(name):
    check_chunked_logps(models()[name])


def test_models_that_change_their_logits_are_refused():
    torch.manual_seed(0)
    granite = GraniteForCausalLM(
        GraniteConfig(**SMALL, logits_scaling=8.0, initializer_range=0.5)
    )
    with pytest.raises(ValueError, match="scales or caps"):
        check_chunked_logps(granite.eval())


class LogitRows(TorchDispatchMode):
    """Notes how many rows of a whole vocabulary any operation makes at once."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size, self.most = vocab_size, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and self.vocab_size in tensor.shape:
                self.most = max(self.most, tensor.numel() // self.vocab_size)
        return out


def test_logits_of_all_tokens_never_exist():
    vocab_size, chunk_tokens = 151_936, 12
    model = qwen(vocab_size=vocab_size, hidden_size=8, num_hidden_layers=1)
    ids = torch.arange(60).view(2, 30)
    mask = torch.ones(2, 20, dtype=torch.bool)
    with LogitRows(vocab_size) as made:
        found = response_logps(
            model,
            ids,
            torch.tensor([10, 10]),
            ids[:, 10:],
            mask,
            chunk_tokens=chunk_tokens,
            outputs=(LOGP, ENTROPY, MEAN_LOGP),
        )
        (found[LOGP] + found[ENTROPY]).sum().backward()
    # Those of the chunks are; the head's weights and their gradient have 8 such rows.
    assert made.most == chunk_tokens
