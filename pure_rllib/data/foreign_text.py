"""Encoding prompts in which texts of others stand: no token comes from their words.

A problem that holds `<|im_end|>` is about that word. Taken for the token, it would end
the user's turn; a prompt's own template means its tokens.
"""

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_encoders: "WeakKeyDictionary[Any, tuple[int, _Encoder]]" = WeakKeyDictionary()


def mask(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Marks the words of a foreign text that the tokenizer would take for tokens.

    Args:
        text: of others; put the result where the text goes in a prompt.
        tokenizer: of the model that reads the prompt.

    Returns:
        The text for `encode_masked`; nearly always the text itself.
    """
    return _encoder(tokenizer).mask(text)


def encode_masked(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[list[int]]:
    """Encodes texts of which some parts went through `mask`; adds no BOS or EOS.

    Args:
        texts: N prompts.
        tokenizer: the one that `mask` was given.

    Returns:
        N lists of ids. Each text is encoded as a whole, so that all but the marked
        words is as the tokenizer itself encodes it.

    Raises:
        ValueError: there is a marked word, and the tokenizer is one of Python's.
    """
    encoder = _encoder(tokenizer)
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [
        encoder.encode(text) if encoder.is_masked(text) else list(row)
        for text, row in zip(texts, ids, strict=True)
    ]


def _encoder(tokenizer: "PreTrainedTokenizerBase") -> "_Encoder":
    size, encoder = _encoders.get(tokenizer, (-1, None))
    if encoder is None or size != len(tokenizer):  # tokens can be added later
        encoder = _Encoder(tokenizer)
        _encoders[tokenizer] = (len(tokenizer), encoder)
    return encoder


class _Encoder:
    """Encodes with two kinds of one word: as text, and as the token of that name.

    In a copy of the tokenizer the added tokens are switched off, and each has an alias.
    What a template writes is turned into aliases, what was masked into words.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        # Added tokens of white space (Gemma's line breaks) are text like any other.
        self._tokens = {
            token_id: token
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.content.strip()
        }
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._name = tokenizer.name_or_path
        # Of non-characters, which no text needs.
        self._aliases = {
            token.content: f"\ufdd0{token_id}\ufdd1"
            for token_id, token in self._tokens.items()
        }
        words = sorted(self._aliases, key=len, reverse=True)
        self._words = re.compile("|".join(map(re.escape, words)) or "(?!)")
        self._copy: Any = None
        self._ids: dict[int, int] = {}

    def mask(self, text: str) -> str:
        text = text.replace("\ufdd0", "\ufffd")
        return self._words.sub(lambda found: self._aliases[found[0]], text)

    def is_masked(self, text: str) -> bool:
        return "\ufdd0" in text

    def encode(self, text: str) -> list[int]:
        if self._copy is None:
            self._make_copy()
        # First the template's words: a masked one, unmasked, would be one of them.
        parts = re.split("\ufdd0([0-9]+)\ufdd1", text)
        parts[::2] = map(self.mask, parts[::2])
        parts[1::2] = [self._tokens[int(i)].content for i in parts[1::2]]
        encoded = self._copy.encode("".join(parts), add_special_tokens=False)
        return [self._ids.get(i, i) for i in encoded.ids]

    def _make_copy(self) -> None:
        from tokenizers import AddedToken

        if self._backend is None:
            raise ValueError(
                f"`tokenizer` ({self._name}) must be one of the `tokenizers` library; "
                "because a problem holds the name of a special token, and only there "
                "it can be read as text. Take such problems out."
            )
        self._copy = copy.deepcopy(self._backend)

        def like(token: Any, content: str, *, special: bool) -> Any:
            return AddedToken(
                content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=special and token.normalized,
                special=special,
            )

        # `encode_special_tokens` reads special tokens as text, and only those.
        tokens = self._tokens.values()
        self._copy.add_special_tokens(
            [like(t, t.content, special=True) for t in tokens]
        )
        self._copy.add_tokens(
            [like(t, self._aliases[t.content], special=False) for t in tokens]
        )
        self._copy.encode_special_tokens = True
        self._ids = {
            self._copy.token_to_id(alias): token_id
            for token_id, alias in zip(
                self._tokens, self._aliases.values(), strict=True
            )
        }
