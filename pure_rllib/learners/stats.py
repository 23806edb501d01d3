"""Sums that learners report and the algorithm turns into metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from pure_rllib.models import columns

_SUM, _COUNT, _MAX, _LAST, _SHARE = "sum", "count", "max", "last", "share"
_NUM_STEPS = "num_steps"
STATS = "stats"
"""Key of the connectors' `shared_data`: the update's `LearnerStats`."""
LOGGED = "logged"
"""Key of a report: what was logged with the learner's `metrics`, by RLlib's means."""


class LearnerStats:
    """Collects sums, counts and maxima by metric name, in one learner's update."""

    def __init__(self) -> None:
        kinds = (_SUM, _COUNT, _MAX, _LAST, _SHARE)
        self._values: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
        self._in_step: dict[str, Tensor] = {}

    def add(self, name: str, total: float, count: float) -> None:
        """Adds `total` over `count` items to a mean."""
        self._values[_SUM][name] = self._values[_SUM].get(name, 0.0) + float(total)
        self._values[_COUNT][name] = self._values[_COUNT].get(name, 0.0) + float(count)

    def mean(self, name: str, value: float) -> None:
        """Adds one value to a mean."""
        self.add(name, value, 1.0)

    def maximum(self, name: str, value: float) -> None:
        """Keeps the largest value."""
        known = self._values[_MAX].get(name, float("-inf"))
        self._values[_MAX][name] = max(known, float(value))

    def set(self, name: str, value: float) -> None:
        """Keeps the last value."""
        self._values[_LAST][name] = float(value)

    def begin_step(self) -> None:
        """Begins an optimiser step, for `add_share`."""
        self._end_step()
        steps = self._values[_MAX].get(_NUM_STEPS, 0.0)
        self._values[_MAX][_NUM_STEPS] = steps + 1.0

    def add_share(self, name: str, share: Tensor) -> None:
        """Adds to what a step's micro-batches and learners make up together."""
        known = self._in_step.get(name, torch.zeros(()))
        self._in_step[name] = known + share.detach().cpu()

    def _end_step(self) -> None:
        shares = self._values[_SHARE]
        for name, value in self._in_step.items():
            shares[name] = shares.get(name, 0.0) + value.item()
        self._in_step = {}

    def add_tokens(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Adds `[B, T]` values to a mean over the tokens of the mask."""
        self.add(name, float(values.detach()[mask].sum()), float(mask.sum()))

    def add_passed(self, micro_batch: Mapping[str, Any]) -> None:
        """Adds how many tokens of a pass are padding, or pass for others too."""
        num_prompt = float(micro_batch[columns.PROMPT_LENS].sum())
        num_real = float(columns.row_lens(micro_batch).sum())
        row = micro_batch.get(columns.FLAT_ROW)
        padded = micro_batch[columns.INPUT_IDS]
        num_passed = padded.numel() if row is None else row.token_ids.numel()
        self.add("tokens/padding_share", max(0.0, num_passed - num_real), num_passed)
        self.add(
            "tokens/prompt_saved_share", max(0.0, num_real - num_passed), num_prompt
        )

    def add_loss(self, sums: Mapping[str, Any]) -> None:
        """Adds what `clipped_policy_loss` reports of one micro-batch."""
        count = float(sums["num_tokens"])
        self.add("clip/low_share", float(sums["clip_low_count"]), count)
        self.add("clip/high_share", float(sums["clip_high_count"]), count)
        self.add("ratio/mean", float(sums["ratio_sum"]), count)
        self.add("kl/old_policy", float(sums["kl_k3_sum"]), count)
        self.maximum("ratio/max", float(sums["ratio_max"]))

    def add_mismatch(self, sums: Mapping[str, Any]) -> None:
        """Adds what `mismatch_sums` says of the distance to the generator."""
        count = float(sums["num_tokens"])
        self.add("mismatch/ratio_mean", float(sums["ratio_sum"]), count)
        self.add("mismatch/ratio_square", float(sums["ratio_square_sum"]), count)
        self.add("mismatch/kl", float(sums["kl_sum"]), count)
        self.maximum("mismatch/ratio_max", float(sums["ratio_max"]))

    def add_correction(self, sums: Mapping[str, Any]) -> None:
        """Adds what `correct_loss` did about it."""
        tokens, responses = float(sums["num_tokens"]), float(sums["num_responses"])
        self.add("correction/weight_mean", float(sums["weight_sum"]), tokens)
        self.add("correction/truncated_share", float(sums["num_truncated"]), tokens)
        self.add("correction/masked_share", float(sums["num_masked"]), responses)

    def add_gap(self, logp: Tensor, old_logp: Tensor, mask: Tensor) -> None:
        """Adds how far the ratio is from 1 before the first update.

        Unless a generator lags behind, both describe the same policy at that moment, so
        that every difference is one between two computations of the same number.
        """
        ratio_deviation = torch.expm1((logp.detach() - old_logp)[mask]).abs()
        self.maximum(
            "ratio/first_minibatch_max_deviation",
            float(ratio_deviation.max()) if ratio_deviation.numel() else 0.0,
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns the sums, for `merge`."""
        self._end_step()
        return self._values


def batch_stats(batch: Mapping[str, Any], stats: LearnerStats) -> None:
    """Adds what is known of a train batch before its first update."""
    mask = batch[Columns.LOSS_MASK]
    advantages = batch[Columns.ADVANTAGES]
    if columns.RETURNS in batch:
        stats.add_tokens("return/mean", batch[columns.RETURNS], mask)
    stats.add_tokens("advantage/mean", advantages, mask)
    stats.add_tokens("advantage/square", advantages.square(), mask)
    stats.add("num_tokens", float(batch[columns.RESPONSE_LENS].sum()), 1.0)


def merge(reports: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Combines the reports of all learners into metrics.

    `num_tokens`, response tokens, is a sum over the learners; every other mean is
    weighted by its counts. Shares of a step are added over the learners, and their mean
    is taken over the steps.
    """
    merged = LearnerStats()
    for report in reports:
        for name, total in report[_SUM].items():
            merged.add(name, total, report[_COUNT][name])
        for name, value in report[_MAX].items():
            merged.maximum(name, value)
        for name, value in report[_LAST].items():
            merged.set(name, value)
        for name, share in report[_SHARE].items():
            merged.add_share(name, torch.tensor(share, dtype=torch.float64))
    values = merged.as_dict()
    num_steps = values[_MAX].pop(_NUM_STEPS, 0.0)
    metrics = {
        name: total / values[_COUNT][name] if values[_COUNT][name] else float("nan")
        for name, total in values[_SUM].items()
        if name != "num_tokens"
    }
    mean, square = metrics["advantage/mean"], metrics.pop("advantage/square")
    metrics["advantage/std"] = max(0.0, square - mean**2) ** 0.5
    if "mismatch/ratio_square" in metrics:
        ratio, square = metrics["mismatch/ratio_mean"], metrics["mismatch/ratio_square"]
        metrics["mismatch/effective_sample_size"] = ratio**2 / square
        del metrics["mismatch/ratio_square"]
    metrics["num_tokens"] = values[_SUM]["num_tokens"]
    metrics |= {name: total / num_steps for name, total in values[_SHARE].items()}
    return {**metrics, **values[_MAX], **values[_LAST]}
