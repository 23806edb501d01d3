"""Weights survive the road to the generator and to disk."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from pure_rllib.generation.weights import (
    copy_weights,
    export_policy,
    pack_weights,
    unpack_weights,
)

SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def make_model(tied=True, dtype=torch.float32, seed=0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(**SMALL, tie_word_embeddings=tied)
    return Qwen2ForCausalLM(config).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_weights_come_back_as_they_were(tied, dtype):
    source, target = make_model(tied, dtype), make_model(tied, dtype, seed=1)
    packed = pack_weights(source, version=3)
    assert packed.version == 3
    assert ("lm_head.weight" in packed.tensors) == (not tied)
    tensors = unpack_weights(packed)
    for name, tensor in tensors.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, source.state_dict()[name])
    copy_weights(tensors, target)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_packed_weights_are_a_copy():
    model = make_model()
    packed = pack_weights(model)
    before = unpack_weights(packed)["model.norm.weight"].clone()
    with torch.no_grad():
        model.model.norm.weight.fill_(7.0)
    assert torch.equal(unpack_weights(packed)["model.norm.weight"], before)


def test_odd_tensors_survive():
    state = {
        "scalar": torch.tensor(3.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "transposed": torch.arange(6).reshape(2, 3).t(),
    }
    back = unpack_weights(pack_weights(state))
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


def test_read_only_arrays_are_not_copied(recwarn):
    packed = pack_weights(make_model())
    for _, _, data in packed.tensors.values():
        data.flags.writeable = False
    tensors = unpack_weights(packed)
    for name, tensor in tensors.items():
        assert tensor.data_ptr() == packed.tensors[name][2].ctypes.data, name
    assert not [w for w in recwarn if "writable" in str(w.message)]


def test_damaged_weights_are_refused():
    packed = pack_weights(make_model(), version=4)
    dtype, shape, data = packed.tensors["model.norm.weight"]
    damaged = data.copy()
    damaged[5] ^= 1
    tensors = {**packed.tensors, "model.norm.weight": (dtype, shape, damaged)}
    with pytest.raises(ValueError, match="version 4 must arrive as they were sent"):
        unpack_weights(dataclasses.replace(packed, tensors=tensors))


def test_weights_that_do_not_fit_are_refused_and_change_nothing():
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = make_model(seed=1).state_dict()
    with pytest.raises(ValueError, match=r"missing: \['model\.norm\.weight'\]"):
        copy_weights(
            {n: t for n, t in other.items() if n != "model.norm.weight"}, model
        )
    with pytest.raises(ValueError, match=r"unexpected: \['extra'\]"):
        copy_weights({**other, "extra": torch.zeros(1)}, model)
    with pytest.raises(ValueError, match=r"model\.norm\.weight \(3,\) instead of"):
        copy_weights({**other, "model.norm.weight": torch.zeros(3)}, model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_exported_policies_load_and_replace_earlier_ones(tmp_path):
    folder = tmp_path / "runs" / "policy"
    export_policy(make_model(seed=1), None, folder)
    model = make_model(seed=2)
    assert export_policy(model, None, folder) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]
    assert (folder / "model.safetensors").is_file()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[1, 2, 3]])
    np.testing.assert_array_equal(
        loaded(ids).logits.detach(), model.eval()(ids).logits.detach()
    )


def test_a_failed_export_leaves_the_earlier_one(tmp_path):
    folder = tmp_path / "policy"
    export_policy(make_model(), None, folder)
    before = (folder / "model.safetensors").read_bytes()

    class Broken:
        def save_pretrained(self, path):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export_policy(make_model(seed=1), Broken(), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
