"""Model folders and hub ids: is there a model, and what does its config say?"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What can be said of a model before it is loaded.

    Attributes:
        path: the local folder or the hub id, as `from_pretrained` takes it.
        is_local: whether `path` is a folder.
        config: the content of config.json; empty for a hub id, which is not looked up.
        vocab_size: rows of the embedding, or None if unknown.
        max_position_embeddings: positions of the model's context, or None if unknown.
        num_labels: classes of a classifier, or None if the config does not say.
    """

    path: str
    is_local: bool
    config: dict[str, Any]
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    num_labels: int | None = None


def check_model_folder(path: str | Path, setting: str = "model") -> ModelFiles:
    """Makes sure that a model can be loaded from here, before anything is loaded.

    Args:
        path: a local folder in Hugging Face layout, or a hub id such as
            `Qwen/Qwen2.5-Math-7B`. Hub ids are not looked up.
        setting: the setting that holds the path, named by errors.

    Returns:
        The model's files and the parts of its config that other settings must fit.

    Raises:
        ValueError: neither a hub id nor a folder with config.json and safetensors.
    """
    text = str(path)
    folder = Path(text).expanduser()
    if not folder.exists():
        if _is_hub_id(text):
            return ModelFiles(text, is_local=False, config={})
        raise _error(setting, text, "there is no such folder")
    if not folder.is_dir():
        raise _error(setting, text, "it is a file, not a folder")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise _error(setting, text, "it has no config.json")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise _error(
            setting, text, f"its config.json is broken (line {error.lineno})"
        ) from error
    shards = [name for name in _WEIGHTS if (folder / name).is_file()]
    if not shards:
        found = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt"})
        raise _error(
            setting,
            text,
            "it has no *.safetensors weights"
            + (f" (only {', '.join(found)}, which are pickles)" if found else ""),
        )
    if "model.safetensors" not in shards:
        index = json.loads((folder / shards[0]).read_text(encoding="utf-8"))
        missing = sorted(
            name
            for name in set(index["weight_map"].values())
            if not (folder / name).is_file()
        )
        if missing:
            raise _error(setting, text, f"its weights lack {', '.join(missing)}")
    inner = config.get("text_config", config)
    labels = config.get("id2label")
    return ModelFiles(
        str(folder),
        is_local=True,
        config=config,
        vocab_size=inner.get("vocab_size"),
        max_position_embeddings=inner.get(
            "max_position_embeddings", inner.get("n_positions")
        ),
        num_labels=len(labels) if labels else config.get("num_labels"),
    )


def read_config(files: ModelFiles, setting: str = "model") -> dict[str, Any]:
    """Returns the content of config.json, fetched if the model is on the hub.

    Args:
        files: from `check_model_folder`.
        setting: the setting that holds the path, named by errors.

    Raises:
        ValueError: the hub does not give it.
    """
    if files.is_local:
        return dict(files.config)
    from transformers import PretrainedConfig

    try:
        return dict(PretrainedConfig.get_config_dict(files.path)[0])
    except OSError as error:
        reason = f"there is no such folder, and the hub gives none: {error}".rstrip(".")
        raise _error(setting, files.path, reason) from error


def _is_hub_id(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 2 and all(parts) and text[0] not in "./~"


def _error(setting: str, path: str, reason: str) -> ValueError:
    return ValueError(
        f"`{setting}` ({path}) must be a folder in Hugging Face layout (config.json "
        f"and *.safetensors) or a hub id like owner/name; {reason}. Set `{setting}` to "
        "the folder that `save_pretrained` wrote."
    )
