"""The lowest score of several step scorers. S steps."""

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import or_

import numpy as np

from pure_rllib.rewards.base import ScoringRequest, StepScorer, counts_of


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

    @property
    def num_overlong(self) -> int:
        """Responses over the context of the scorer that had most of them."""
        return self.counts["overlong"]
