"""Sums of several learners, merged into the metrics of one."""

import itertools
import math
from typing import Any

import pytest
import torch
from ray.rllib.core.columns import Columns

from pure_rllib.credit.rollout_correction import correct_loss, mismatch_sums
from pure_rllib.learners.stats import LearnerStats, batch_stats, merge
from pure_rllib.models import columns

ADVANTAGES = torch.tensor([[1.0, 3.0, 0.0], [-2.0, 0.0, 0.0], [4.0, 0.0, -1.0]])
RETURNS = torch.tensor([[2.0, 2.0, 0.0], [1.0, 0.0, 0.0], [5.0, 1.0, 1.0]])
MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])


def part(rows: slice) -> dict[str, Any]:
    mask = MASK[rows]
    return {
        Columns.ADVANTAGES: ADVANTAGES[rows],
        columns.RETURNS: RETURNS[rows],
        Columns.LOSS_MASK: mask,
        columns.PROMPT_LENS: torch.full((len(mask),), 10),
        columns.RESPONSE_LENS: mask.sum(1),
    }


def report(rows: slice) -> dict[str, Any]:
    stats = LearnerStats()
    batch_stats(part(rows), stats)
    mask = MASK[rows]
    logp, old = ADVANTAGES[rows] / 100, torch.zeros_like(ADVANTAGES[rows])
    stats.add_gap(logp, old, mask)
    stats.add_mismatch(mismatch_sums(logp, old, mask))
    stats.add_correction(
        correct_loss(logp, old, mask, mode="token_truncated", cap=1.02).sums
    )
    stats.add_tokens("entropy", RETURNS[rows], mask)
    stats.set("learning_rate", 0.5)
    stats.mean("gradient_norm", 2.0)
    return stats.as_dict()


def test_one_learner_by_hand() -> None:
    metrics = merge([report(slice(0, 3))])
    # Tokens: 1 3 | -2 | 4 0 -1. Sum 5, squares 1 + 9 + 4 + 16 + 0 + 1 = 31.
    assert metrics["advantage/mean"] == pytest.approx(5 / 6)
    assert metrics["advantage/std"] == pytest.approx(
        math.sqrt(31 / 6 - (5 / 6) ** 2), rel=1e-6
    )
    # Returns: 2 2 | 1 | 5 1 1
    assert metrics["return/mean"] == pytest.approx(12 / 6)
    # 2 + 1 + 3 response tokens, prompts left out
    assert metrics["num_tokens"] == 6.0
    assert metrics["ratio/first_minibatch_max_deviation"] == pytest.approx(
        math.exp(0.04) - 1, rel=1e-4
    )
    assert metrics["learning_rate"] == 0.5
    # Ratios exp(.01), exp(.03) | exp(-.02) | exp(.04), 1, exp(-.01)
    ratios = [math.exp(x) for x in (0.01, 0.03, -0.02, 0.04, 0.0, -0.01)]
    assert metrics["mismatch/ratio_mean"] == pytest.approx(sum(ratios) / 6)
    assert metrics["mismatch/ratio_max"] == pytest.approx(math.exp(0.04))
    assert metrics["mismatch/effective_sample_size"] == pytest.approx(
        sum(ratios) ** 2 / 6 / sum(r * r for r in ratios)
    )
    assert metrics["mismatch/kl"] == pytest.approx(
        sum(r - 1 - math.log(r) for r in ratios) / 6, rel=1e-4
    )
    # Two of six are over 1.02 and cut to it.
    assert metrics["correction/truncated_share"] == pytest.approx(2 / 6)
    assert metrics["correction/weight_mean"] == pytest.approx(
        sum(min(r, 1.02) for r in ratios) / 6
    )
    assert metrics["correction/masked_share"] == 0.0
    assert not [name for name in metrics if name.endswith("/ratio_square")]
    assert "advantage/square" not in metrics


@pytest.mark.parametrize("cuts", [[1], [2], [1, 2]])
def test_several_learners_report_what_one_with_all_rows_does(cuts: list[int]) -> None:
    bounds = [0, *cuts, 3]
    shares = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    whole = merge([report(slice(0, 3))])
    merged = merge([report(share) for share in shares])
    assert merged.keys() == whole.keys()
    for name, value in whole.items():
        assert merged[name] == pytest.approx(value, rel=1e-6), name


def test_a_mean_weighs_every_learner_by_its_tokens() -> None:
    few, many = LearnerStats(), LearnerStats()
    for stats in (few, many):
        batch_stats(part(slice(0, 3)), stats)
    few.add_loss(sums(num_tokens=1, clip_low_count=1, ratio_max=1.5))
    many.add_loss(sums(num_tokens=9, clip_low_count=0, ratio_max=1.2))
    metrics = merge([few.as_dict(), many.as_dict()])
    # 1 of 10 tokens; the mean of the learners' shares would be (1 + 0)/2.
    assert metrics["clip/low_share"] == pytest.approx(0.1)
    assert metrics["ratio/max"] == 1.5


def sums(**given: float) -> dict[str, float]:
    names = ("num_tokens", "clip_low_count", "clip_high_count", "ratio_sum")
    return {**dict.fromkeys((*names, "kl_k3_sum", "ratio_max"), 0.0), **given}


def test_a_learner_without_loss_tokens_changes_nothing() -> None:
    idle = LearnerStats()
    batch = part(slice(0, 1))
    batch[Columns.LOSS_MASK] = torch.zeros_like(batch[Columns.LOSS_MASK])
    batch_stats(batch, idle)
    mask = batch[Columns.LOSS_MASK]
    idle.add_gap(torch.ones(1, 3), torch.zeros(1, 3), mask)
    idle.add_mismatch(mismatch_sums(torch.ones(1, 3), torch.zeros(1, 3), mask))
    busy = report(slice(1, 3))
    alone, together = merge([busy]), merge([busy, idle.as_dict()])
    # Its response of 2 tokens was still read.
    assert together.pop("num_tokens") == alone.pop("num_tokens") + 2.0
    assert together == alone


def test_nothing_to_measure_is_nan() -> None:
    idle = LearnerStats()
    batch = part(slice(0, 1))
    batch[Columns.LOSS_MASK] = torch.zeros_like(batch[Columns.LOSS_MASK])
    batch_stats(batch, idle)
    assert math.isnan(merge([idle.as_dict()])["advantage/mean"])
