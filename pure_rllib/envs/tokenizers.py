"""The setting `tokenizer` of environments."""

from transformers import PreTrainedTokenizerBase

from pure_rllib.models import loading


def load_tokenizer(name: str | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Returns a tokenizer that may be given by its folder or hub id.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(name, str):
        return name
    tokenizer: PreTrainedTokenizerBase = loading.load_tokenizer(
        loading.resolve_model(name)
    )
    return tokenizer
