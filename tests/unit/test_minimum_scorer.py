"""Several step scorers as one."""

import numpy as np

from pure_rllib.rewards.base import FunctionScorer, ScoringRequest
from pure_rllib.rewards.prm.scoring import MinimumScorer


def request(*steps: str) -> ScoringRequest:
    spans = np.array([[k, k + 1] for k in range(len(steps))])
    ids = np.arange(len(steps))
    return ScoringRequest("p", None, ids, ids, spans, steps)


class Overlong(FunctionScorer):
    def __init__(self, num_overlong: int):
        super().__init__(lambda prompt, steps: [1.0] * len(steps))
        self.num_overlong = num_overlong


def test_each_step_gets_its_lowest_score():
    short = FunctionScorer(lambda p, steps: [1.0 - 0.5 * len(s) for s in steps])
    marked = FunctionScorer(
        lambda p, steps: [-0.75 if "!" in s else 0.25 for s in steps]
    )
    scores = MinimumScorer([short, marked]).score(
        [request("a", "!", "abc"), request("ab!")]
    )
    assert [row.tolist() for row in scores] == [[0.25, -0.75, -0.5], [-0.75]]
    assert all(row.dtype == np.float32 for row in scores)


def test_one_scorer_is_itself_and_no_request_is_no_score():
    only = MinimumScorer([FunctionScorer(lambda p, steps: [0.5] * len(steps))])
    assert only.score([request("a", "b")])[0].tolist() == [0.5, 0.5]
    assert only.score([]) == []
    assert only.counts["overlong"] == 0


def test_a_response_that_is_too_long_for_all_counts_once():
    assert MinimumScorer([Overlong(2), Overlong(3)]).counts["overlong"] == 3
