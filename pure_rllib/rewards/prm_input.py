"""What a process reward model reads: the steps, each followed by a separator id.

P prompt tokens, T response tokens, S steps, B rows, L columns. Separators are appended
as ids, never as text: tokenizing "." + newline again could give another token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

InputFormat = Literal["pure_rllib", "pure_openrlhf", "pure_verl"]
INPUT_FORMATS: tuple[InputFormat, ...] = get_args(InputFormat)


@dataclass(frozen=True, slots=True)
class PRMRow:
    """One response as a process reward model reads it, without padding.

    Attributes:
        input_ids: `[L]` int64.
        score_positions: `[S]` int64, strictly increasing columns whose logits are the
            steps' scores.
    """

    input_ids: np.ndarray
    score_positions: np.ndarray


class PRMInputBuilder:
    """Turns responses and their step spans into rows.

    In our own format a step is shown as it reads: white space and special tokens around
    it are left out, and a token that ends a step with a full stop and two newlines is
    replaced by the tokens of its visible part, then the separator follows. The published formats
    replace the last token of each step by the separator, so the full stop is lost, and
    so is the last token of a response that was cut by its budget.

    Args:
        tokenizer: of the policy and the reward model.
        separator_id: the id that follows each step.
        input_format: `pure_rllib`, `pure_openrlhf` or `pure_verl`.

    Raises:
        ValueError: an unknown format.
    """

    def __init__(
        self,
        tokenizer: Any,
        separator_id: int,
        input_format: InputFormat = "pure_rllib",
    ):
        if input_format not in INPUT_FORMATS:
            raise ValueError(
                f"`input_format` ({input_format}) must be one of {INPUT_FORMATS} "
                "because the reward model was trained on one of them. Set it to "
                "'pure_rllib'."
            )
        self.tokenizer = tokenizer
        self.separator_id = separator_id
        self.input_format = input_format
        self._special_ids = frozenset(tokenizer.all_special_ids)
        # Filled on first use: most of a vocabulary is never sampled.
        self._is_blank: dict[int, bool] = {}
        self._visible_ids: dict[int, list[int]] = {}

    def row(
        self,
        prompt_ids: Sequence[int] | np.ndarray,
        response_ids: Sequence[int] | np.ndarray,
        step_spans: np.ndarray,
    ) -> PRMRow:
        """Builds one row.

        Args:
            prompt_ids: `[P]` ids that the policy was given; shown as they are.
            response_ids: `[T]` sampled ids.
            step_spans: `[S, 2]` half-open ranges of the steps in the response.

        Returns:
            The row; it has S score positions.
        """
        ids = [int(token) for token in prompt_ids]
        tokens = [int(token) for token in response_ids]
        positions = []
        for start, end in np.asarray(step_spans, dtype=np.int64).tolist():
            if self.input_format == "pure_rllib":
                ids.extend(self.step_ids(tokens[start:end]))
            else:
                ids.extend(tokens[start : end - 1])
            positions.append(len(ids))
            ids.append(self.separator_id)
        return PRMRow(
            np.asarray(ids, dtype=np.int64), np.asarray(positions, dtype=np.int64)
        )

    def step_ids(self, tokens: Sequence[int]) -> list[int]:
        """The ids of one step's visible part, without its separator and EOS."""
        first, last = 0, len(tokens)
        while first < last and self._blank(tokens[first]):
            first += 1
        while last > first and self._blank(tokens[last - 1]):
            last -= 1
        if first == last:
            return []
        return [*tokens[first : last - 1], *self._visible(tokens[last - 1])]

    def _blank(self, token: int) -> bool:
        if token not in self._is_blank:
            self._is_blank[token] = (
                token in self._special_ids or not self._text(token).strip()
            )
        return self._is_blank[token]

    def _visible(self, token: int) -> list[int]:
        """The ids of a token's text without the newlines at its end."""
        if token not in self._visible_ids:
            text = self._text(token)
            visible = text.rstrip("\n")
            # A token that holds part of a character does not survive decoding, so
            # tokens without newlines are never encoded again.
            self._visible_ids[token] = (
                [token]
                if visible == text
                else self.tokenizer.encode(visible, add_special_tokens=False)
            )
        return self._visible_ids[token]

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token], clean_up_tokenization_spaces=False)


def pad_rows(rows: Sequence[PRMRow], pad_token_id: int) -> tuple[np.ndarray, ...]:
    """Pads rows on the right.

    Args:
        rows: B rows.
        pad_token_id: fills the columns behind each row.

    Returns:
        `[B, L]` int64 ids, and `[B, L]` int64 mask with 1 on the rows' own tokens.
    """
    width = max(len(row.input_ids) for row in rows)
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row.input_ids)] = row.input_ids
        mask[i, : len(row.input_ids)] = 1
    return ids, mask


def separator_id(tokenizer: Any, separator: str) -> int:
    """The one id of the reward model's separator.

    Raises:
        ValueError: the tokenizer does not encode the separator as exactly one id.
    """
    ids: Iterable[int] = tokenizer.encode(separator, add_special_tokens=False)
    ids = list(ids)
    if len(ids) != 1:
        raise ValueError(
            f"`separator` ({separator!r}) must be exactly one id of the reward model's "
            "tokenizer because its score is read at that token; it is encoded as "
            f"{ids}. Use the tokenizer that the reward model was trained with."
        )
    return ids[0]
