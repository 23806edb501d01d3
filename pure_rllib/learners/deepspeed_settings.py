"""Settings of DeepSpeed: their checks, and the configuration made of them."""

from collections.abc import Mapping
from importlib.util import find_spec
from numbers import Integral
from typing import Any

_SIZES = (
    "reduce_bucket_size",
    "allgather_bucket_size",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)
# DeepSpeed's own defaults, from which `default_sizes` goes down.
_BUCKETS = {"reduce_bucket_size": 500_000_000, "allgather_bucket_size": 500_000_000}
_BUCKETS_OF_STAGE_3 = {
    "reduce_bucket_size": 500_000_000,
    "sub_group_size": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}
_LEAST_BUCKET = 1_000_000
_SWITCHES = (
    "overlap_comm",
    "contiguous_gradients",
    "reduce_scatter",
    "round_robin_gradients",
)
_OFFLOADS = ("offload_optimizer", "offload_param")
_ONLY_STAGE_3 = ("offload_param", "sub_group_size")
_ONLY_STAGE_1_AND_2 = ("allgather_bucket_size", "round_robin_gradients")
_OFFLOAD_DEVICES = ("none", "cpu")
KEYS = ("stage", *_OFFLOADS, *_SIZES, *_SWITCHES)
"""What `.learners(deepspeed={...})` may hold; DeepSpeed's names and meanings."""


def check_deepspeed(config: Any) -> None:
    """Checks `.learners(deepspeed=...)` of a `PUREConfig` that sets it.

    Raises:
        ValueError: naming the setting, its value, the reason and the way out.
    """
    settings = config.deepspeed
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"`deepspeed` ({settings!r}) must be None or a mapping of settings. Set "
            '`.learners(deepspeed={"stage": 2})`.'
        )
    unknown = sorted(str(key) for key in set(settings) - set(KEYS))
    if unknown:
        raise ValueError(
            f"`deepspeed` has unknown keys {unknown}; it may hold {sorted(KEYS)}. "
            "Gradient clipping, precision and optimiser follow from the settings of "
            "`.training()` and `.rl_module()`."
        )
    stage = settings.get("stage")
    if stage not in (1, 2, 3) or isinstance(stage, bool):
        raise ValueError(
            f"`stage` ({stage!r}) of `deepspeed` must be 1, 2 or 3 (ZeRO: partition "
            "optimiser state, gradients too, parameters too). For replicas, leave "
            "`deepspeed` out."
        )
    for name in settings:
        is_stage_3 = name in _ONLY_STAGE_3 or name.startswith("stage3_")
        if (is_stage_3 and stage != 3) or (name in _ONLY_STAGE_1_AND_2 and stage == 3):
            wanted = "3" if is_stage_3 else "1 or 2"
            raise ValueError(
                f"`{name}` ({settings[name]!r}) of `deepspeed` has no effect with "
                f"stage {stage}: it belongs to stage {wanted}. Leave it out."
            )
    _check_values(settings)
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
            "which has masters of its own. Set "
            '`.rl_module(model_config={"dtype": "bfloat16"})`.'
        )
    if config.model_config.get("dtype") == "float16":
        raise ValueError(
            '`dtype` ("float16") must be "float32" or "bfloat16" with `deepspeed`, '
            "because float16 needs loss scaling, which skips updates. Set "
            '`.rl_module(model_config={"dtype": "bfloat16"})`.'
        )
    if find_spec("deepspeed") is None:
        raise ValueError(
            f"`deepspeed` ({dict(settings)}) needs the package DeepSpeed, which is not "
            "installed. Install `pure-rllib[deepspeed]`, or run `make engines`; or "
            "leave `deepspeed` out."
        )


def _check_values(settings: Mapping[str, Any]) -> None:
    for name in _SIZES:
        value = settings.get(name, 1)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
            raise ValueError(
                f"`{name}` ({value!r}) of `deepspeed` must be a whole number >= 0, "
                "because it counts elements. Write 5e8 as 500_000_000."
            )
    if settings.get("allgather_bucket_size", 0) % 2:
        raise ValueError(
            f"`allgather_bucket_size` ({settings['allgather_bucket_size']}) of "
            "`deepspeed` must be even, because DeepSpeed aligns what it gathers. Add 1."
        )
    for name in _SWITCHES:
        if not isinstance(settings.get(name, True), bool):
            raise ValueError(
                f"`{name}` ({settings[name]!r}) of `deepspeed` must be True or False."
            )
    for name in _OFFLOADS:
        offload = settings.get(name)
        if offload is None:
            continue
        if not isinstance(offload, Mapping) or set(offload) - {"device", "pin_memory"}:
            raise ValueError(
                f"`{name}` ({offload!r}) of `deepspeed` must be a mapping with "
                '`device` and perhaps `pin_memory`. Set it to {"device": "cpu"}.'
            )
        device = offload.get("device")
        if device not in _OFFLOAD_DEVICES:
            raise ValueError(
                f"`device` ({device!r}) of `{name}` must be one of {_OFFLOAD_DEVICES}; "
                "checkpoints are gathered from memory, not from NVMe."
            )


def default_sizes(stage: int, num_parameters: int) -> dict[str, int]:
    """Returns sizes of buckets, in elements, for a policy of any size.

    DeepSpeed's own defaults, a billion live parameters among them, hold all of a small
    policy, so that stage 3 would save nothing. Here each is a tenth of the policy, and
    at most DeepSpeed's; and even, which `allgather_bucket_size` has to be.

    Args:
        stage: 1, 2 or 3.
        num_parameters: of the whole policy.
    """
    share = max(_LEAST_BUCKET, num_parameters // 20 * 2)
    own = _BUCKETS_OF_STAGE_3 if stage == 3 else _BUCKETS
    return {name: min(share, size) for name, size in own.items()}


def engine_config(
    settings: Mapping[str, Any],
    *,
    num_parameters: int,
    grad_clip: float | None,
    is_bfloat16: bool,
) -> dict[str, Any]:
    """Returns the configuration for `deepspeed.initialize`.

    Args:
        settings: as of `.learners(deepspeed=...)`; they win over `default_sizes`.
        num_parameters: of the whole policy.
        grad_clip: norm to clip to; None: no clipping.
        is_bfloat16: the policy's dtype; ZeRO then keeps float32 masters.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    zero = {**default_sizes(given["stage"], num_parameters), **given}
    return {
        # Batches are the learner's own, of any size; it says itself where a step ends.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": grad_clip or 0.0,
        "bf16": {"enabled": is_bfloat16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        # PyTorch's AdamW steps on offloaded state too; DeepSpeed's own would have to
        # be compiled where it runs.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
