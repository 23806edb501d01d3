"""From labelled solutions to rows of a reward model. B rows, L columns, S steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.prm_training.losses import IGNORED
from pure_rllib.prm_training.solutions import LabelledSolution, scoring_requests
from pure_rllib.rewards.prm.rows import PRMInputBuilder, PRMRow, PRMTextBuilder

_CHUNK = 1024
Row = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class StepRows:
    """What a reward model is trained on.

    Attributes:
        rows: `input_ids` `[L]` and `labels` `[L]` each; a label stands at the
            separator behind its step, `IGNORED` everywhere else.
        num_cut: rows that were longer than the limit and lost steps.
        num_dropped: rows that had no label left.
    """

    rows: list[Row]
    num_cut: int
    num_dropped: int

    @property
    def num_labels(self) -> int:
        """Labelled steps in all rows."""
        return sum(int((row["labels"] != IGNORED).sum()) for row in self.rows)


def step_rows(
    solutions: Sequence[LabelledSolution],
    builder: PRMInputBuilder | PRMTextBuilder,
    *,
    template: PromptTemplate,
    columns: tuple[int, int],
    max_length: int,
) -> StepRows:
    """Builds the rows exactly as `ProcessRewardModel` builds them to score.

    Args:
        solutions: labelled solutions.
        builder: of the reward model's format.
        template: makes the policy's prompt of a problem.
        columns: class numbers of good and bad.
        max_length: columns per row at most; steps beyond are cut off.

    Raises:
        ValueError: no row has a label within the limit.
    """
    good, bad = columns
    rows: list[Row] = []
    num_cut = 0
    for start in range(0, len(solutions), _CHUNK):
        chunk = solutions[start : start + _CHUNK]
        requests = scoring_requests(chunk, builder.tokenizer, template)
        for solution, built in zip(chunk, builder.rows(requests), strict=True):
            labels = np.full(len(built.input_ids), IGNORED, dtype=np.int64)
            places = built.score_positions
            for place, label in zip(places, solution.labels, strict=True):
                if label is not None:
                    labels[place] = good if label else bad
            cut = _cut(built, max_length)
            num_cut += cut < len(labels)
            rows.append({"input_ids": built.input_ids[:cut], "labels": labels[:cut]})
    labelled = [row for row in rows if (row["labels"] != IGNORED).any()]
    if not labelled:
        raise ValueError(
            f"`max_length` ({max_length}) must leave a labelled step, because rows are "
            f"cut there; none of {len(rows)} rows has one before. Set it higher."
        )
    return StepRows(labelled, num_cut, len(rows) - len(labelled))


def _cut(row: PRMRow, max_length: int) -> int:
    """Columns that are kept: up to the last separator within the limit."""
    if len(row.input_ids) <= max_length:
        return len(row.input_ids)
    kept = row.score_positions[row.score_positions < max_length]
    return int(kept[-1]) + 1 if len(kept) else 0


class Collator:
    """Pads rows on the right, as they are when the model scores.

    Args:
        pad_token_id: fills the columns behind shorter rows.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
        """Returns `[B, L]` `input_ids`, `attention_mask` and `labels`."""
        ids, labels = (
            [torch.from_numpy(row[name]).long() for row in rows]
            for name in ("input_ids", "labels")
        )
        masks = [torch.ones_like(row) for row in ids]
        return {
            "input_ids": pad_sequence(ids, True, self.pad_token_id),
            "attention_mask": pad_sequence(masks, True),
            "labels": pad_sequence(labels, True, IGNORED),
        }
