"""Making a generator by its name."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch

from pure_rllib.generation.base import Generator
from pure_rllib.generation.transformers_generator import TransformersGenerator
from pure_rllib.generation.vllm_engine import (
    check_engine_settings,
    check_vllm_installed,
)
from pure_rllib.generation.vllm_generator import VLLMGenerator, check_vllm_sampling
from pure_rllib.models.loading import load_policy
from pure_rllib.models.stop_strings import StopStrings

GeneratorName = Literal["transformers", "vllm"]
GENERATORS: tuple[GeneratorName, ...] = get_args(GeneratorName)
"""Names that `make_generator` knows."""


def check_generator(
    kind: str,
    generator_kwargs: Mapping[str, Any],
    *,
    temperature: float,
    top_p: float,
) -> None:
    """Checks what can be checked before a model is loaded.

    Args:
        kind: one of `GENERATORS`.
        generator_kwargs: further settings of the generator.
        temperature: of sampling.
        top_p: nucleus size.

    Raises:
        ValueError: the generator is not installed, or a setting cannot work with it.
    """
    if kind == "vllm":
        check_vllm_sampling(temperature, top_p)
        check_vllm_installed()
        check_engine_settings(generator_kwargs)
        return
    known = set(inspect.signature(TransformersGenerator).parameters)
    allowed = sorted(known - {"model", "pad_token_id", "eos_token_ids", "stop"})
    unknown = sorted(set(generator_kwargs) - set(allowed))
    if unknown:
        raise ValueError(
            f"`generator_kwargs` has unknown keys {unknown}, because the generator "
            f"`{kind}` takes {allowed}. Leave the others out."
        )


def make_generator(
    kind: str,
    model_config: Mapping[str, Any],
    generator_kwargs: Mapping[str, Any],
    *,
    pad_token_id: int,
    eos_token_ids: Iterable[int],
    max_model_len: int,
    stop: StopStrings | None = None,
    top_p: float = 1.0,
    transfer_backend: str | None = None,
    colocate: bool = False,
    num_sequences: int | None = None,
    device: Any = None,
) -> Generator:
    """Makes a generator; vLLM's has no weights yet, the other the model's own.

    Args:
        kind: one of `GENERATORS`.
        model_config: the policy: `model`, `dtype`, `attn_implementation`,
            `trust_remote_code` and `seed`.
        generator_kwargs: further settings of the generator.
        pad_token_id: fills the left of shorter prompts.
        eos_token_ids: the ids that end a response.
        max_model_len: tokens of the longest prompt and response together.
        stop: the strings that end a response.
        top_p: nucleus size of the responses that will be asked for.
        transfer_backend: with which vLLM receives weights; None: it is given them.
        colocate: see `VLLMGenerator`.
        num_sequences: likewise.
        device: of the transformers generator; None: the GPU that this process sees, or
            the CPU.
    """
    assert kind in GENERATORS, kind
    if kind == "vllm":
        return VLLMGenerator(
            model_config["model"],
            eos_token_ids=eos_token_ids,
            prompt_and_response_len=max_model_len,
            stop=stop,
            dtype=model_config["dtype"],
            trust_remote_code=model_config["trust_remote_code"],
            top_p=top_p,
            transfer_backend=transfer_backend,
            colocate=colocate,
            num_sequences=num_sequences,
            **generator_kwargs,
        )
    policy = load_policy(
        model_config["model"],
        dtype=model_config["dtype"],
        attn_implementation=model_config["attn_implementation"],
        trust_remote_code=model_config["trust_remote_code"],
        seed=model_config["seed"],
    )
    # A process sees the GPUs that Ray gave it, and no others.
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return TransformersGenerator(
        policy.to(device),
        pad_token_id=pad_token_id,
        eos_token_ids=eos_token_ids,
        stop=stop,
        **generator_kwargs,
    )
