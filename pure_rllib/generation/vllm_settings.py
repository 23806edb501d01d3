"""Settings of the vLLM generator, checked without importing vLLM."""

import importlib.util
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from pure_rllib.generation.checks import check_top_p

_WHOLE = (
    "block_size",
    "kv_cache_memory_bytes",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "tensor_parallel_size",
)
_SWITCHES = (
    "disable_custom_all_reduce",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "enforce_eager",
)
_OTHERS = (
    "attention_config",
    "compilation_config",
    "distributed_executor_backend",
    "dtype",
    "gpu_memory_utilization",
    "kv_cache_dtype",
)
ENGINE_SETTINGS = tuple(sorted((*_WHOLE, *_SWITCHES, *_OTHERS)))
"""Keys of `generator_kwargs`, with vLLM's names and meaning."""

_OURS = {
    "seed": "every prompt brings its own. Set `.debugging(seed=...)`",
    "logprobs_mode": "it follows from `top_p`. Leave it out",
    "model": "the policy is the model. Set `.rl_module(model_config={'model': ...})`",
    "load_format": "the learner's weights are loaded. Leave it out",
    "trust_remote_code": (
        "the policy's is used. Set `.rl_module(model_config={'trust_remote_code': ..})`"
    ),
}
_DTYPES = ("float32", "bfloat16", "float16")
# vLLM raises what lies below to it, and refuses what lies above.
_TEMPERATURES = (0.01, 2.0)


def check_vllm_installed() -> None:
    """Checks that vLLM is there; it is not imported for that, which takes seconds.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            '`generator` ("vllm") must be installed, because it is an extra. Install '
            "`pure-rllib[vllm]` on a machine with a GPU, run `make engines` on one "
            'without, or set `.env_runners(generator="transformers")`.'
        )


def check_engine_settings(settings: Mapping[str, Any]) -> None:
    """Checks names, types and ranges of `generator_kwargs`.

    Args:
        settings: by vLLM's own names.

    Raises:
        ValueError: a name is unknown or ours to set, or a value cannot work.
    """
    for name in sorted(set(settings) & set(_OURS)):
        raise ValueError(
            f"`generator_kwargs` must not hold `{name}` ({settings[name]!r}), because "
            f"{_OURS[name]}."
        )
    unknown = sorted(set(settings) - set(ENGINE_SETTINGS))
    if unknown:
        raise ValueError(
            f"`generator_kwargs` has unknown keys {unknown}, because the generator "
            f"`vllm` takes {list(ENGINE_SETTINGS)}. Leave the others out."
        )
    for name in _WHOLE:
        value = settings.get(name, 1)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"`generator_kwargs.{name}` ({value!r}) must be a whole number >= 1, "
                "because vLLM counts with it. Leave it out for vLLM's default."
            )
    for name in _SWITCHES:
        value = settings.get(name, True)
        if not isinstance(value, bool):
            raise ValueError(
                f"`generator_kwargs.{name}` ({value!r}) must be True or False."
            )
    share = settings.get("gpu_memory_utilization", 0.9)
    is_number = isinstance(share, Real) and not isinstance(share, bool)
    if not is_number or not 0.0 < share <= 1.0:
        raise ValueError(
            f"`generator_kwargs.gpu_memory_utilization` ({share!r}) must lie in (0, 1],"
            " because it is a share of the memory. Set it to 0.9."
        )
    dtype = settings.get("dtype", "float32")
    if dtype not in _DTYPES:
        raise ValueError(
            f"`generator_kwargs.dtype` ({dtype!r}) must be one of {_DTYPES}. Leave it "
            "out for the policy's own."
        )


def check_vllm_sampling(temperature: float, top_p: float) -> None:
    """Checks that vLLM can sample so, and tell log-probabilities as we mean them.

    Log-probabilities are of the whole distribution at the sampling temperature. vLLM
    tells them before the temperature or after the nucleus, so that with both there is
    no right one.

    Args:
        temperature: 0.0 is greedy.
        top_p: nucleus size.

    Raises:
        ValueError: it cannot.
    """
    least, most = _TEMPERATURES
    if temperature != 0.0 and not least <= temperature <= most:
        raise ValueError(
            f"`temperature` ({temperature}) must be 0.0 or lie in [{least}, {most}] "
            "because vLLM samples with no other. Set `.env_runners(temperature=1.0)`."
        )
    check_top_p(top_p)
    if top_p < 1.0 and temperature not in (0.0, 1.0):
        raise ValueError(
            f"`top_p` ({top_p}) must be 1.0 with a `temperature` ({temperature}) other "
            "than 1.0, because vLLM then tells log-probabilities within the nucleus "
            "only, which are not the learner's. Set one of them to 1.0, or set "
            '`.env_runners(generator="transformers")`.'
        )
