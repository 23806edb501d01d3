"""LoRA: starts as the model, trains alone, merges, and can be switched off."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor
from transformers import AutoModelForCausalLM

from pure_rllib.algorithms import PUREConfig
from pure_rllib.learners.master_weights import MasterWeights
from pure_rllib.models import columns
from pure_rllib.models.export import export_policy, untied_tensors
from pure_rllib.models.llm_rl_module import LLMRLModule
from pure_rllib.models.loading import load_policy
from pure_rllib.models.logprobs import LOGP
from pure_rllib.models.lora import lora_merged, lora_off, merged_tensors, save_merged
from pure_rllib.testing import tiny_model_config
from tests.unit.test_llm_rl_module import VOCAB
from tests.unit.test_llm_rl_module import module as plain_module

LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def module(lora: dict[str, Any] | None = LORA, **settings: Any) -> LLMRLModule:
    return plain_module(lora=lora, **settings)


def trainable(made: LLMRLModule) -> list[Tensor]:
    return [p for p in made.policy.parameters() if p.requires_grad]


def shaken(**settings: Any) -> LLMRLModule:
    """With an adapter far from its start, at which it changes nothing."""
    made = module(**settings)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trainable(made):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


IDS = torch.tensor([[1, 2, 10, 11, 12, 7]])
BATCH = {
    columns.INPUT_IDS: IDS,
    columns.PROMPT_LENS: torch.tensor([2]),
    Columns.ACTIONS: IDS[:, 2:],
    Columns.LOSS_MASK: torch.ones(1, 4, dtype=torch.bool),
}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal"])
def test_a_new_adapter_leaves_the_policy_what_it_was(init: Any) -> None:
    plain, new = module(lora=None), module(lora={**LORA, "init_lora_weights": init})
    torch.testing.assert_close(logits(new.policy), logits(plain.policy))


def test_only_the_adapter_is_trainable_and_in_the_state() -> None:
    made = module(dtype="bfloat16")
    names = [n for n, p in made.policy.named_parameters() if p.requires_grad]
    # 2 layers x 3 modules x 2 factors
    assert len(names) == 12 and all(".lora_" in name for name in names)
    assert sorted(made.get_state()) == sorted(names)
    assert {p.dtype for p in trainable(made)} == {torch.float32}
    assert MasterWeights(made.policy).copies == []


def test_the_reference_policy_is_the_start_without_a_second_model() -> None:
    made = shaken(with_reference=True)
    start = module(lora=None)
    assert made.reference is None
    expected = start.token_outputs(start.policy, BATCH)[LOGP]
    learned = made.token_outputs(made.policy, BATCH)[LOGP]
    with torch.no_grad(), made.reference_policy() as reference:
        found = made.token_outputs(reference, BATCH)[LOGP]
    torch.testing.assert_close(found, expected)
    assert (learned - expected).abs().max() > 0.1
    again = made.token_outputs(made.policy, BATCH)[LOGP]
    assert torch.equal(again, learned), "back on again"
    assert len(trainable(made)) == 12


@pytest.mark.parametrize(
    "lora",
    [
        LORA,
        {"target_modules": "all-linear", "r": 2, "use_rslora": True},
        {**LORA, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {**LORA, "init_lora_weights": "orthogonal"},
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_are_a_plain_model_with_the_same_logits(
    lora: dict[str, Any], tied: bool
) -> None:
    config = tiny_model_config(VOCAB, tie_word_embeddings=tied)
    made = shaken(lora=lora, model=config)
    plain = module(lora=None, model=config, seed=9).policy
    merged = dict(merged_tensors(made.policy))
    assert list(merged) == [name for name, _ in untied_tensors(plain)]
    plain.load_state_dict(merged, strict=False)
    torch.testing.assert_close(logits(plain), logits(made.policy), atol=1e-5, rtol=1e-5)


def test_merging_changes_nothing_in_the_policy() -> None:
    made = shaken()
    before = {name: t.clone() for name, t in made.policy.state_dict().items()}
    assert len(list(merged_tensors(made.policy))) > 12
    for name, tensor in made.policy.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_policy_can_compute_with_the_merged_weights() -> None:
    """To the last bit what a generator computes with them."""
    made = shaken(dtype="bfloat16")
    before = logits(made.policy)
    plain = load_policy(tiny_model_config(VOCAB), dtype="bfloat16")
    plain.load_state_dict(dict(merged_tensors(made.policy)), strict=False)
    with lora_merged(made.policy):
        assert torch.equal(logits(made.policy), logits(plain))
    assert torch.equal(logits(made.policy), before)
    assert not torch.equal(before, logits(plain))


def test_an_export_is_the_merged_model_with_the_adapter_beside_it(
    tmp_path: Path,
) -> None:
    import peft

    made = shaken()
    folder = export_policy(made.policy, None, tmp_path / "policy", save_merged)
    expected = logits(made.policy)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    adapted = peft.PeftModel.from_pretrained(
        module(lora=None).policy, folder / "adapter"
    )
    torch.testing.assert_close(logits(adapted), expected, atol=1e-5, rtol=1e-5)


def test_a_state_takes_the_adapter_back_and_no_other() -> None:
    made, other = shaken(), module(seed=1)
    state = made.get_state()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    other.set_state(state)
    assert torch.equal(logits(other.policy), logits(made.policy))
    for wrong in (module(lora={**LORA, "r": 2}), module(lora={"r": 4})):
        with pytest.raises(ValueError, match="`lora` must be what it was"):
            wrong.set_state(state)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_adapter_alone(checkpointing: bool) -> None:
    made = shaken(gradient_checkpointing=checkpointing).train()
    made.forward_train(BATCH)[Columns.ACTION_LOGP].sum().backward()
    for name, parameter in made.policy.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name


def test_switching_off_survives_an_error() -> None:
    made = shaken()
    expected = logits(made.policy)
    with pytest.raises(KeyError), lora_off(made.policy):
        raise KeyError
    assert torch.equal(logits(made.policy), expected)


def test_an_adapter_of_an_embedding_is_refused() -> None:
    for name in ("embed_tokens", "lm_head"):
        with pytest.raises(ValueError, match=f"must not hold .*{name}"):
            module(
                lora={"target_modules": f".*{name}"},
                model=tiny_model_config(VOCAB, tie_word_embeddings=False),
            )


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (8, r"`lora` \(8\) must be None or a mapping"),
        ({"rank": 8}, "must be settings of PEFT's LoraConfig.*argument 'rank'"),
        (
            {"target_modules": "q_.*", "layers_to_transform": [0]},
            "PEFT's LoraConfig, which says: .*`layers_to_transform` cannot be used",
        ),
        ({"use_dora": True}, r"`use_dora` \(True\) must be False .* must merge into"),
        ({"modules_to_save": ["norm"]}, r"`modules_to_save` .* must merge into"),
        ({"task_type": "SEQ_CLS"}, "`task_type` .* is a causal language model"),
        ({"lora_dropout": 0.1}, r"`lora_dropout` \(0.1\) must be 0.0"),
        ({"init_lora_weights": "pissa"}, r"`init_lora_weights` \('pissa'\)"),
        ({"target_modules": ["q_proj", "lm_head"]}, "must not hold lm_head"),
    ],
)
def test_settings_that_cannot_work_are_refused(lora: Any, message: str) -> None:
    config = PUREConfig().environment("pure_rllib/Arithmetic-v0")
    config.rl_module(model_config={"model": tiny_model_config(VOCAB), "lora": lora})
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_a_missing_peft_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pure_rllib.models.lora.find_spec", lambda name: None)
    config = PUREConfig().environment("pure_rllib/Arithmetic-v0")
    config.rl_module(model_config={"lora": LORA})
    with pytest.raises(ValueError, match=r"pure-rllib\[lora\]"):
        config.validate()
