"""Accuracy on held-out problems, with intervals."""

from collections.abc import Sequence

from pure_rllib.reporting.intervals import cluster_interval, wilson_interval
from pure_rllib.reporting.records import ResponseNumbers
from pure_rllib.reporting.response_metrics import response_metrics
from pure_rllib.rollouts.group import Group

_EVALUATED = {
    "response_tokens": "response/tokens",
    "no_answer_share": "response/no_answer_share",
}


def evaluation_metrics(
    greedy: Sequence[Group], sampled: Sequence[Group]
) -> dict[str, float]:
    """Computes accuracies and their 95% intervals.

    Args:
        greedy: groups of one greedy response per problem.
        sampled: groups of k sampled responses per problem; may be empty.

    Returns:
        Metrics of the `evaluation/` group, without that prefix; NaN where there is
        nothing to measure. The texts' metrics are those of the sampled responses, or
        of the greedy ones where there are none.
    """
    known = [bool(r.correct) for r in _records(greedy) if r.correct is not None]
    metrics = _interval("greedy_accuracy", wilson_interval(sum(known), len(known)))
    per_problem = [
        [float(bool(r.correct)) for r in group.records if r.correct is not None]
        for group in sampled
    ]
    metrics |= _interval(
        "sampled_accuracy", cluster_interval([c for c in per_problem if c])
    )
    of_texts = response_metrics(_records(sampled or greedy))
    return metrics | {name: of_texts[of] for name, of in _EVALUATED.items()}


def _records(groups: Sequence[Group]) -> list[ResponseNumbers]:
    return [record for group in groups for record in group.records]


def _interval(name: str, interval: tuple[float, float, float]) -> dict[str, float]:
    mean, low, high = interval
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
