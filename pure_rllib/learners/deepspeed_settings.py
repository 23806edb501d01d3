"""What `.learners(deepspeed={...})` may hold, checked before anything is loaded."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import ValidationError

from pure_rllib.distributed.deepspeed_import import import_deepspeed

_OFFLOADS = ("offload_optimizer", "offload_param")
_ONLY_STAGE_3 = ("offload_param", "sub_group_size")
_ONLY_STAGE_1_AND_2 = ("allgather_bucket_size", "round_robin_gradients")
_CANNOT_WORK = {
    "compute_grad_norm": "the gradients' norm is clipped and reported",
    "zenflow": "it steps by an optimiser of its own",
}


def check_deepspeed(config: Any) -> None:
    """Checks `.learners(deepspeed=...)` of an `LLMConfig` that sets it.

    What DeepSpeed itself refuses is refused here, too.

    Raises:
        ValueError: naming the setting, its value, the reason and the way out.
    """
    settings = config.deepspeed
    _check_here(settings)
    _check_other_settings(config)
    if find_spec("deepspeed") is None:
        raise ValueError(
            f"`deepspeed` ({dict(settings)}) needs the package DeepSpeed, which is not "
            "installed. Install `pure-rllib[deepspeed]`, or run `make engines`; or "
            "leave `deepspeed` out."
        )
    _check_by_deepspeed(settings)


def _check_here(settings: Mapping[str, Any]) -> None:
    """Checks what cannot work here, or would have no effect."""
    stage = settings.get("stage")
    if stage not in (1, 2, 3) or isinstance(stage, bool):
        raise ValueError(
            f"`stage` ({stage!r}) of `deepspeed` must be 1, 2 or 3 (ZeRO: partition "
            "optimiser state, gradients too, parameters too). For replicas, leave "
            "`deepspeed` out."
        )
    for name, value in settings.items():
        is_stage_3 = name in _ONLY_STAGE_3 or name.startswith("stage3_")
        if (is_stage_3 and stage != 3) or (name in _ONLY_STAGE_1_AND_2 and stage == 3):
            wanted = "3" if is_stage_3 else "1 or 2"
            raise ValueError(
                f"`{name}` ({value!r}) of `deepspeed` has no effect with "
                f"stage {stage}: it belongs to stage {wanted}. Leave it out."
            )
        if name in _CANNOT_WORK:
            raise ValueError(
                f"`{name}` ({value!r}) of `deepspeed` must be left out, because "
                f"{_CANNOT_WORK[name]}."
            )
        if name in _OFFLOADS and isinstance(value, Mapping):
            device = value.get("device")
            if device not in ("none", "cpu"):
                raise ValueError(
                    f'`device` ({device!r}) of `{name}` must be "cpu" or "none", '
                    "because checkpoints are gathered from memory, not from NVMe."
                )
    gathered = settings.get("allgather_bucket_size", 0)
    if isinstance(gathered, int) and gathered % 2:
        raise ValueError(
            f"`allgather_bucket_size` ({gathered}) of `deepspeed` must be even, "
            "because DeepSpeed aligns what it gathers. Add 1."
        )


def _check_other_settings(config: Any) -> None:
    if config.num_learners < 1:
        raise ValueError(
            f"`num_learners` ({config.num_learners}) must be >= 1 with `deepspeed`, "
            "because ZeRO partitions over the process group of learner actors, and a "
            "local learner has none. Set `.learners(num_learners=2)`."
        )
    if config.model_config.get("lora") is not None:
        raise ValueError(
            "`lora` must be left out with `deepspeed`, because an adapter's gradients "
            "and optimiser state are small enough for every learner. Leave `deepspeed` "
            "out, or train all weights."
        )
    autocast = config.model_config.get("autocast_dtype")
    if autocast is not None:
        raise ValueError(
            f"`autocast_dtype` ({autocast!r}) must be left out with `deepspeed`, "
            "which has master weights of its own. Set "
            '`.rl_module(model_config={"dtype": "bfloat16"})`.'
        )
    check_dtype(config.model_config.get("dtype"))


def check_dtype(dtype: Any) -> None:
    """Checks the policy's dtype, a name or torch's.

    Raises:
        ValueError: it is float16.
    """
    if dtype in ("float16", torch.float16):
        raise ValueError(
            '`dtype` ("float16") must be "float32" or "bfloat16" with `deepspeed`, '
            "because float16 needs loss scaling, which skips updates. Set "
            '`.rl_module(model_config={"dtype": "bfloat16"})`.'
        )


def _check_by_deepspeed(settings: Mapping[str, Any]) -> None:
    import_deepspeed(on_cpu=not torch.cuda.is_available())
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**settings)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(str(part) for part in wrong["loc"]) or "deepspeed"
        value = wrong["input"] if wrong["loc"] else dict(settings)
        raise ValueError(
            f"`{name}` ({value!r}) of `deepspeed` must be a setting of DeepSpeed's "
            f"`zero_optimization`, which says: {wrong['msg']}. Gradient clipping, "
            "precision and optimiser follow from the settings of `.training()` and "
            "`.rl_module()`."
        ) from error
