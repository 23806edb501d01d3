"""Where the reasoning steps of a response end.

A step ends at the token that completes a blank line of the text, whichever tokens write
it, and the last step ends at the last token. B responses, T response tokens, S steps
(padded), V vocabulary.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

SEPARATOR = "\n\n"
BlankSteps = Literal["merge", "keep"]

_splitters: "WeakKeyDictionary[Any, dict[tuple[int, int], StepSplitter]]"
_splitters = WeakKeyDictionary()


class StepSplitter:
    r"""Finds the steps of a response from its token ids.

    A separator is a token that completes a blank line of the text: a newline, then
    nothing visible, then a newline. One token may hold both (`.\n\n` of Qwen2.5), or
    several write them in turn (`\n`, `\n` of GPT-2 and SentencePiece), and visible text
    may follow in the same token. `\r\n\r\n` and `\n \n` are blank lines. More newlines
    behind a blank line make no other separator, unless one token holds two of them at
    its end. Special tokens have no text; a token that holds part of a character counts
    as visible.

    Blank steps, the ones without a visible character, are no steps of their own: their
    tokens open the next step. Blank tokens after the last step belong to no step. A
    response without any visible character is one step, and `has_visible` is False. A
    last step that is nothing but the text which ended the response (`ending_with`) is
    no step either, and its tokens belong to none.

    Example (`.\n\n` is visible and a separator, EOS is not visible)::

        ids          a  \n  \n  \n\n  b  .\n\n  EOS
        separator           x    x        x
        spans       [0      3)  [3          6)      EOS belongs to no step

    Args:
        texts: of the first ids, each decoded by itself without special tokens.
        vocab_size: V, at least as many; the ids without a text write nothing.

    Attributes:
        is_separator: `[V]` bool, True on tokens that end with two newlines: all that
            PURE's published code looks at.
        is_visible: `[V]` bool, True on tokens with a visible character.
        has_newline: `[V]` bool, True on tokens with a newline at one of their ends.
    """

    def __init__(self, texts: Sequence[str], vocab_size: int):
        self.is_separator = np.zeros(vocab_size, dtype=bool)
        self.is_visible = np.zeros(vocab_size, dtype=bool)
        self.is_visible[: len(texts)] = [_has_visible_character(t) for t in texts]
        # Newlines before and behind what is visible; in a blank token, all of them.
        self._newlines_before = np.zeros(vocab_size, dtype=np.int64)
        self._newlines_behind = np.zeros(vocab_size, dtype=np.int64)
        # A blank line behind something visible, in one token.
        self._has_blank_line = np.zeros(vocab_size, dtype=bool)
        for i, text in enumerate(texts):
            if "\n" not in text:
                continue
            visible = [_has_visible_character(line) for line in text.split("\n")]
            before = behind = len(visible) - 1
            if any(visible):
                before, behind = visible.index(True), visible[::-1].index(True)
                self._has_blank_line[i] = not all(visible[before + 1 : -1])
            self._newlines_before[i], self._newlines_behind[i] = before, behind
            self.is_separator[i] = text.endswith(SEPARATOR)
        self.has_newline = (self._newlines_before > 0) | (self._newlines_behind > 0)
        self._end_begins_at: Callable[[np.ndarray], int | None] | None = None

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, vocab_size: int | None = None
    ) -> "StepSplitter":
        """Reads the tables off a Hugging Face tokenizer, once per tokenizer.

        Args:
            tokenizer: anything with `__len__` and `batch_decode`.
            vocab_size: V, the model's number of ids; ids that the tokenizer does not
                have write nothing. None: `len(tokenizer)`.

        Raises:
            ValueError: if no token holds a newline.
        """
        key = (len(tokenizer), vocab_size or len(tokenizer))
        cached = _splitters.setdefault(tokenizer, {})
        if key not in cached:
            cached[key] = cls._build(tokenizer, key[1])
        return cached[key]

    @classmethod
    def _build(cls, tokenizer: Any, vocab_size: int) -> "StepSplitter":
        texts = tokenizer.batch_decode(
            [[i] for i in range(min(len(tokenizer), vocab_size))],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        splitter = cls(texts, vocab_size)
        if not splitter.has_newline.any():
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise ValueError(
                f"`tokenizer` ({name}) must have a token with a newline, because "
                f"reasoning steps end at blank lines; none of its {len(texts)} tokens "
                "has one, so no response could have two steps. Set a policy whose "
                "tokenizer can write a newline."
            )
        return splitter

    def ending_with(
        self, begins_at: Callable[[np.ndarray], int | None]
    ) -> "StepSplitter":
        """Returns a splitter for responses that may end with an agreed text.

        Args:
            begins_at: tells of `[T]` ids with which token such a text begins at their
                end; None: they do not end with one.
        """
        splitter = copy(self)
        splitter._end_begins_at = begins_at
        return splitter

    def has_visible(self, response_ids: np.ndarray | Tensor) -> bool:
        """Tells whether any of the `[T]` tokens has a visible character."""
        return bool(self.is_visible[np.asarray(response_ids, dtype=np.int64)].any())

    def separators(self, response_ids: np.ndarray | Tensor) -> np.ndarray:
        """Marks the separators among the `[T]` tokens: `[T]` bool."""
        ids = np.asarray(response_ids, dtype=np.int64)
        visible, before = self.is_visible[ids], self._newlines_before[ids]
        # Newlines of blank tokens so far; less those up to the last visible token, and
        # with what stands behind that one, they are the newlines at the text's end.
        written = np.where(visible, 0, before).cumsum()
        last_visible = np.maximum.accumulate(np.where(visible, np.arange(len(ids)), -1))
        since = written[last_visible] - self._newlines_behind[ids[last_visible]]
        at_end = written - np.where(last_visible >= 0, since, 0)
        pending = np.concatenate([[0], at_end[:-1]])
        completes = (pending < 2) & (pending + before >= 2)
        # A blank line before any text parts nothing from the text behind it.
        follows_text = np.concatenate([[False], last_visible[:-1] >= 0])
        completes &= ~visible | follows_text
        return completes | self._has_blank_line[ids] | self.is_separator[ids]

    def num_separators(self, response_ids: np.ndarray | Tensor) -> int:
        """Counts the separators among the `[T]` tokens."""
        return int(self.separators(response_ids).sum())

    def step_spans(
        self,
        response_ids: np.ndarray | Tensor,
        *,
        blank_steps: BlankSteps = "merge",
        is_over: bool = True,
    ) -> np.ndarray:
        """Splits one response.

        Args:
            response_ids: `[T]` token ids, T >= 1.
            blank_steps: "merge" as described above; "keep" ends a step at every token
                of `is_separator` and at the last token, as PURE's published code does.
            is_over: False while tokens may follow: the step that has not ended yet is
                left out. The steps that have ended never change.

        Returns:
            `[S, 2]` int64 half-open token ranges, each beginning where the one before
            ended; S >= 1, or >= 0 if the response is not over.
        """
        ids = np.asarray(response_ids, dtype=np.int64)
        if ids.ndim != 1 or len(ids) == 0:
            raise ValueError(
                f"`response_ids` (shape {ids.shape}) must be one row of at least one "
                "token: even an empty response holds its EOS."
            )
        ends = np.flatnonzero(self._is_step_end(ids, blank_steps, is_over)) + 1
        if self._end_begins_at is not None and is_over and len(ends) > 1:
            begin = self._end_begins_at(ids)
            if begin is not None and ends[-2] >= begin:
                ends = ends[:-1]
        return np.stack([np.concatenate([[0], ends])[: len(ends)], ends], axis=1)

    def _is_step_end(
        self, ids: np.ndarray, blank_steps: BlankSteps, is_over: bool
    ) -> np.ndarray:
        """`[T]` bool, True on the last token of each step."""
        is_last = is_over & (np.arange(len(ids)) == len(ids) - 1)
        if blank_steps == "keep":
            return self.is_separator[ids] | is_last
        if blank_steps != "merge":
            raise ValueError(
                f'`blank_steps` ({blank_steps!r}) must be "merge" or "keep".'
            )
        candidate = self.separators(ids) | is_last
        # A candidate ends a step if a visible token lies between it and the candidate
        # before: whether that one ended a step does not matter, for if it did not,
        # there was nothing visible before it either.
        num_visible = self.is_visible[ids].cumsum()
        seen = np.maximum.accumulate(np.where(candidate, num_visible, 0))
        seen_before = np.concatenate([[0], seen[:-1]])
        has_none = num_visible[-1] == 0
        return (candidate & (num_visible > seen_before)) | (is_last & has_none)


def describe_steps(tokenizer: Any) -> str:
    """Says where steps end and how a tokenizer writes that, in a sentence."""
    ids = np.array(tokenizer.encode("So.\n\nThe", add_special_tokens=False), np.int64)
    num = int(StepSplitter.from_tokenizer(tokenizer).has_newline[ids].sum())
    tokens = "one token" if num == 1 else f"{num} tokens"
    return (
        f"Steps end at blank lines of the text; this tokenizer writes one as {tokens}."
    )


def step_lengths(step_ends: Tensor, step_mask: Tensor) -> Tensor:
    """Counts the tokens of each step, its last token included.

    Args:
        step_ends: `[B, S]` positions of the steps' last tokens, rising along a row.
        step_mask: `[B, S]` bool, True on real steps, which come first in each row.

    Returns:
        `[B, S]` int64, >= 1 on the mask; 0 off mask.
    """
    before = torch.cat([torch.full_like(step_ends[:, :1], -1), step_ends[:, :-1]], 1)
    return (step_ends - before).masked_fill(~step_mask, 0)


def single_token_id(tokenizer: Any, text: str) -> int:
    r"""Looks up the one id that a text encodes to, such as the PRM's `\n`.

    Raises:
        ValueError: if the text is not exactly one token, or the token is not that text,
            as an unknown one, or one with a space before it.
    """
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    (shown,) = tokenizer.batch_decode([ids], clean_up_tokenization_spaces=False) or [""]
    if len(ids) != 1 or shown != text:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ValueError(
            f"`text` ({text!r}) must be exactly one token of `tokenizer` ({name}), "
            f"because step ends are replaced by it one for one; it encodes to {ids}, "
            f"which decodes to {shown!r}. Set a tokenizer that has it as one token."
        )
    return int(ids[0])


def own_bos_id(tokenizer: Any) -> int | None:
    """Returns the BOS id if the tokenizer puts it before texts by itself."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None


def _has_visible_character(text: str) -> bool:
    """Tells white space, control and zero-width characters from visible ones."""
    return any(char.isprintable() and not char.isspace() for char in text)
