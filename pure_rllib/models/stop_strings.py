"""Texts that end a response, beside ids that do. T response tokens, V vocabulary."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers write for bytes that are no whole character."""


class StopStrings:
    """Finds the token with which a response has written a stop string.

    The text is that of the response alone, special tokens included, as its tokenizer
    decodes it: a match never begins in the prompt. A response ends with the token in
    which a stop string is completed, whatever stands behind it in that token, and ids
    are never taken apart or encoded again.

    It looks at the last token only. Most tokens cannot complete a stop string, which a
    table says; for the others the last few tokens are decoded, so that the cost of a
    token does not grow with T.

    Args:
        tokenizer: the policy's.
        stop: the strings, at least one.
        vocab_size: V, the model's number of ids; those that the tokenizer does not have
            write nothing.

    Attributes:
        stop: the strings.
        can_complete: `[V]` bool, False on tokens that complete no stop string, whatever
            stands before them.

    Raises:
        ValueError: a string is one that the tokenizer's tokens cannot write.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stop: Sequence[str],
        vocab_size: int,
    ):
        assert stop and all(stop), f"{stop}: the setting's type says so"
        self._tokenizer = tokenizer
        self.stop = tuple(stop)
        self._longest = max(map(len, stop))
        texts = _texts_in_context(tokenizer, min(len(tokenizer), vocab_size))
        _check_can_be_written(self.stop, texts)
        self.can_complete = np.zeros(vocab_size, dtype=bool)
        self.can_complete[: len(texts)] = [
            any(_can_complete(text, string) for string in self.stop) for text in texts
        ]

    def begins_at(self, response_ids: Sequence[int] | np.ndarray) -> int | None:
        """Looks for a stop string that the last token completes.

        Args:
            response_ids: `[T]` ids of which no earlier one completed a stop string.

        Returns:
            The place in [0, T) of the token in which the match begins; None if the last
            token completes none.
        """
        if len(response_ids) == 0 or not self.can_complete[response_ids[-1]]:
            return None
        ids = [int(i) for i in response_ids]
        # As a rule a token writes a character at least; where some do not, look back
        # further. One more than the longest string, because a tokenizer may drop the
        # space before the first word that it decodes.
        width = self._longest + 2
        while width < len(ids) and len(self._text(ids[-width:-1])) <= self._longest:
            width *= 2
        window = ids[-width:]
        text = self._text(window)
        places = [at for at in map(text.find, self.stop) if at >= 0]
        if not places:
            return None
        first = min(places)
        num = next(
            n for n in range(1, len(window) + 1) if len(self._text(window[:n])) > first
        )
        return len(ids) - len(window) + num - 1

    def _text(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text


def _texts_in_context(tokenizer: "PreTrainedTokenizerBase", num: int) -> list[str]:
    """Returns what each of the first ids writes behind another token."""
    alone = tokenizer.batch_decode(
        [[i] for i in range(num)], clean_up_tokenization_spaces=False
    )
    # Any token with a plain text: behind it no space at a word's beginning is dropped.
    before = next((i for i, text in enumerate(alone) if text.isalnum()), None)
    if before is None:
        return list(alone)
    behind = tokenizer.batch_decode(
        [[before, i] for i in range(num)], clean_up_tokenization_spaces=False
    )
    return [text[len(alone[before]) :] for text in behind]


def _can_complete(text: str, string: str) -> bool:
    """Whether a token with this text can hold the end of a string."""
    return (
        _BROKEN in text
        or string in text
        or any(text.startswith(string[i:]) for i in range(1, len(string)))
    )


def _check_can_be_written(stop: Sequence[str], texts: Sequence[str]) -> None:
    characters = set().union(*texts)
    # Tokens that are single bytes write any character together.
    has_bytes = _BROKEN in characters
    for string in stop:
        missing = sorted(set(string) - characters)
        if _BROKEN in string or (missing and not has_bytes):
            shown = ", ".join(map(repr, missing)) or repr(_BROKEN)
            raise ValueError(
                f"`stop` ({string!r}) must be a text that the policy can write, "
                f"because no response would end there: no token has {shown}. Leave it "
                "out, or set one of characters that the tokenizer has."
            )
