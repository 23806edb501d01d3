"""The setting `tokenizer` of environments."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pure_rllib.models.loading import resolve_model


def load_tokenizer(name: str | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Returns a tokenizer that may be given by its folder or hub id.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(name, str):
        return name
    try:
        return AutoTokenizer.from_pretrained(resolve_model(name))
    except OSError as error:
        raise ValueError(
            f"`tokenizer` ({name}) must be a folder with a tokenizer's files or the id "
            f"of one on the hub, because prompts are encoded with it: {error}. Set it "
            "to the policy's folder."
        ) from error
