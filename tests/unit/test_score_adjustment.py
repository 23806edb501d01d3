"""Label smoothing and the clamp of scores."""

import numpy as np
import pytest

from pure_rllib.rewards.prm.scoring import ScoreAdjustment

SCORES = np.array([-1.0, -0.5, 0.0, 0.8, 1.0], np.float32)


@pytest.mark.parametrize(
    ("adjustment", "expected"),
    [
        (ScoreAdjustment(), SCORES),
        # p = 0.9 becomes 0.8 * 0.9 + 0.1 = 0.82, that is 0.8 becomes 0.64.
        (ScoreAdjustment(0.2), [-0.8, -0.4, 0.0, 0.64, 0.8]),
        (ScoreAdjustment(score_clamp=(-1.0, 0.0)), [-1.0, -0.5, 0.0, 0.0, 0.0]),
        # Smoothed first.
        (ScoreAdjustment(0.5, (-0.3, 0.45)), [-0.3, -0.25, 0.0, 0.4, 0.45]),
    ],
)
def test_adjusted_scores(adjustment, expected):
    adjusted = adjustment.apply(SCORES)
    np.testing.assert_allclose(adjusted, expected, atol=1e-7)
    assert adjusted.dtype == np.float32


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"label_smoothing": 1.0}, r"`label_smoothing` \(1.0\) must lie in \[0, 1\)"),
        ({"label_smoothing": float("nan")}, "`label_smoothing`"),
        ({"score_clamp": (0.5, 0.5)}, r"`score_clamp` \(\(0.5, 0.5\)\) must be two"),
        ({"score_clamp": (-2.0, 1.0)}, "`score_clamp`"),
        ({"score_clamp": (-1.0,)}, "`score_clamp`"),
    ],
)
def test_wrong_settings(kwargs, match):
    with pytest.raises(ValueError, match=match):
        ScoreAdjustment(**kwargs)
