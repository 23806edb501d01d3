"""Losses for labels that are right or wrong, and may be noisy.

N labelled steps, 2 classes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

IGNORED = -100
"""The label of columns where no step is judged."""

LossName = Literal["cross_entropy", "taylor"]


def taylor_cross_entropies(logits: Tensor, order: int) -> Tensor:
    """Computes the Taylor cross-entropy of each class.

    The first terms of -log p around p = 1: the sum over k = 1..order of (1 - p)^k / k
    (Feng et al., "Can Cross Entropy Loss Be Robust to Label Noise?", IJCAI
    2020). Order 1 is half the mean absolute error, which noise moves least and which
    learns slowest; a high order is the cross-entropy. It is bounded, so a label that
    is flatly wrong cannot pull without end.

    Args:
        logits: `[N, 2]`.
        order: terms, >= 1.

    Returns:
        `[N, 2]`, >= 0.
    """
    wrong = 1.0 - logits.float().softmax(-1)
    powers = torch.stack([wrong**k / k for k in range(1, order + 1)])
    return powers.sum(0)


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss of labelled steps, as `Trainer(compute_loss_func=...)` takes it.

    Attributes:
        name: `cross_entropy` or `taylor`.
        taylor_order: terms of the Taylor cross-entropy, >= 1.
        label_smoothing: weight that the label shares with the uniform distribution, in
            [0, 1): the target is 1 - s / 2 on the label and s / 2 on the other class
            (Szegedy et al., arXiv 1512.00567, section 7; on label noise Lukasik et al.,
            arXiv 2003.02819).
    """

    name: LossName = "cross_entropy"
    taylor_order: int = 2
    label_smoothing: float = 0.0

    def per_step(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Computes the loss of each step.

        Args:
            logits: `[N, 2]`.
            labels: `[N]` class numbers.

        Returns:
            `[N]` float32.
        """
        losses = (
            taylor_cross_entropies(logits, self.taylor_order)
            if self.name == "taylor"
            else -log_softmax(logits.float(), dim=-1)
        )
        labelled = losses.gather(1, labels[:, None])[:, 0]
        smooth = self.label_smoothing
        return (1.0 - smooth) * labelled + smooth * losses.mean(1)

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None
    ) -> Tensor:
        """Averages over the labelled steps of the whole batch, on all devices.

        Args:
            outputs: with `logits` `[B, L, 2]`.
            labels: `[B, L]` class numbers or `IGNORED`.
            num_items_in_batch: labelled steps of all micro-batches of the update; None:
                those of this one.
        """
        places = labels != IGNORED
        losses = self.per_step(outputs["logits"][places], labels[places])
        if num_items_in_batch is None:
            num_items_in_batch = places.sum().clamp(min=1)
        return losses.sum() / num_items_in_batch
