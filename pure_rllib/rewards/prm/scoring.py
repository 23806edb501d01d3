"""From a model's logits to scores. B rows, S steps, L columns."""

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pure_rllib.models.batching import token_budget_batches
from pure_rllib.rewards.base import ScoringRequest, StepScorer, counts_of
from pure_rllib.rewards.prm.rows import PRMRow
from pure_rllib.setting_types import Count, check_setting

LOWEST_SCORE = -1.0
"""Score of a step that a reward model could not be shown; it is never adjusted."""
# Padded tokens per forward pass. On the CPU measured: three times as fast as one large
# batch, which has more padding and leaves the processor's cache.
_CPU_MICRO_BATCH = 1_024
_MICRO_BATCH = 16_384


@dataclass(frozen=True, slots=True)
class ScoreAdjustment:
    """Label smoothing, then a clamp.

    Attributes:
        label_smoothing: how much of each probability is replaced by one half, in
            [0, 1): p becomes (1 - s) p + s / 2, so a score becomes (1 - s) score. It is
            the expected score where a share s / 2 of the verdicts is wrong by chance.
            It shrinks differences, and with them the min form's sharpness; it changes
            no order.
        score_clamp: scores below the first number are raised to it, above the second
            lowered to it; within [-1, 1]. `(-1.0, 0.0)` pays nothing for good steps
            and still punishes bad ones.

    Raises:
        ValueError: a number is out of range.
    """

    label_smoothing: float = 0.0
    score_clamp: Sequence[float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(
                f"`label_smoothing` ({self.label_smoothing}) must lie in [0, 1), "
                "because at 1 all scores are 0. Set it to 0.0 to keep them as they are."
            )
        if len(self.score_clamp) != 2 or not (
            -1.0 <= self.score_clamp[0] < self.score_clamp[1] <= 1.0
        ):
            raise ValueError(
                f"`score_clamp` ({self.score_clamp}) must be two rising numbers in "
                "[-1, 1], because process rewards lie there. Set it to (-1.0, 1.0) to "
                "keep them as they are."
            )

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Returns adjusted `[S]` float32 scores."""
        low, high = self.score_clamp
        smoothed = (1.0 - self.label_smoothing) * scores
        return np.clip(smoothed, low, high).astype(np.float32)


class RowScorer:
    """Reads two columns of a model's logits at given places of rows.

    A score is p(good) - p(bad) under a softmax over the two columns, worked out in
    float32 whatever the model's dtype. Rows are padded on the right and masked, so a
    row's scores depend on nothing else in the call, up to the rounding of batched
    products.

    A row that is longer than the model's context keeps the score positions that fit;
    those beyond get the lowest score, -1.0, and the row is counted.

    Args:
        model: anything causal whose output has `logits` `[B, L, columns]`.
        columns: of the good and of the bad verdict.
        pad_token_id: fills the columns behind shorter rows; never attended to.
        micro_batch_tokens: padded tokens per forward pass, >= 1; a longer row runs
            alone. None: 1,024 on the CPU, else 16,384.
        adjustment: of the scores that the model gives; None leaves them.

    Attributes:
        num_overlong: rows over the context so far.
    """

    def __init__(
        self,
        model: Any,
        columns: tuple[int, int],
        *,
        pad_token_id: int,
        micro_batch_tokens: int | None = None,
        adjustment: ScoreAdjustment | None = None,
    ):
        self.model = model.eval().requires_grad_(False)
        self.columns = columns
        self.pad_token_id = pad_token_id
        self.micro_batch_tokens = micro_batch_size(model, micro_batch_tokens)
        self.adjustment = adjustment or ScoreAdjustment()
        self.num_overlong = 0
        self._context = context_of(model.config)
        accepted = inspect.signature(model.forward).parameters
        self._takes_logits_to_keep = "logits_to_keep" in accepted

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[PRMRow]) -> list[np.ndarray]:
        """Returns one `[S]` float32 array in [-1, 1] per row, in their order."""
        scores = [
            np.full(len(row.score_positions), LOWEST_SCORE, dtype=np.float32)
            for row in rows
        ]
        fitting = [self._cut(row) for row in rows]
        # Nothing to score is nothing to run.
        lengths = [len(r.input_ids) if len(r.score_positions) else 0 for r in fitting]
        for batch in token_budget_batches(lengths, self.micro_batch_tokens):
            results = self._forward([fitting[i] for i in batch])
            for i, result in zip(batch, results, strict=True):
                scores[i][: len(result)] = self.adjustment.apply(result)
        return scores

    def _cut(self, row: PRMRow) -> PRMRow:
        """Leaves out the scores whose place lies beyond the model's context."""
        if self._context is None or len(row.input_ids) <= self._context:
            return row
        self.num_overlong += 1
        kept = row.score_positions[row.score_positions < self._context]
        end = int(kept[-1]) + 1 if len(kept) else 0
        return PRMRow(row.input_ids[:end], kept)

    def _forward(self, rows: list[PRMRow]) -> list[np.ndarray]:
        pad = partial(pad_sequence, batch_first=True)
        ids = [torch.from_numpy(row.input_ids) for row in rows]
        mask = pad([torch.ones_like(one) for one in ids])
        device = next(self.model.parameters()).device
        counts = [len(row.score_positions) for row in rows]
        columns = torch.from_numpy(np.concatenate([r.score_positions for r in rows]))
        arguments: dict[str, Any] = {}
        if self._takes_logits_to_keep:
            # The logits of a whole vocabulary at every column would not fit.
            kept, columns = columns.unique(return_inverse=True)
            arguments["logits_to_keep"] = kept.to(device)
        output = self.model(
            input_ids=pad(ids, padding_value=self.pad_token_id).to(device),
            attention_mask=mask.to(device),
            use_cache=False,
            **arguments,
        )
        where = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
        picked: Tensor = output.logits[where.to(device), columns.to(device)]
        good, bad = picked[:, list(self.columns)].float().unbind(1)
        # p1 - p0 of a softmax over two classes is tanh of half the difference.
        scores = torch.tanh((good - bad) / 2).cpu().numpy()
        return np.split(scores, np.cumsum(counts)[:-1])


class MinimumScorer:
    """Scores each step by the lowest of several scorers' scores.

    A policy that is paid by one PRM finds steps which that PRM likes by mistake. Others
    rarely make the same mistake; so the most doubtful one is believed.

    Args:
        scorers: one or more.
    """

    def __init__(self, scorers: Sequence[StepScorer]):
        self.scorers = tuple(scorers)

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """See `StepScorer.score`."""
        by_scorer = [scorer.score(requests) for scorer in self.scorers]
        return [np.minimum.reduce(rows) for rows in zip(*by_scorer, strict=True)]

    @property
    def counts(self) -> Counter[str]:
        """Of each count the highest: what is too long for all is one response."""
        return reduce(or_, map(counts_of, self.scorers))


def micro_batch_size(model: Any, asked: int | None) -> int:
    """Returns the padded tokens per forward pass; None: by the model's device."""
    if asked is None:
        on_cpu = next(model.parameters()).device.type == "cpu"
        asked = _CPU_MICRO_BATCH if on_cpu else _MICRO_BATCH
    check_setting("micro_batch_tokens", asked, Count)
    return asked


def context_of(config: Any) -> int | None:
    """Returns the number of positions in a Hugging Face config, if it says."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
