"""Weights survive the road to the generator and to disk."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pure_rllib.models.export import (
    check_exportable,
    copy_weights,
    cut_into_shards,
    export_policy,
    untied_tensors,
    write_shards,
)
from pure_rllib.testing import byte_tokenizer
from pure_rllib.weight_sync.object_store import LiveWeights, StoredTensor
from tests.tokenizer_families import whole_words

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


def shard_source(*shards: dict[str, torch.Tensor], version=4) -> LiveWeights:
    return LiveWeights(version, lambda: iter(shards))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_copied_weights_are_the_source_s(tied, dtype):
    source, target = make_model(tied, dtype), make_model(tied, dtype, seed=1)
    copy_weights(LiveWeights.of(source, version=3), target)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_tied_tensors_travel_once():
    assert "lm_head.weight" not in dict(untied_tensors(make_model(tied=True)))
    assert "lm_head.weight" in dict(untied_tensors(make_model(tied=False)))


def test_shards_are_cut_at_the_limit_and_share_memory():
    # 10, 10, 30 and 5 float32 numbers; at most 20 numbers to a shard.
    sizes = {"a": 10, "b": 10, "c": 30, "d": 5}
    tensors = [(name, torch.zeros(size)) for name, size in sizes.items()]
    shards = list(cut_into_shards(tensors, max_shard_bytes=80))
    assert [sorted(shard) for shard in shards] == [["a", "b"], ["c"], ["d"]]
    assert shards[1]["c"].data_ptr() == tensors[2][1].data_ptr()


def test_tensors_are_taken_as_shards_are_asked_for():
    taken = []

    def tensors():
        for name in "ab":
            taken.append(name)
            yield name, torch.zeros(4)

    shards = cut_into_shards(tensors(), max_shard_bytes=16)
    next(shards)
    # The second was needed to see that the first shard is full, but no third.
    assert taken == ["a", "b"]


def test_weights_that_do_not_fit_are_refused():
    model = make_model()
    other = dict(untied_tensors(make_model(seed=1)))
    with pytest.raises(ValueError, match=r"missing: \['model\.norm\.weight'\]"):
        copy_weights(
            shard_source({n: t for n, t in other.items() if n != "model.norm.weight"}),
            model,
        )
    with pytest.raises(ValueError, match=r"version 4 .*unexpected: \['extra'\]"):
        copy_weights(shard_source(other, {"extra": torch.zeros(1)}), model)
    with pytest.raises(ValueError, match=r"model\.norm\.weight \(3,\) instead of"):
        copy_weights(
            shard_source({**other, "model.norm.weight": torch.zeros(3)}), model
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_tensors_come_back_as_they_were(dtype):
    """Through bytes: NumPy has no bfloat16."""
    tensors = [
        torch.randn(3, 4).to(dtype),
        torch.tensor([True, False]),
        torch.tensor(3.5).to(dtype),
        torch.zeros(0, 4),
        torch.arange(6).reshape(2, 3).t(),
    ]
    for tensor in tensors:
        stored = StoredTensor.of(tensor)
        stored.content.setflags(write=False)  # as in the object store
        assert stored.content.dtype == np.uint8
        assert stored.tensor().dtype == tensor.dtype
        assert torch.equal(stored.tensor(), tensor)


@pytest.mark.parametrize(
    ("tied", "max_shard_bytes", "is_one_file"),
    [(True, 2000, False), (False, 2000, False), (True, 2**20, True)],
)
def test_hugging_face_loads_a_folder_of_shards(
    tmp_path, tied, max_shard_bytes, is_one_file
):
    model = make_model(tied)
    write_shards(cut_into_shards(untied_tensors(model), max_shard_bytes), tmp_path)
    assert (tmp_path / "model.safetensors").is_file() == is_one_file
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) != is_one_file
    model.config.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


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


def test_a_tokenizer_that_reloads_as_another_is_not_exported(tmp_path):
    """A generic tokenizer beside a `qwen2` config becomes a Qwen2Tokenizer."""
    tokenizer = whole_words()
    own, other = Qwen2Config(**SMALL), LlamaConfig(**SMALL)
    with pytest.raises(ValueError, match=r"`tokenizer` .*\(qwen2\).*Qwen2Tokenizer"):
        check_exportable(tokenizer, own)
    check_exportable(tokenizer, other)
    check_exportable(byte_tokenizer(), own)
    with pytest.raises(ValueError, match="must fit the model's type"):
        export_policy(make_model(), tokenizer, tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []
    folder = export_policy(make_model(), byte_tokenizer(), tmp_path / "policy")
    text = "cups\n\nThe"
    assert AutoTokenizer.from_pretrained(folder)(text) == byte_tokenizer()(text)
