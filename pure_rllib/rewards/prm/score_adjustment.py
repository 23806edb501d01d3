"""What is done to a noisy reward model's scores before anyone uses them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOWEST_SCORE = -1.0
"""Score of a step that a reward model could not be shown; it is never adjusted."""


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
