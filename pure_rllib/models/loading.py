"""From a model reference to its files, its config, its tokenizer and its weights.

A reference is a local folder in Hugging Face layout, a hub id, or `embedded:<name>`, a
model that comes with the package.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.utils import CONFIG_NAME
from transformers.utils import GENERATION_CONFIG_NAME as GENERATION_CONFIG

from pure_rllib.models.hub import go_offline_without_hub

DTYPES = ("float32", "bfloat16", "float16", "auto")
EMBEDDED = "embedded:"
_EMBEDDED_FOLDER = Path(__file__).parents[1] / "arithmetic" / "models"
_INDEX = "model.safetensors.index.json"


def resolve_model(ref: str) -> str:
    """Turns a model reference into what `from_pretrained` takes.

    Args:
        ref: a folder or hub id, passed through, or `embedded:<name>`.

    Returns:
        A folder of the package with weights, tokenizer and `recipe.json` (recipe and
        measured figures), or `ref` itself.

    Raises:
        ValueError: there is no embedded model of this name.
    """
    if not ref.startswith(EMBEDDED):
        if not Path(ref).expanduser().exists():
            go_offline_without_hub()
        return ref
    folders = {folder.name: folder for folder in sorted(_EMBEDDED_FOLDER.iterdir())}
    name = ref.removeprefix(EMBEDDED)
    if name not in folders:
        known = ", ".join(EMBEDDED + name for name in folders)
        raise ValueError(
            f"`{ref}` must be an embedded model; because the package has none of this "
            f"name. Set one of {known}, a folder or a hub id."
        )
    return str(folders[name])


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What can be said of a model before it is loaded.

    Attributes:
        path: the local folder or the hub id, as `from_pretrained` takes it.
        is_local: whether `path` is a folder.
        config: the content of config.json; empty for a hub id, which is not looked up.
    """

    path: str
    is_local: bool
    config: dict[str, Any]


def check_model_folder(path: str | Path, setting: str = "model") -> ModelFiles:
    """Makes sure that a model can be loaded from here, before anything is loaded.

    Args:
        path: a local folder in Hugging Face layout, or a hub id such as
            `Qwen/Qwen2.5-Math-7B`. Hub ids are not looked up.
        setting: the setting that holds the path, named by errors.

    Raises:
        ValueError: neither a hub id nor a folder with config.json and safetensors.
    """
    text = str(path)
    folder = Path(text).expanduser()
    if not folder.exists():
        parts = text.split("/")
        if len(parts) == 2 and all(parts) and text[0] not in "./~":
            return ModelFiles(text, is_local=False, config={})
        raise _folder_error(setting, text, "there is no such folder")
    if not folder.is_dir():
        raise _folder_error(setting, text, "it is a file, not a folder")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise _folder_error(setting, text, "it has no config.json")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        reason = f"its config.json is broken (line {error.lineno})"
        raise _folder_error(setting, text, reason) from error
    if lack := _missing_weights(folder):
        raise _folder_error(setting, text, lack)
    return ModelFiles(str(folder), is_local=True, config=config)


def _missing_weights(folder: Path) -> str:
    """Says what a folder lacks of a model's weights; "" if it has all."""
    if (folder / "model.safetensors").is_file():
        return ""
    if not (folder / _INDEX).is_file():
        found = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt"})
        only = f" (only {', '.join(found)}, which are pickles)" if found else ""
        return f"it has no *.safetensors weights{only}"
    shards = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    missing = [s for s in sorted(set(shards.values())) if not (folder / s).is_file()]
    return f"its weights lack {', '.join(missing)}" if missing else ""


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
    try:
        return dict(PretrainedConfig.get_config_dict(files.path)[0])
    except OSError as error:
        raise _hub_error(setting, files.path, error) from error


def _folder_error(setting: str, path: str, reason: str) -> ValueError:
    return ValueError(
        f"`{setting}` ({path}) must be a folder in Hugging Face layout (config.json "
        f"and *.safetensors) or a hub id like owner/name; {reason}. Set `{setting}` to "
        "the folder that `save_pretrained` wrote."
    )


def _hub_error(setting: str, path: str, error: OSError) -> ValueError:
    reason = f"there is no such folder, and the hub gives none: {error}"
    return _folder_error(setting, path, reason.rstrip("."))


def load_tokenizer(
    path: str, setting: str = "tokenizer", *, trust_remote_code: bool = False
) -> Any:
    """Loads the tokenizer of a local folder or a hub id.

    Args:
        path: the folder or id.
        setting: the setting that holds the path, named by errors.
        trust_remote_code: runs code that comes with the tokenizer.

    Raises:
        ValueError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _tokenizer_error(setting, path, str(error).rstrip(".")) from error
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if added.issuperset(tokenizer.get_vocab()):
        # What transformers makes of a config alone, if it knows the model's type.
        raise _tokenizer_error(setting, path, "it has none")
    return tokenizer


def _tokenizer_error(setting: str, path: str, reason: str) -> ValueError:
    return ValueError(
        f"`{setting}` ({path}) must be a folder with a tokenizer's files or the id of "
        f"one on the hub, because texts are encoded with it: {reason}. Set it to a "
        "folder that a tokenizer was saved in, too."
    )


def named_eos_ids(model: str | Mapping[str, Any]) -> frozenset[int]:
    """Reads which ids end a text by a model's config and generation config.

    Args:
        model: a folder or hub id, of a model or only of its tokenizer; or a config.

    Returns:
        The ids that are written there; none where nothing is. What a config's class
        would fill in is not counted: it knows nothing of the tokenizer.
    """
    if isinstance(model, str):
        contents = [_json_of(model, CONFIG_NAME), _json_of(model, GENERATION_CONFIG)]
    else:
        contents = [dict(model)]
    contents += [c["text_config"] for c in contents if "text_config" in c]
    found = [content.get("eos_token_id") for content in contents]
    lists = [ids if isinstance(ids, list) else [ids] for ids in found]
    return frozenset(i for ids in lists for i in ids if i is not None)


def _json_of(model: str, file: str) -> dict[str, Any]:
    """Reads a JSON file of a model, fetched if it is on the hub; {} without one."""
    folder = Path(model).expanduser()
    if folder.is_dir() and not (folder / file).is_file():
        return {}
    try:
        return dict(
            PretrainedConfig.get_config_dict(model, _configuration_file=file)[0]
        )
    except OSError:
        if folder.is_dir():
            raise
        return {}


def policy_config(
    model: str | Mapping[str, Any], *, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Returns the Hugging Face config of a policy, without its weights.

    Args:
        model: a reference, or a mapping that is itself a config and names its
            `model_type`.
        trust_remote_code: allow code that comes with the model.

    Raises:
        ValueError: there is no such model, or the mapping names no `model_type` that
            transformers knows.
    """
    if isinstance(model, str):
        try:
            return AutoConfig.from_pretrained(
                resolve_model(model), trust_remote_code=trust_remote_code
            )
        except OSError as error:
            raise _hub_error("model", model, error) from error
    settings = dict(model)
    model_type = settings.pop("model_type", None)
    if model_type is None:
        raise ValueError(
            f"`model` ({dict(model)}) must name a `model_type`, because a config given "
            'in place of a folder is built by it. Add {"model_type": "qwen2"}.'
        )
    return AutoConfig.for_model(model_type, **settings)


def meta_model(
    config: PretrainedConfig,
    *,
    trust_remote_code: bool = False,
    auto_class: Any = AutoModelForCausalLM,
) -> Any:
    """Makes a model whose parameters have names and shapes, and no memory.

    Args:
        config: its config.
        trust_remote_code: allow code that comes with the model.
        auto_class: transformers' `AutoModel...`; by default it is a policy.
    """
    with torch.device("meta"):
        return auto_class.from_config(config, trust_remote_code=trust_remote_code)


def load_policy(
    model: str | Mapping[str, Any],
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> Any:
    """Loads a causal language model, on the CPU.

    Args:
        model: a reference, or a config as for `policy_config`, which is given random
            weights.
        dtype: "float32", "bfloat16", "float16" or "auto" (the checkpoint's).
        attn_implementation: passed to Hugging Face; None lets it choose.
        trust_remote_code: allow code that comes with the model.
        seed: of the random weights; no effect on loaded ones.

    Returns:
        The model, in evaluation mode.
    """
    if dtype not in DTYPES:
        raise ValueError(f'`dtype` ("{dtype}") must be one of {DTYPES}.')
    kwargs: dict[str, Any] = {}
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    if isinstance(model, str):
        loaded = AutoModelForCausalLM.from_pretrained(
            resolve_model(model),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            **kwargs,
        )
        return loaded.eval()
    torch_dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    made = random_model(AutoModelForCausalLM, policy_config(model), seed, **kwargs)
    return made.to(torch_dtype).eval()


def random_model(
    auto_class: Any, config: PretrainedConfig, seed: int, **kwargs: Any
) -> Any:
    """Makes a model with random weights, float32 on the CPU.

    Args:
        auto_class: one of transformers' `AutoModelFor...`.
        config: its config.
        seed: of the weights.
        **kwargs: passed to `from_config`.
    """
    # The global generator is put back: making a model must not change what a caller
    # draws next.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto_class.from_config(config, **kwargs)
