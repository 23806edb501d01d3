"""Published weights: whole or absent, and gone when nobody uses them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from pure_rllib.models.weight_files import (
    ROOT_VARIABLE,
    FolderWeights,
    WeightsRoot,
    write_index,
    write_weights,
)
from pure_rllib.models.weights import cut_into_shards, untied_tensors


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    shards = [
        {"a": torch.randn(3, 4).to(dtype), "flags": torch.tensor([True, False])},
        {"scalar": torch.tensor(3.5).to(dtype), "empty": torch.zeros(0, 4)},
        {"transposed": torch.arange(6).reshape(2, 3).t()},
    ]
    source = write_weights(shards, tmp_path / "v1", version=1)
    back = list(source.shards())
    assert source.version == 1
    assert [set(shard) for shard in back] == [set(shard) for shard in shards]
    for shard, ours in zip(back, shards, strict=True):
        for name, tensor in ours.items():
            assert shard[name].dtype == tensor.dtype
            assert torch.equal(shard[name], tensor), name


@pytest.mark.parametrize("tied", [True, False])
def test_hugging_face_loads_the_folder(tmp_path: Path, tied: bool) -> None:
    config = Qwen2Config(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    model = Qwen2ForCausalLM(config)
    shards = cut_into_shards(untied_tensors(model), max_shard_bytes=2000)
    source = write_weights(shards, tmp_path / "v1", version=1)
    assert len(source.files) > 2
    config.save_pretrained(source.folder)
    loaded = AutoModelForCausalLM.from_pretrained(source.folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_readers_see_a_publication_when_it_is_whole(tmp_path: Path) -> None:
    seen = []

    def shards():
        for number in range(2):
            seen.append((tmp_path / "v1").exists())
            yield {f"t{number}": torch.zeros(2)}

    write_weights(shards(), tmp_path / "v1", version=1)
    assert seen == [False, False] and (tmp_path / "v1").is_dir()


@pytest.mark.parametrize("damage", ["flip a bit", "remove"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    written = write_weights([{"a": torch.ones(8)}], tmp_path / "v4", version=4)
    path = written.folder / written.files[0].name
    if damage == "remove":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    source = FolderWeights(4, written.folder, written.files)
    with pytest.raises(ValueError, match="version 4 must arrive as they were sent"):
        next(source.shards())


def test_the_index_can_be_made_from_the_shards(tmp_path: Path) -> None:
    shards = [{"a": torch.ones(8)}, {"b": torch.ones(8)}]
    folder = write_weights(shards, tmp_path / "v1", version=1).folder
    index = folder / "model.safetensors.index.json"
    before = index.read_text()
    index.unlink()
    write_index(folder)
    assert index.read_text() == before and '"b": "model-00002' in before


def test_only_the_newest_publications_are_kept(parent: Path) -> None:
    root = WeightsRoot(num_bytes=0)
    for version in range(3):
        write_weights([{"a": torch.ones(1)}], root.path / f"v{version}", version)
        os.utime(root.path / f"v{version}", ns=(version, version))
    root.keep_newest(2)
    assert sorted(p.name for p in root.path.iterdir() if p.is_dir()) == ["v1", "v2"]
    root.close()
    assert list(parent.iterdir()) == []


def test_the_last_user_removes_a_shared_root(parent: Path) -> None:
    first = WeightsRoot(0, name="shared")
    second = WeightsRoot(0, name="shared")
    assert first.path == second.path
    first.close()
    assert second.path.is_dir()
    second.close()
    second.close()  # nothing more to do
    assert list(parent.iterdir()) == []


def test_a_killed_process_leaves_nothing_for_long(parent: Path) -> None:
    code = (
        "from pure_rllib.models.weight_files import WeightsRoot\n"
        "import time; print(WeightsRoot(0).path, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    alive = WeightsRoot(0)
    assert left.is_dir(), "its process lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    second = WeightsRoot(0)
    assert not left.exists()
    assert alive.path.is_dir(), "this process lives"
    alive.close()
    second.close()


def test_an_unfinished_publication_is_not_taken_for_the_newest(parent: Path) -> None:
    root = WeightsRoot(num_bytes=0)
    write_weights([{"a": torch.ones(1)}], root.path / "v1", version=1)
    (root.path / "v2.partial").mkdir()
    root.keep_newest(1)
    assert [p.name for p in root.path.iterdir() if p.is_dir()] == ["v1"]
    root.close()
