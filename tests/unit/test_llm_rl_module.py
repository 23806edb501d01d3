"""The policy as an RLModule, on two layers of random weights."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from pure_rllib.models import columns
from pure_rllib.models.flat_attention import takes_flat_rows
from pure_rllib.models.llm_rl_module import LLMRLModule
from pure_rllib.models.logprobs import ENTROPY, LOGP, MEAN_LOGP
from pure_rllib.testing import tiny_model_config

VOCAB = 32


def module(*, inference_only: bool = False, **model_config: Any) -> LLMRLModule:
    settings = {"model": tiny_model_config(VOCAB), "seed": 1, **model_config}
    return LLMRLModule(
        observation_space=None,
        action_space=None,
        inference_only=inference_only,
        learner_only=False,
        catalog_class=None,
        model_config=settings,
    )


# A model with dropout.
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_positions": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# A model whose state runs along a row.
MAMBA = {
    "model_type": "mamba",
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 1,
}


BATCH = {
    #                                 P  P  t0  t1  t2
    columns.INPUT_IDS: torch.tensor([[1, 2, 10, 11, 12], [3, 13, 14, 0, 0]]),
    columns.PROMPT_LENS: torch.tensor([2, 1]),
    Columns.ACTIONS: torch.tensor([[10, 11, 12], [13, 14, 0]]),
    Columns.LOSS_MASK: torch.tensor([[True, True, True], [True, True, False]]),
}


def logps(made: LLMRLModule, model: Any = None) -> Tensor:
    return made.token_outputs(model or made.policy, BATCH)[LOGP].detach()


def direct(model: Any, temperature: float) -> dict[str, Tensor]:
    """All outputs from whole logits, one row at a time."""
    found = {name: torch.zeros(2, 3) for name in (LOGP, ENTROPY, MEAN_LOGP)}
    for row, (prompt, response) in enumerate([(2, 3), (1, 2)]):
        ids = BATCH[columns.INPUT_IDS][row : row + 1, : prompt + response]
        full = (model(input_ids=ids).logits[0] / temperature).log_softmax(-1)
        for t in range(response):
            at = full[prompt - 1 + t]
            found[LOGP][row, t] = at[ids[0, prompt + t]]
            found[ENTROPY][row, t] = -(at.exp() * at).sum()
            found[MEAN_LOGP][row, t] = at.mean()
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_forward_pass_gives_what_is_asked_for(temperature: float) -> None:
    made = module(temperature=temperature, logp_chunk_tokens=2)
    expected = direct(made.policy, temperature)
    asked = (LOGP, ENTROPY, MEAN_LOGP)
    for output, names in (
        (made.forward_train(BATCH), (Columns.ACTION_LOGP, ENTROPY)),
        (made.forward_train(BATCH, outputs=asked), asked),
    ):
        assert tuple(output) == names
        for name, values in output.items():
            torch.testing.assert_close(values, expected[name], atol=2e-5, rtol=1e-5)


def test_a_seed_makes_the_weights() -> None:
    first, same, other = (module(seed=seed).get_state() for seed in (1, 1, 2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, same[name])
    assert any((array != other[name]).any() for name, array in first.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_state_is_a_copy_that_takes_a_policy_back_bit_by_bit(dtype: str) -> None:
    made = module(dtype=dtype)
    assert next(made.policy.parameters()).dtype == getattr(torch, dtype)
    state = made.get_state()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    before = logps(made)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter.add_(1.0)
    assert not torch.equal(logps(made), before)
    made.set_state(state)
    assert torch.equal(logps(made), before)


def test_a_bfloat16_state_fits_a_float32_policy() -> None:
    half, full = module(dtype="bfloat16"), module(dtype="float32", seed=2)
    full.set_state(half.get_state())
    expected = half.policy.state_dict()
    for name, tensor in full.policy.state_dict().items():
        assert torch.equal(tensor, expected[name].float()), name


def test_env_runners_get_no_state_and_an_empty_one_changes_nothing() -> None:
    made = module()
    assert made.get_state(inference_only=True) == {}
    before = made.get_state()
    made.set_state({})
    for name, array in made.get_state().items():
        np.testing.assert_array_equal(array, before[name])


def test_reference_policy_is_absent_by_default_and_frozen_if_asked_for() -> None:
    assert module().reference is None
    assert module(with_reference=True, inference_only=True).reference is None
    made = module(with_reference=True)
    assert made.reference is not None
    assert not any(p.requires_grad for p in made.reference.parameters())
    assert all(p.requires_grad for p in made.policy.parameters())
    for name, tensor in made.policy.state_dict().items():
        assert torch.equal(tensor, made.reference.state_dict()[name])
    # It is what the configuration names, not what was learned.
    assert not any(name.startswith("reference") for name in made.get_state())
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(logps(made, made.reference), logps(made))


def test_dropout_stays_off_in_training() -> None:
    made = module(model=GPT2, with_reference=True)
    assert made.train() is made
    assert made.training
    assert made.reference is not None and not made.reference.training
    first, second = (made.forward_train(BATCH) for _ in range(2))
    assert torch.equal(first[Columns.ACTION_LOGP], second[Columns.ACTION_LOGP])


@pytest.mark.parametrize("model", [tiny_model_config(VOCAB), GPT2])
def test_gradient_checkpointing_changes_nothing_but_memory(
    model: dict[str, Any],
) -> None:
    grads = []
    for checkpointing in (False, True):
        made = module(model=model, gradient_checkpointing=checkpointing).train()
        passes: list[int] = []
        layer = next(
            m for m in made.policy.modules() if type(m).__name__.endswith("MLP")
        )
        layer.register_forward_pre_hook(lambda *_, seen=passes: seen.append(1))
        output = made.forward_train(BATCH)
        output[Columns.ACTION_LOGP].sum().backward()
        # Backward runs each layer again: that is what checkpointing is.
        assert len(passes) == (2 if checkpointing else 1)
        grads.append([p.grad.clone() for p in made.policy.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_autocast_computes_in_bfloat16_and_sums_in_float32(checkpointing: bool) -> None:
    settings: dict[str, Any] = {"gradient_checkpointing": checkpointing}
    exact, mixed = (
        module(autocast_dtype=dtype, **settings).train() for dtype in (None, "bfloat16")
    )
    seen = []
    layer = next(m for m in mixed.policy.modules() if isinstance(m, torch.nn.Linear))
    layer.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    outputs = [made.forward_train(BATCH) for made in (exact, mixed)]
    found = [output[Columns.ACTION_LOGP] for output in outputs]
    assert seen == [torch.bfloat16]
    assert found[1].dtype == outputs[1][ENTROPY].dtype == torch.float32
    assert 0.0 < (found[0] - found[1]).abs().max() < 0.2
    for values in found:
        values.sum().backward()
    for one, other in zip(
        exact.policy.parameters(), mixed.policy.parameters(), strict=True
    ):
        assert one.grad is not None and other.grad is not None
        assert other.dtype == other.grad.dtype == torch.float32
        # The weights of this model are large, and so is what is rounded.
        assert (one.grad - other.grad).norm() < 0.3 * one.grad.norm()


def test_the_attention_implementation_is_the_one_that_is_asked_for() -> None:
    outputs = []
    for name in ("eager", "sdpa"):
        made = module(attn_implementation=name, with_reference=True)
        assert made.policy.config._attn_implementation == name
        reference: Any = made.reference
        assert reference.config._attn_implementation == name
        # Only eager attention can say what it attended to.
        output = made.policy.model(torch.tensor([[1, 2]]), output_attentions=True)
        has_weights = bool(output.attentions) and output.attentions[0] is not None
        assert has_weights == (name == "eager")
        outputs.append(made.forward_train(BATCH)[Columns.ACTION_LOGP])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


def test_acting_token_by_token_reads_an_observation_of_the_environment() -> None:
    made = module(temperature=0.5)
    ids = torch.tensor([[1, 2, 10, 0, 0], [3, 0, 0, 0, 0]])
    mask = (ids != 0).long()
    observation = {"input_ids": ids, "attention_mask": mask}
    for forward in (made.forward_exploration, made.forward_inference):
        logits = forward({Columns.OBS: observation})[Columns.ACTION_DIST_INPUTS]
        assert logits.shape == (2, VOCAB)
        for row, size in enumerate([3, 1]):
            alone = made.policy(input_ids=ids[row : row + 1, :size]).logits[0, -1]
            torch.testing.assert_close(logits[row], alone / 0.5, atol=1e-5, rtol=1e-5)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    gemma = {
        "model_type": "gemma2",
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        module(model=gemma)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": MAMBA}, "MambaForCausalLM.*its attention is its own"),
        ({"attn_implementation": "eager"}, r"`attn_implementation` \(eager\) is set"),
    ],
)
def test_policies_that_cannot_be_packed_are_padded_or_refused(
    settings: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = module(packing="auto", **settings)
    assert not takes_flat_rows(made.policy)
    assert re.search(f"Rows are padded for .*{reason}", caplog.text)
    with pytest.raises(ValueError, match=rf"`packing` \(True\) must be.*{reason}"):
        module(packing=True, **settings)


def test_policy_and_reference_take_flat_rows_where_a_learner_packs() -> None:
    made = module(packing="auto", with_reference=True)
    assert takes_flat_rows(made.policy) and takes_flat_rows(made.reference)
    assert not takes_flat_rows(module(packing=False).policy)
    assert not takes_flat_rows(module(packing="auto", inference_only=True).policy)
