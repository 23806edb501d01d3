"""Losses of labelled steps, against their formulas written out."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from pure_rllib.prm_training.losses import (
    IGNORED,
    LossName,
    StepLoss,
    taylor_cross_entropies,
)

# p(class 1) = 0.8, then 0.5.
LOGITS = torch.tensor([[0.0, math.log(4.0)], [0.0, 0.0]])


def test_taylor_terms_by_hand():
    # 1 - p of class 1: 0.2 -> 0.2 + 0.2^2 / 2; of class 0: 0.8 -> 0.8 + 0.8^2 / 2.
    expected = torch.tensor([[0.8 + 0.32, 0.2 + 0.02], [0.625, 0.625]])
    torch.testing.assert_close(taylor_cross_entropies(LOGITS, 2), expected)


def test_taylor_goes_from_absolute_error_to_cross_entropy():
    first = taylor_cross_entropies(LOGITS, 1)
    torch.testing.assert_close(first, 1 - LOGITS.softmax(-1))
    many = taylor_cross_entropies(LOGITS, 400)
    torch.testing.assert_close(many, -LOGITS.log_softmax(-1), atol=1e-5, rtol=1e-5)


def test_a_wrong_label_pulls_less_with_taylor():
    """At p(label) -> 0 its gradient vanishes; that of cross-entropy is 1."""
    gradients = {}
    for name in ("cross_entropy", "taylor"):
        logits = torch.tensor([[8.0, 0.0]], requires_grad=True)
        StepLoss(name).per_step(logits, torch.tensor([1])).sum().backward()
        assert logits.grad is not None
        gradients[name] = float(logits.grad[0, 0])
    assert gradients["cross_entropy"] == pytest.approx(1.0, abs=1e-3)
    assert 0 < gradients["taylor"] < 1e-2


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_smoothing_is_that_of_torch(smoothing: float):
    labels = torch.tensor([1, 0])
    ours = StepLoss(label_smoothing=smoothing).per_step(LOGITS, labels)
    expected = cross_entropy(
        LOGITS, labels, label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", ["cross_entropy", "taylor"])
def test_micro_batches_add_up_to_the_batch(name: LossName):
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 2)
    labels = torch.full((4, 6), IGNORED)
    labels[0, 2], labels[1, 1], labels[1, 5], labels[3, 0] = 1, 0, 1, 0
    loss = StepLoss(name, label_smoothing=0.1)
    whole = loss({"logits": logits}, labels)
    parts = [
        loss({"logits": logits[i : i + 2]}, labels[i : i + 2], num_items_in_batch=4)
        for i in (0, 2)
    ]
    torch.testing.assert_close(sum(parts), whole)
    # Columns without a label change nothing.
    logits[labels == IGNORED] = 100.0
    torch.testing.assert_close(loss({"logits": logits}, labels), whole)
