r"""What a process reward model reads: the steps, each followed by a separator id.

B rows, P prompt tokens, T response tokens, S steps, L columns. Separators are put in as
ids, never as text: tokenizing a full stop and a newline again could give another token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.rewards.base import ScoringRequest

InputFormat = Literal["pure_rllib", "pure_openrlhf", "pure_verl"]
INPUT_FORMATS: tuple[InputFormat, ...] = get_args(InputFormat)


@dataclass(frozen=True, slots=True)
class PRMRow:
    """One response as a process reward model reads it, without padding.

    Attributes:
        input_ids: `[L]` int64.
        score_positions: `[S]` int64, increasing columns whose logits are the steps'
            scores.
    """

    input_ids: np.ndarray
    score_positions: np.ndarray


class PRMInputBuilder:
    r"""Turns responses and their step spans into rows.

    In our own format a step is shown as it reads: white space and special tokens around
    it are left out, a token such as `.\n\n` is replaced by the ids of its visible part,
    and the separator follows. The published formats (`make_experience` of PURE's main
    branch, `_build_inputs_for_prm` of its verl branch) replace the last token of each
    step by the separator, so the full stop is lost, and so is the last token of a
    response that was cut by its budget.

    Ids that the tokenizer or the reward model does not know have no text and no
    embedding: they are left out of the row, wherever they stand.

    Example (P is the prompt, | the separator)::

        response    a  b  .\n\n  c  EOS      spans [0, 3) [3, 5)
        pure_rllib  P  a  b  .  |  c  |      score positions 4, 6
        published   P  a  b  |  c  |         score positions 3, 5

    Args:
        tokenizer: of the policy and the reward model.
        separator_id: the id that follows each step.
        input_format: `pure_rllib`, `pure_openrlhf` or `pure_verl`; the last two differ
            in their padding only, so they give the same rows here.
        vocab_size: ids that the reward model has embeddings for; None: as many as the
            tokenizer has.

    Raises:
        ValueError: an unknown format.
    """

    def __init__(
        self,
        tokenizer: Any,
        separator_id: int,
        input_format: InputFormat = "pure_rllib",
        vocab_size: int | None = None,
    ):
        if input_format not in INPUT_FORMATS:
            raise ValueError(
                f"`input_format` ({input_format!r}) must be one of {INPUT_FORMATS} "
                "because the reward model was trained on one of them. Set it to "
                "'pure_rllib'."
            )
        self.tokenizer = tokenizer
        self.separator_id = separator_id
        self.input_format = input_format
        is_visible = StepSplitter.from_tokenizer(tokenizer).is_visible
        self._is_visible = is_visible[:vocab_size]
        # Filled on first use: most of a vocabulary is never sampled.
        self._visible_parts: dict[int, list[int]] = {}

    def rows(self, requests: Sequence[ScoringRequest]) -> list[PRMRow]:
        """Builds one row per request; each has as many score positions as steps."""
        return [self.row(r.prompt_ids, r.response_ids, r.step_spans) for r in requests]

    def row(
        self,
        prompt_ids: Sequence[int] | np.ndarray,
        response_ids: Sequence[int] | np.ndarray,
        step_spans: np.ndarray,
    ) -> PRMRow:
        """Builds one row.

        Args:
            prompt_ids: `[P]` ids that the policy was given; shown as they are, but for
                unknown ones.
            response_ids: `[T]` sampled ids.
            step_spans: `[S, 2]` half-open ranges of the steps in the response.

        Returns:
            The row; it has S score positions.
        """
        tokens = np.asarray(response_ids, dtype=np.int64)
        ids = self._known(np.asarray(prompt_ids, dtype=np.int64)).tolist()
        positions = []
        for start, end in np.asarray(step_spans, dtype=np.int64).tolist():
            if self.input_format == "pure_rllib":
                ids.extend(self.step_ids(tokens[start:end]))
            else:
                ids.extend(self._known(tokens[start : end - 1]).tolist())
            positions.append(len(ids))
            ids.append(self.separator_id)
        return PRMRow(
            np.asarray(ids, dtype=np.int64), np.asarray(positions, dtype=np.int64)
        )

    def step_ids(self, tokens: Sequence[int] | np.ndarray) -> list[int]:
        """The visible part of one step in our format.

        Args:
            tokens: the step's ids, its separator or EOS included.

        Returns:
            Ids from the first to the last visible token, without newlines at the end.
        """
        tokens = self._known(np.asarray(tokens, dtype=np.int64))
        places = np.flatnonzero(self._is_visible[tokens])
        if len(places) == 0:
            return []
        first, last = int(places[0]), int(places[-1])
        return [*tokens[first:last].tolist(), *self._visible_part(int(tokens[last]))]

    def _known(self, tokens: np.ndarray) -> np.ndarray:
        # A policy may have more embeddings than tokens, and may sample all of them.
        return tokens[tokens < len(self._is_visible)]

    def _visible_part(self, token: int) -> list[int]:
        """The ids of a token's text without the newlines at its end."""
        if token not in self._visible_parts:
            text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            visible = text.rstrip("\n")
            # A token that holds part of a character does not survive decoding, so
            # tokens without newlines are never encoded again.
            self._visible_parts[token] = (
                [token]
                if visible == text
                else self.tokenizer.encode(visible, add_special_tokens=False)
            )
        return self._visible_parts[token]


def pad_rows(
    rows: Sequence[PRMRow], pad_token_id: int
) -> tuple[np.ndarray, np.ndarray]:
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
