"""Making a generator by its name."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pure_rllib.generation.base import Generator
from pure_rllib.generation.load_policy import load_policy
from pure_rllib.generation.transformers_generator import TransformersGenerator

GENERATORS = ("transformers",)
"""Names that `make_generator` knows."""


def make_generator(
    kind: str,
    model_config: Mapping[str, Any],
    generator_kwargs: Mapping[str, Any],
    *,
    pad_token_id: int,
    eos_token_ids: Iterable[int],
    max_model_len: int,
) -> Generator:
    """Makes a generator; its weights are to be loaded before it samples.

    Args:
        kind: one of `GENERATORS`.
        model_config: the policy: `model`, `dtype`, `attn_implementation`,
            `trust_remote_code` and `seed`.
        generator_kwargs: further settings of the generator.
        pad_token_id: fills the left of shorter prompts.
        eos_token_ids: the ids that end a response.
        max_model_len: tokens of the longest prompt and response together.
    """
    assert kind in GENERATORS, kind
    policy = load_policy(
        model_config["model"],
        dtype=model_config["dtype"],
        attn_implementation=model_config["attn_implementation"],
        trust_remote_code=model_config["trust_remote_code"],
        seed=model_config["seed"],
    )
    if torch.cuda.is_available():
        # An env runner sees the GPUs that Ray gave it, and no others.
        policy = policy.to("cuda")
    return TransformersGenerator(
        policy,
        pad_token_id=pad_token_id,
        eos_token_ids=eos_token_ids,
        **generator_kwargs,
    )
