"""Where the reasoning steps of a response end.

A step ends at a token whose own decoding ends with two newlines, and the last step ends
at the last token. B responses, T response tokens, S steps (padded), V vocabulary.
"""

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

    Blank steps, the ones without a visible character, are no steps of their own: their
    tokens open the next step. Blank tokens after the last step belong to no step. A
    response without any visible character is one step, and `has_visible` is False.

    Example (`.\n\n` is visible and a separator, EOS is not visible)::

        ids          a  \n\n  \n\n  b  .\n\n  EOS
        separator       x     x        x
        spans       [0   2)  [2          5)          EOS belongs to no step

    Args:
        is_separator: `[V]` bool, True on tokens that end with two newlines.
        is_visible: `[V]` bool, True on tokens with a visible character.
    """

    def __init__(self, is_separator: np.ndarray, is_visible: np.ndarray):
        if is_separator.shape != is_visible.shape or is_separator.ndim != 1:
            raise ValueError(
                f"`is_separator` {is_separator.shape} and `is_visible` "
                f"{is_visible.shape} must both be one flag per vocabulary id."
            )
        self.is_separator = np.asarray(is_separator, dtype=bool)
        self.is_visible = np.asarray(is_visible, dtype=bool)

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, vocab_size: int | None = None
    ) -> "StepSplitter":
        """Reads both tables off a Hugging Face tokenizer, once per tokenizer.

        Args:
            tokenizer: anything with `__len__`, `batch_decode` and `all_special_ids`.
            vocab_size: V, the model's number of ids; ids that the tokenizer does not
                have are neither separators nor visible. None: `len(tokenizer)`.

        Raises:
            ValueError: if no id is a separator.
        """
        key = (len(tokenizer), vocab_size or len(tokenizer))
        cached = _splitters.setdefault(tokenizer, {})
        if key not in cached:
            cached[key] = cls._build(tokenizer, key[1])
        return cached[key]

    @classmethod
    def _build(cls, tokenizer: Any, vocab_size: int) -> "StepSplitter":
        known = min(len(tokenizer), vocab_size)
        texts = tokenizer.batch_decode(
            [[i] for i in range(known)],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        is_separator = np.zeros(vocab_size, dtype=bool)
        is_visible = np.zeros(vocab_size, dtype=bool)
        is_separator[:known] = [text.endswith(SEPARATOR) for text in texts]
        is_visible[:known] = [_has_visible_character(text) for text in texts]
        special = np.asarray(tokenizer.all_special_ids, dtype=np.int64)
        is_visible[special[special < vocab_size]] = False
        if not is_separator.any():
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise ValueError(
                f"`tokenizer` ({name}) must have a token that ends with two newlines, "
                "because reasoning steps end there; none of its "
                f"{known} tokens does. Set a tokenizer that has one (such as Qwen2.5) "
                'or add the token "\\n\\n" to it.'
            )
        return cls(is_separator, is_visible)

    def ends_step(self, token_id: int) -> bool:
        """Tells whether a step ends at this token, if it has a visible token by then.

        An environment that sees one token at a time closes a step where
        `has_visible(ids since the last end)` and either this holds or the response is
        over; and, if no step was closed, at the last token in any case.
        """
        return bool(self.is_separator[token_id])

    def has_visible(self, response_ids: np.ndarray | Tensor) -> bool:
        """Tells whether any of the `[T]` tokens has a visible character."""
        return bool(self.is_visible[np.asarray(response_ids, dtype=np.int64)].any())

    def num_separators(self, response_ids: np.ndarray | Tensor) -> int:
        """Counts the separator tokens among the `[T]` tokens."""
        return int(self.is_separator[np.asarray(response_ids, dtype=np.int64)].sum())

    def step_spans(
        self,
        response_ids: np.ndarray | Tensor,
        *,
        blank_steps: BlankSteps = "merge",
    ) -> np.ndarray:
        """Splits one response.

        Args:
            response_ids: `[T]` token ids, T >= 1.
            blank_steps: "merge" as described above; "keep" ends a step at every
                separator and at the last token, as PURE's published code does.

        Returns:
            `[S, 2]` int64 half-open token ranges, S >= 1, each beginning where the one
            before ended.
        """
        ids = np.asarray(response_ids, dtype=np.int64)
        if ids.ndim != 1 or len(ids) == 0:
            raise ValueError(
                f"`response_ids` (shape {ids.shape}) must be one row of at least one "
                "token: even an empty response holds its EOS."
            )
        ends = np.flatnonzero(self._is_step_end(ids, blank_steps)) + 1
        return np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)

    def _is_step_end(self, ids: np.ndarray, blank_steps: BlankSteps) -> np.ndarray:
        """`[T]` bool, True on the last token of each step."""
        is_last = np.arange(len(ids)) == len(ids) - 1
        candidate = self.is_separator[ids] | is_last
        if blank_steps == "keep":
            return candidate
        if blank_steps != "merge":
            raise ValueError(
                f'`blank_steps` ({blank_steps!r}) must be "merge" or "keep".'
            )
        # A candidate ends a step if a visible token lies between it and the candidate
        # before: whether that one ended a step does not matter, for if it did not,
        # there was nothing visible before it either.
        num_visible = self.is_visible[ids].cumsum()
        seen = np.maximum.accumulate(np.where(candidate, num_visible, 0))
        seen_before = np.concatenate([[0], seen[:-1]])
        has_none = num_visible[-1] == 0
        return (candidate & (num_visible > seen_before)) | (is_last & has_none)


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
        ValueError: if the text is not exactly one token.
    """
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    if len(ids) != 1:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ValueError(
            f"`text` ({text!r}) must be exactly one token of `tokenizer` ({name}), "
            f"because step ends are replaced by it one for one; it encodes to {ids}. "
            "Set a tokenizer that has it as one token."
        )
    return int(ids[0])


def own_bos_id(tokenizer: Any) -> int | None:
    """Returns the BOS id if the tokenizer puts it before texts by itself."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None


def _has_visible_character(text: str) -> bool:
    """Tells white space, control and zero-width characters from visible ones."""
    return any(char.isprintable() and not char.isspace() for char in text)
