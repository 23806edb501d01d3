"""What one env runner gives back of one call."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pure_rllib.envs.vector import ResponseJudge
from pure_rllib.rewards.base import counts_of
from pure_rllib.rollouts.group import Group

JUDGE_COUNTS = (
    "prm/overlong",
    "prm/retries",
    "prm/verdicts",
    "prm/unclear_verdicts",
    "prm/ties",
    "reward_model/overlong",
    "reward_model/retries",
    "verifier/opinion_accepted",
    "verifier/opinion_rejected",
    "verifier/opinion_undecided",
    "verifier/opinion_guarded",
)
"""What step scorers and verifiers count beside scores and verdicts; 0 if they don't."""


ENV_ERRORS = "env/errors"
"""Responses that are lost because their text environment failed."""


@dataclass(slots=True)
class RunnerSample:
    """What one env runner made in one call.

    Attributes:
        groups: one per prompt.
        seconds: wall-clock time by phase: `sync` (taking over weights), `sample`,
            `score`, `verify`, and `total`.
        counts: what step scorer and verifier counted, see `JUDGE_COUNTS`; with turns
            `ENV_ERRORS`.
        logp_gap: what `SyncCheck` found when it took over the weights.
        metrics: what RLlib's env runners report, and what callbacks have logged;
            reduced, for the algorithm's `MetricsLogger.aggregate`.
    """

    groups: list[Group] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    logp_gap: float = math.nan
    metrics: dict[str, Any] = field(default_factory=dict)


def judge_counts(judge: ResponseJudge) -> Counter[str]:
    """Returns what a judge's parts have counted since they were made, by metric."""
    counts = Counter(
        {f"prm/{name}": n for name, n in counts_of(judge.step_scorer).items()}
    )
    for name, n in counts_of(judge.reward_model).items():
        counts[f"reward_model/{name}"] += n
    for name, n in counts_of(judge.verifier).items():
        is_guarded = name.startswith("guard_")
        counts[f"verifier/opinion_{'guarded' if is_guarded else name}"] += n
    return Counter({name: counts[name] for name in JUDGE_COUNTS})
