r"""Encoding text from outside, in which no marker of the tokenizer's own may arise.

A problem or a step may hold `<|im_end|>` or `<tool_call>` as text. A tokenizer would
take it for the token of that name, which ends turns, calls tools or marks steps.
Markers are the special tokens, and of the other added tokens those that are no words:
letters alone, or white space alone as Gemma's runs of newlines, are what texts are
written with.

A text is often encoded together with a template, whose own markers are meant, and in
one piece, because many tokenizers treat the beginning of a text differently. So foreign
text is shielded before it is put in, and the whole is encoded by `encode_shielded`.
"""

import json
import re
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import AddedToken, Tokenizer

# Noncharacters, which no text is meant to hold. Between them stands a shielded
# marker's number, or, in the eyes of the tokenizer that knows no other markers, a name.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


def encode_plain(tokenizer: Any, text: str, *, keep: Collection[str] = ()) -> list[int]:
    """Encodes a foreign text, without BOS or EOS; only `keep` become markers in it."""
    return encode_shielded(tokenizer, [shield(tokenizer, text, keep=keep)])[0]


def shield(tokenizer: Any, text: str, *, keep: Collection[str] = ()) -> str:
    """Hides the markers in a foreign text, but for those of `keep`.

    Only `encode_shielded` can read what it returns.
    """
    return _markers(tokenizer).shield(text, keep)


def encode_shielded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encodes texts that foreign text was put into.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: N texts; markers in them are tokens, but for those that `shield` hid.

    Returns:
        N lists of ids, without BOS or EOS but for those that the texts name. Without a
        hidden marker they are what the tokenizer makes of the text.
    """
    if not texts:
        return []
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [
        _markers(tokenizer).encode(tokenizer, text) if _OPEN in text else list(row)
        for text, row in zip(texts, rows, strict=True)
    ]


class _Markers:
    """What must not arise from foreign text, and how the rest is encoded."""

    def __init__(self, tokenizer: Any):
        added = tokenizer.added_tokens_decoder
        self._ids = {t.content: i for i, t in added.items() if _is_marker(t)}
        # The longest first, as tokenizers match them. An `_OPEN` in a foreign text
        # could forge a hidden marker: it becomes a replacement character.
        names = sorted([*self._ids, _OPEN], key=len, reverse=True)
        self._numbers = {name: n for n, name in enumerate(names)}
        self._plain = ["\ufffd" if name == _OPEN else name for name in names]
        pattern = "|".join(map(re.escape, names))
        self._any = re.compile(pattern)
        self._hidden = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
        self._hidden_or_any = re.compile(f"{self._hidden.pattern}|{pattern}")
        unknown = tokenizer.unk_token_id
        self._special = {i for i, t in added.items() if t.special and i != unknown}
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)

    def shield(self, text: str, keep: Collection[str]) -> str:
        return self._any.sub(
            lambda m: m[0] if m[0] in keep else f"{_OPEN}{self._numbers[m[0]]}{_CLOSE}",
            text,
        )

    def encode(self, tokenizer: Any, text: str) -> list[int]:
        if self._backend is None:
            return self._encode_in_pieces(tokenizer, text)
        backend, real_ids = self._renamed
        text = self._hidden_or_any.sub(
            lambda m: self._plain[int(m[1])] if m[1] else f"{_OPEN}{m[0]}{_CLOSE}", text
        )
        ids = backend.encode(text, add_special_tokens=False).ids
        # A model of whole words may know a marker as one of its words.
        kept = (i for i in ids if i in real_ids or i not in self._special)
        return [real_ids.get(i, i) for i in kept]

    def _encode_in_pieces(self, tokenizer: Any, text: str) -> list[int]:
        """For tokenizers in Python, which can be told not to look for markers."""
        ids: list[int] = []
        for n, piece in enumerate(self._hidden.split(text)):
            plain = self._plain[int(piece)] if n % 2 else piece
            ids += tokenizer(
                plain, add_special_tokens=False, split_special_tokens=n % 2 == 1
            )["input_ids"]
        return ids

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer with other names for its markers; its ids to the real ones."""
        state = json.loads(self._backend.to_str())
        state["truncation"] = state["padding"] = None
        real = {}
        for token in state["added_tokens"]:
            name = token["content"]
            if name in self._ids:
                # As it stands in the text, whatever the text is normalised to.
                token |= {"content": f"{_OPEN}{name}{_CLOSE}", "normalized": False}
            real[token["content"]] = token["id"]
        backend: Any = Tokenizer.from_str(json.dumps(state))
        return backend, {backend.token_to_id(name): i for name, i in real.items()}


def marker_ids(tokenizer: Any) -> dict[str, int]:
    """Returns the tokenizer's markers and their ids."""
    return dict(_markers(tokenizer)._ids)


def _is_marker(token: AddedToken) -> bool:
    # SentencePiece writes a space as U+2581.
    text = token.content.replace("\u2581", " ")
    return token.special or not all(c.isalnum() or c.isspace() for c in text)


_known: "WeakKeyDictionary[Any, dict[int, _Markers]]" = WeakKeyDictionary()


def _markers(tokenizer: Any) -> _Markers:
    """Made once per tokenizer, and again when tokens were added."""
    cached = _known.setdefault(tokenizer, {})
    size = len(tokenizer)
    if size not in cached:
        cached[size] = _Markers(tokenizer)
    return cached[size]
