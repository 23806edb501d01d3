"""From a model reference to a folder that holds a model."""

import json

import pytest

from pure_rllib.models.loading import check_model_folder, resolve_model


@pytest.mark.parametrize("ref", ["/some/folder", "Qwen/Qwen2.5-Math-7B", "./relative"])
def test_folders_and_hub_ids_pass_through(ref):
    assert resolve_model(ref) == ref


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="embedded:arithmetic-prm, ") as error:
        resolve_model("embedded:arithmetic-polcy")
    assert "`embedded:arithmetic-polcy`" in str(error.value)


def test_folders_without_a_model_are_refused(tmp_path):
    def refuses(match):
        with pytest.raises(ValueError, match=match):
            check_model_folder(tmp_path / "m", "policy")

    refuses("`policy` .* there is no such folder")
    (tmp_path / "m").mkdir()
    refuses("no config.json")
    (tmp_path / "m/config.json").write_text("{")
    refuses("config.json is broken .line 1.")
    (tmp_path / "m/config.json").write_text(json.dumps({"vocab_size": 5}))
    refuses("no .*safetensors weights")
    (tmp_path / "m/pytorch_model.bin").touch()
    refuses("only pytorch_model.bin, which are pickles")
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (tmp_path / "m/model.safetensors.index.json").write_text(json.dumps(index))
    refuses("lack model-00001-of-00002.safetensors")
    (tmp_path / "m/model-00001-of-00002.safetensors").touch()
    files = check_model_folder(tmp_path / "m")
    assert files.is_local and files.config == {"vocab_size": 5}
    assert not check_model_folder("Qwen/Qwen2.5-Math-7B").is_local
