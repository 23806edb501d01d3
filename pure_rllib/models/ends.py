"""What ends what a model writes; one rule for policies and for judges."""

import warnings
from collections.abc import Collection, Container, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pure_rllib.models.loading import named_eos_ids
from pure_rllib.models.stop_strings import StopStrings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def eos_ids(
    tokenizer: "PreTrainedTokenizerBase", eos_token_ids: Collection[int] | None = None
) -> frozenset[int]:
    """Returns what ends a response: the given ids, or all that the files name.

    Args:
        tokenizer: the model's; its folder's config and generation config count too.
        eos_token_ids: in place of what is found.

    Raises:
        ValueError: there is no such id.
    """
    if eos_token_ids is not None:
        ids = frozenset(int(i) for i in eos_token_ids)
    else:
        # Chat models often end a turn with another token than their tokenizer names.
        own, folder = tokenizer.eos_token_id, tokenizer.name_or_path
        ids = frozenset() if own is None else frozenset([int(own)])
        ids |= added_eos_ids(folder, tokenizer) if folder else frozenset()
    if not ids:
        raise ValueError(
            "`eos_token_ids` (None) must name at least one id, because the tokenizer "
            "has no end-of-sequence token. Give it one, or set "
            "`env_config={'eos_token_ids': [...]}`."
        )
    return ids


def is_ended(
    token_ids: np.ndarray, eos_token_ids: Container[int], stop: StopStrings | None
) -> bool:
    """Tells whether the last of the `[T]` ids of a response is one that ends it."""
    if int(token_ids[-1]) in eos_token_ids:
        return True
    return stop is not None and stop.begins_at(token_ids) is not None


def pad_id(tokenizer: "PreTrainedTokenizerBase", eos_token_ids: Collection[int]) -> int:
    """Returns what fills shorter rows; without a padding token an id that ends them."""
    pad = tokenizer.pad_token_id
    return min(eos_token_ids) if pad is None else int(pad)


def added_eos_ids(
    model: str | Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase"
) -> frozenset[int]:
    """The ids of `named_eos_ids` that are no words; says which ones are.

    A config that was made without its tokenizer has its class's default there, an id
    that may stand for any word.
    """
    named = named_eos_ids(model)
    words = named - tokenizer.added_tokens_decoder.keys()
    if words:
        shown = ", ".join(
            f"{i} ({tokenizer.convert_ids_to_tokens(i)!r})" for i in sorted(words)
        )
        warnings.warn(
            f"Responses do not end at eos_token_id {shown} of the config of {model}, "
            "because it is none of the tokenizer's added tokens. Set `eos_token_ids` "
            "if they should.",
            stacklevel=2,
        )
    return named - words
