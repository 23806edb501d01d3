"""What every generator checks of its arguments and of what it sampled."""

from collections.abc import Iterable, Sequence

import numpy as np

from pure_rllib.generation.base import SamplingParams


def check_token_id(name: str, token_id: int, vocab_size: int) -> None:
    """Checks that the model knows an id.

    Args:
        name: of the setting that holds it, for the message.
        token_id: the id.
        vocab_size: rows of the model's embedding.

    Raises:
        ValueError: it does not.
    """
    if not 0 <= token_id < vocab_size:
        raise ValueError(
            f"`{name}` ({token_id}) must lie in [0, {vocab_size}) because the model "
            "has no embedding for it. Use the model's own tokenizer."
        )


def checked_eos_ids(eos_token_ids: Iterable[int], vocab_size: int) -> tuple[int, ...]:
    """Returns the ids that end a response, each once and rising.

    Args:
        eos_token_ids: the ids, at least one.
        vocab_size: rows of the model's embedding.

    Raises:
        ValueError: there is none, or one outside the vocabulary.
    """
    checked = tuple(sorted(set(eos_token_ids)))
    if not checked:
        raise ValueError(
            "`eos_token_ids` must hold at least one id because responses end there. "
            "Pass the tokenizer's eos_token_id."
        )
    for token_id in checked:
        check_token_id("eos_token_ids", token_id, vocab_size)
    return checked


def check_request(
    prompts: Sequence[Sequence[int]],
    group_size: int,
    params: SamplingParams,
    seeds: Sequence[int],
) -> None:
    """Checks the arguments of `Generator.generate`, but for the temperature.

    Raises:
        ValueError: a prompt is empty, or a setting is out of range.
    """
    assert len(seeds) == len(prompts), f"{len(seeds)} seeds, {len(prompts)} prompts"
    assert group_size >= 1, f"group_size {group_size}"
    if params.max_response_tokens < 1:
        raise ValueError(
            f"`max_response_tokens` ({params.max_response_tokens}) must be >= 1 "
            "because EOS counts too. Set `.env_runners(max_response_tokens=...)`."
        )
    check_top_p(params.top_p)
    if not all(map(len, prompts)):
        raise ValueError("A prompt must have at least one token; one is empty.")


def check_top_p(top_p: float) -> None:
    """Checks the size of the nucleus.

    Raises:
        ValueError: it is out of range.
    """
    if not 0.0 < top_p <= 1.0:
        raise ValueError(
            f"`top_p` ({top_p}) must lie in (0, 1] because it is the share of "
            "probability that is kept. Set `.env_runners(top_p=1.0)`."
        )


def check_logps(logps: np.ndarray, weights_version: int) -> None:
    """Checks the log-probabilities of sampled ids, of any shape.

    Raises:
        RuntimeError: one is NaN.
    """
    if np.isnan(logps).any():
        raise RuntimeError(
            f"The policy's logits are NaN (weights version {weights_version}), so "
            "nothing can be sampled from it. Go back to an earlier checkpoint."
        )
