"""Loading a policy's weights, or making random ones from a config."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

DTYPES = ("float32", "bfloat16", "float16", "auto")


def policy_config(
    model: str | Mapping[str, Any], *, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Returns the Hugging Face config of a policy, without its weights.

    Args:
        model: a folder, a hub id, or a mapping that is itself a config and names its
            `model_type`.
        trust_remote_code: allow code that comes with the model.

    Raises:
        ValueError: the mapping names no `model_type` that transformers knows.
    """
    if isinstance(model, str):
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    settings = dict(model)
    model_type = settings.pop("model_type", None)
    if model_type is None:
        raise ValueError(
            f"`model` ({dict(model)}) must name a `model_type`, because a config given "
            'in place of a folder is built by it. Add {"model_type": "qwen2"}.'
        )
    return AutoConfig.for_model(model_type, **settings)


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
        model: a folder or hub id, or a config as for `policy_config`, which is given
            random weights.
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
            model, dtype=dtype, trust_remote_code=trust_remote_code, **kwargs
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
