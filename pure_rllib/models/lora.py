"""LoRA through PEFT: a small trainable adapter in a frozen policy.

The adapter's layers stand in the policy's own modules, so that everything that takes
the policy takes it with its adapter. Generators never see an adapter: they get the
weights that it makes, under the names of the plain model.
Source: LoRA (arXiv 2106.09685).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pure_rllib.models.export import cut_into_shards, untied_tensors, write_shards
from pure_rllib.setting_types import Count, PositiveFloat, check_setting

_ADAPTER = "default"
_OF_ADAPTER = ".lora_"
_OF_BASE = ".base_layer."
# At the start these make an adapter that adds 0 to the weights as they are.
_INITS = (True, "gaussian", "orthogonal")
_UNMERGED = "the adapter must merge into the weights that generators get"
# Beside what PEFT itself declares as another kind of adapter than LoRA's.
_REFUSED = {
    "lora_dropout": "with dropout the learner's log-probabilities would differ from "
    "the generator's at the first update",
    "task_type": "the policy is a causal language model",
    "inference_mode": "the adapter is trained",
    "bias": _UNMERGED,
    "layer_replication": _UNMERGED,
    "lora_bias": _UNMERGED,
    "megatron_config": _UNMERGED,
    "modules_to_save": _UNMERGED,
    "target_parameters": _UNMERGED,
    "trainable_token_indices": _UNMERGED,
    "use_qalora": _UNMERGED,
}


def check_lora(settings: Any) -> None:
    """Checks the settings of an adapter, before any model is loaded.

    Args:
        settings: of PEFT's `LoraConfig`, or None.

    Raises:
        ValueError: naming the setting, its value, the reason and the way out.
    """
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"`lora` ({settings!r}) must be None or a mapping with settings of PEFT's "
            'LoraConfig. Set `.rl_module(model_config={"lora": {"r": 8}})`.'
        )
    if find_spec("peft") is None:
        raise ValueError(
            f"`lora` ({dict(settings)}) needs the package peft, which is not "
            "installed. Install `pure-rllib[lora]`, or leave `lora` out."
        )
    import peft

    try:
        config = peft.LoraConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`lora` ({dict(settings)}) must be settings of PEFT's LoraConfig, which "
            f"says: {error}. Change them, or leave them out."
        ) from error
    check_setting("r", config.r, Count)
    check_setting("lora_alpha", config.lora_alpha, PositiveFloat)
    plain = peft.LoraConfig()
    for field in fields(config):
        value, default = getattr(config, field.name), getattr(plain, field.name)
        is_other_kind = field.metadata.get("is_lora_variant")
        reason = _REFUSED.get(field.name, _UNMERGED if is_other_kind else None)
        if reason and value != default:
            raise ValueError(
                f"`{field.name}` ({value!r}) must be {default!r} in `lora`, because "
                f"{reason}. Leave it out."
            )
    if config.init_lora_weights not in _INITS:
        raise ValueError(
            f"`init_lora_weights` ({config.init_lora_weights!r}) must be one of "
            f"{_INITS}, because the policy with a new adapter must be the model that "
            "the configuration names. Leave it out."
        )
    targets = config.target_modules or ()
    for name in {targets} if isinstance(targets, str) else targets:
        if name in ("lm_head", "embed_tokens", "wte"):
            raise _embedding_error(name)


def _embedding_error(name: str) -> ValueError:
    return ValueError(
        f"`target_modules` of `lora` must not hold {name}, because log-probabilities "
        "are computed in chunks from the embeddings' own weights. Set it to "
        '"all-linear", which leaves the embeddings out.'
    )


def add_lora(policy: Any, settings: Mapping[str, Any], seed: int) -> None:
    """Puts a new adapter into a policy, in place; only the adapter is trainable.

    The policy computes what it did before: the adapter's second factor is 0.

    Args:
        policy: a Hugging Face causal language model.
        settings: that `check_lora` accepts.
        seed: of the adapter's first factor.

    Raises:
        ValueError: no module is named by `target_modules`, or an embedding is.
    """
    import peft

    config = peft.LoraConfig(**settings)
    config.task_type = peft.TaskType.CAUSAL_LM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, policy, adapter_name=_ADAPTER)
    for embedding in (policy.get_input_embeddings(), policy.get_output_embeddings()):
        if _is_lora_layer(embedding):
            name = next(n for n, m in policy.named_modules() if m is embedding)
            raise _embedding_error(name)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(_OF_ADAPTER in name)
        if parameter.requires_grad:
            # As PEFT itself does for a base of low precision: the adapter is small.
            parameter.data = parameter.data.float()
    policy.lora_config = config


def has_lora(policy: nn.Module) -> bool:
    """Returns whether a policy has an adapter."""
    return hasattr(policy, "lora_config")


def _is_lora_layer(module: Any) -> bool:
    return hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")


@contextmanager
def lora_off(policy: nn.Module) -> Iterator[None]:
    """Makes a policy the model that it was before its adapter, for inference."""
    layers: list[Any] = [m for m in policy.modules() if _is_lora_layer(m)]
    # Not by PEFT's `enable_adapters`, which also sets what is trainable.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def adapter_tensors(policy: nn.Module) -> dict[str, Tensor]:
    """Returns the adapter's parameters by their names in the policy."""
    return {n: p for n, p in policy.named_parameters() if _OF_ADAPTER in n}


def load_adapter(policy: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Takes over what `adapter_tensors` returned.

    Raises:
        ValueError: they are those of another adapter, or of a whole policy.
    """
    own = adapter_tensors(policy)
    if {n: p.shape for n, p in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise ValueError(
            "`lora` must be what it was when the checkpoint was written, because a "
            "checkpoint holds the adapter alone; its tensors have other names or "
            "shapes. Set `lora` back, or start from an exported policy."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


@torch.no_grad()
def merged_tensors(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of the plain model that a policy with its adapter equals.

    One by one: a merged model never exists as a whole. Without an adapter, these are
    the policy's own.
    """
    for name, tensor in untied_tensors(policy):
        if _OF_ADAPTER in name and has_lora(policy):
            continue
        owner, is_base, rest = name.rpartition(_OF_BASE)
        if is_base and rest == "weight":
            tensor = _merged_weight(policy.get_submodule(owner))
        yield name.replace(_OF_BASE, "."), tensor


def _merged_weight(layer: Any) -> Tensor:
    weight = layer.base_layer.weight
    delta = layer.get_delta_weight(_ADAPTER)
    merged: Tensor = (weight.float() + delta.float()).to(weight.dtype)
    return merged


@contextmanager
def lora_merged(policy: nn.Module) -> Iterator[None]:
    """Has a policy compute with the weights that generators get, for inference.

    In a dtype of low precision they are rounded, and small changes of the adapter are
    lost in them. One layer is merged at a time; those in float32 stay as they are.
    """
    adapted: list[Any] = [m for m in policy.modules() if _is_lora_layer(m)]
    layers = [m for m in adapted if m.base_layer.weight.dtype != torch.float32]
    for layer in layers:
        layer.forward = partial(_merged_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _merged_forward(layer: Any, *args: Any) -> Any:
    weights = {"weight": _merged_weight(layer)}
    return torch.func.functional_call(layer.base_layer, weights, args)


def save_merged(policy: Any, folder: Path) -> None:
    """Writes the merged policy in Hugging Face layout, and the adapter beside it.

    Args:
        policy: with an adapter.
        folder: exists; the adapter goes to `adapter/`, in PEFT's layout.
    """
    import peft
    from safetensors.torch import save_file

    policy.config.save_pretrained(folder)
    if policy.can_generate():
        policy.generation_config.save_pretrained(folder)
    write_shards(cut_into_shards(merged_tensors(policy)), folder)
    adapter = folder / "adapter"
    policy.lora_config.save_pretrained(str(adapter))
    tensors = peft.get_peft_model_state_dict(policy, adapter_name=_ADAPTER)
    save_file(
        {f"base_model.model.{name}": t.contiguous() for name, t in tensors.items()},
        adapter / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
