"""What step scorers and verifiers count beside their scores and verdicts."""

from collections import Counter

from pure_rllib.envs.vector import ResponseJudge
from pure_rllib.rewards.base import counts_of

JUDGE_COUNTS = (
    "prm/overlong",
    "prm/retries",
    "prm/verdicts",
    "prm/unclear_verdicts",
    "prm/ties",
    "verifier/opinion_accepted",
    "verifier/opinion_rejected",
    "verifier/opinion_undecided",
    "verifier/opinion_guarded",
)
"""The metrics that are such counts; 0 for a judge that does not count them."""


def judge_counts(judge: ResponseJudge) -> Counter[str]:
    """Returns what a judge's parts have counted since they were made, by metric."""
    counts = Counter(
        {f"prm/{name}": n for name, n in counts_of(judge.step_scorer).items()}
    )
    for name, n in counts_of(judge.verifier).items():
        is_guarded = name.startswith("guard_")
        counts[f"verifier/opinion_{'guarded' if is_guarded else name}"] += n
    return Counter({name: counts[name] for name in JUDGE_COUNTS})
