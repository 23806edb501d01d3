"""Flat rows through models of many families, against each row alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from pure_rllib.models import columns
from pure_rllib.models.flat_attention import set_flat_attention, takes_flat_rows
from pure_rllib.models.flat_rows import lay_out
from pure_rllib.models.logprobs import ENTROPY, LOGP, response_logps
from pure_rllib.models.lora import add_lora

VOCAB = 89
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    # Large enough for tokens to matter to each other.
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 6}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "llama": ("llama", {}),
    "gpt2, learned positions": ("gpt2", GPT2),
    "mistral, sliding windows": ("mistral", WINDOW),
    "gemma": ("gemma", {}),
    "gemma3, some layers with windows": ("gemma3_text", WINDOW | LAYERS),
    "experts": ("mixtral", {"num_local_experts": 4}),
}
# The others, which are transformers' own code again, are slow tests.
FIRST = ("qwen2", "gpt2, learned positions", "mistral, sliding windows")


def rows_of(*rows: tuple[int, list[int], list[int]]) -> dict[str, Any]:
    """Rows of (group, prompt, response), padded with 99."""
    ids = [torch.tensor(prompt + response) for _, prompt, response in rows]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=99)
    return {
        columns.INPUT_IDS: padded,
        columns.PROMPT_LENS: torch.tensor([len(prompt) for _, prompt, _ in rows]),
        columns.RESPONSE_LENS: torch.tensor([len(response) for *_, response in rows]),
        columns.GROUP_ID: torch.tensor([group for group, *_ in rows]),
    }


def model(family: str, **changes: Any) -> Any:
    model_type, settings = FAMILIES.get(family, (family, {}))
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, **settings, **changes})
    return AutoModelForCausalLM.from_config(config).eval()


def batch(*lengths: tuple[int, int, int], seed: int = 0) -> dict[str, Any]:
    """Rows of (group, prompt tokens, response tokens); a group has one prompt."""
    draw = torch.Generator().manual_seed(seed)
    prompts: dict[int, list[int]] = {}
    rows = []
    for group, prompt, response in lengths:
        ids = torch.randint(3, VOCAB, (64,), generator=draw).tolist()
        own = prompts.setdefault(group, ids[:prompt])[:prompt]
        rows.append((group, own, ids[64 - response :] if response else []))
    return rows_of(*rows)


# Groups of several sizes and of one, responses of 0, 1 and 2 tokens, a prompt of one,
# rows longer than the windows, and a group whose prompts differ in length.
MIXED = (
    *((0, 7, r) for r in (9, 1, 0, 2, 12)),
    *((1, 1, r) for r in (3, 8)),
    (2, 5, 6),
    *((3, p, 4) for p in (10, 13)),
    (4, 20, 11),
)


def passed(
    policy: Any, rows: dict[str, Any], *, flat: bool, outputs: Any = (LOGP, ENTROPY)
) -> dict[str, Tensor]:
    mask = columns.response_mask(rows)
    index = (rows[columns.PROMPT_LENS][:, None] + torch.arange(mask.shape[1])).clamp(
        max=rows[columns.INPUT_IDS].shape[1] - 1
    )
    device = next(policy.parameters()).device
    found = response_logps(
        policy,
        rows[columns.INPUT_IDS].where(rows[columns.INPUT_IDS] < VOCAB, 0).to(device),
        rows[columns.PROMPT_LENS].to(device),
        rows[columns.INPUT_IDS].gather(1, index).to(device),
        mask.to(device),
        flat_row=lay_out(rows).to(device) if flat else None,
        temperature=0.8,
        outputs=outputs,
    )
    return {name: values.cpu() for name, values in found.items()}


def gradients(policy: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a loss that weighs every token differently."""
    policy.zero_grad()
    weights = torch.linspace(-1.0, 1.0, found[LOGP].numel()).view_as(found[LOGP])
    (weights * (found[LOGP] + 0.3 * found[ENTROPY])).sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in policy.named_parameters()
        if parameter.grad is not None
    }


def assert_same(policy: Any) -> None:
    rows = batch(*MIXED)
    padded, flat = passed(policy, rows, flat=False), passed(policy, rows, flat=True)
    for name in (LOGP, ENTROPY):
        torch.testing.assert_close(flat[name], padded[name], atol=1e-5, rtol=1e-5)
    expected, actual = gradients(policy, padded), gradients(policy, flat)
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        gap = (actual[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert gap < 1e-5, (name, gap)


def checkpointing(policy: Any) -> None:
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    for module in policy.modules():
        module.training = getattr(module, "gradient_checkpointing", False)


def with_lora(policy: Any) -> None:
    add_lora(policy, {"r": 4, "target_modules": "all-linear"}, seed=0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name not in FIRST else [])
        for name in FAMILIES
    ],
)
def test_flat_rows_give_what_rows_alone_give(family: str) -> None:
    policy = model(family)
    assert set_flat_attention(policy) is None
    assert_same(policy)


@pytest.mark.parametrize("change", [checkpointing, with_lora])
def test_flat_rows_go_with(change: Callable[[Any], None]) -> None:
    policy = model("llama")
    set_flat_attention(policy)
    change(policy)
    assert_same(policy)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_in_half_precision_flat_rows_are_as_near_to_float32(device: str) -> None:
    exact, policy = model("qwen2"), model("qwen2")
    rows = batch(*((group + 5 * i, p, r) for i in range(8) for group, p, r in MIXED))
    mask = columns.response_mask(rows)
    expected = passed(exact, rows, flat=False)[LOGP][mask]
    policy.to(device, torch.bfloat16)
    set_flat_attention(policy)
    flat, padded = (
        (passed(policy, rows, flat=flat)[LOGP][mask] - expected).abs()
        for flat in (True, False)
    )
    assert 0 < flat.mean() <= 1.1 * padded.mean()
    assert flat.quantile(0.99) <= 1.1 * padded.quantile(0.99)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FIRST)
def test_flat_rows_give_on_a_gpu_what_rows_alone_give(family: str) -> None:
    # Logits of the size of real ones: rounding is a share of them.
    policy = model(family, initializer_range=0.1).cuda()
    assert set_flat_attention(policy) is None
    assert_same(policy)
    rows = batch(*MIXED)
    flat, padded = (
        passed(policy.bfloat16(), rows, flat=flat)[LOGP] for flat in (True, False)
    )
    torch.testing.assert_close(flat, padded, atol=2e-2, rtol=0.0)


@pytest.mark.parametrize("family", ["qwen2", "mistral, sliding windows"])
def test_one_response_moves_no_other_by_a_bit(family: str) -> None:
    policy = model(family)
    set_flat_attention(policy)
    rows = batch(*MIXED)
    changed = {**rows, columns.INPUT_IDS: rows[columns.INPUT_IDS].clone()}
    changed[columns.INPUT_IDS][4, 7:19] = torch.arange(3, 15)
    before, after = (
        passed(policy, each, flat=True, outputs=(LOGP,))[LOGP]
        for each in (rows, changed)
    )
    same = torch.tensor(
        [torch.equal(*pair) for pair in zip(before, after, strict=True)]
    )
    assert same.tolist() == [row != 4 for row in range(len(same))]


def test_other_rows_pass_as_ever() -> None:
    policy, plain = model("qwen2"), model("qwen2")
    set_flat_attention(policy)
    ids = batch((0, 4, 5), (1, 6, 1))[columns.INPUT_IDS] % VOCAB
    mask = torch.tensor([[1] * 9, [1] * 7 + [0] * 2])
    for kwargs in ({}, {"attention_mask": mask}):
        found, expected = (m(input_ids=ids, **kwargs).logits for m in (policy, plain))
        assert torch.equal(found, expected)
    found, expected = (
        m.generate(ids[:1], do_sample=False, max_new_tokens=5) for m in (policy, plain)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        # A state runs along the row; a convolution does; attention is not SDPA's.
        ("mamba", {"state_size": 4}, "its attention is its own"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "layers of conv"),
        ("llama4_text", {"num_local_experts": 2}, "layers of chunked_attention"),
        ("gpt_oss", {"num_local_experts": 2}, "its attention is its own"),
        ("bloom", {"n_head": 4, "n_layer": 2}, "its attention is its own"),
    ],
)
def test_models_that_would_mix_rows_are_left_as_they_are(
    family: str, settings: dict[str, Any], reason: str
) -> None:
    policy = model(family, **settings)
    before = policy.config._attn_implementation
    assert reason in (set_flat_attention(policy) or "")
    assert policy.config._attn_implementation == before
    assert not takes_flat_rows(policy)


def test_a_model_that_differs_is_found_by_its_hidden_states() -> None:
    policy = model("llama")
    # A layer that hands a little of each token to the next one in the row.
    policy.model.layers[0].mlp.register_forward_hook(
        lambda _, __, out: out + 0.1 * out.roll(1, dims=1)
    )
    reason = set_flat_attention(policy)
    assert reason is not None and "from those of rows alone" in reason
    assert not takes_flat_rows(policy)


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, shared storage once."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = run()
    assert found
    return sum(kept.values())


def test_flat_rows_keep_less_than_half_of_what_padded_ones_do() -> None:
    policy = model("llama", max_position_embeddings=256)
    set_flat_attention(policy)
    rows = rows_of(
        *(
            (group, [3 + group] * 143, [5] * (32 - response))
            for group in range(8)
            for response in range(8)
        )
    )
    padded, flat = (
        saved_bytes(partial(passed, policy, rows, flat=flat)) for flat in (False, True)
    )
    assert flat <= 0.5 * padded
