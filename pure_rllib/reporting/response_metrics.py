"""The metrics that follow from the responses alone. T response tokens, S steps."""

from collections.abc import Callable, Sequence

import numpy as np

from pure_rllib.hacking.flags import SHARES
from pure_rllib.reporting.records import ResponseNumbers, group_records
from pure_rllib.rewards.base import OUTCOMES

NAN = float("nan")
PSEUDO_POSITIVE_MIN_REWARD = -0.5
"""A correct response whose worst step is rated below this is a pseudo-positive."""


def response_metrics(records: Sequence[ResponseNumbers]) -> dict[str, float]:
    """Computes all metrics of responses; `reporting.metrics` explains each.

    Args:
        records: the iteration's responses, whole groups, in any order.

    Returns:
        One float per metric, the same keys for every input but for a verdict's parts;
        NaN where there is nothing to measure (all means are NaN for no records).
    """
    return {
        **_reward_metrics(records),
        **_correctness_metrics(records),
        **_group_metrics(group_records(records)),
        **_text_metrics(records),
        **_hack_metrics(records),
    }


def turn_metrics(records: Sequence[ResponseNumbers]) -> dict[str, float]:
    """Computes what is only measured where responses have turns."""
    return {
        "turns/mean": _mean([r.num_turns for r in records]),
        "turns/cut_share": _mean([r.has_cut_turn for r in records]),
        "turns/cut_observations": _mean([r.num_cut_observations for r in records]),
        "turns/observation_tokens": _mean([r.num_observation_tokens for r in records]),
    }


def _reward_metrics(records: Sequence[ResponseNumbers]) -> dict[str, float]:
    scored = [r for r in records if r.min_reward is not None]
    steps = [np.asarray(r.step_rewards, dtype=np.float64) for r in scored]
    both = [r for r in scored if r.correct is not None]
    return {
        "reward/process_mean": float(np.concatenate(steps).mean()) if steps else NAN,
        "reward/process_min": _mean([r.min_reward for r in records]),
        "reward/verifiable": _mean([r.verifiable_reward for r in records]),
        "reward/model": _mean([r.model_reward for r in records]),
        "reward/total": _mean([r.total_reward for r in records]),
        "prm/verifier_agreement": _mean(
            [((r.min_reward or 0.0) > 0.0) == r.correct for r in both]
        ),
    }


def _correctness_metrics(records: Sequence[ResponseNumbers]) -> dict[str, float]:
    outcomes = [r.outcome for r in records if r.outcome is not None]
    correct = [r.num_tokens for r in records if r.correct is True]
    incorrect = [r.num_tokens for r in records if r.correct is False]
    return {
        "accuracy": _mean([r.correct for r in records]),
        "response/tokens_correct": _mean(correct),
        "response/tokens_incorrect": _mean(incorrect),
        "response/no_answer_share": _mean([o == "no_answer" for o in outcomes]),
        **{f"verifier/{o}": float(outcomes.count(o)) for o in OUTCOMES},
        **{
            f"verifier/part/{name}": _mean([r.verdict_parts.get(name) for r in records])
            for name in sorted({name for r in records for name in r.verdict_parts})
        },
    }


def _group_metrics(groups: Sequence[Sequence[ResponseNumbers]]) -> dict[str, float]:
    verified = [g for g in groups if any(r.correct is not None for r in g)]
    return {
        "groups/verified": float(len(verified)),
        "pass_at_g": _mean([any(r.correct for r in g) for g in verified]),
        "prompt/tokens": _mean([g[0].num_prompt_tokens for g in groups]),
    }


def _text_metrics(records: Sequence[ResponseNumbers]) -> dict[str, float]:
    num_tokens = sum(r.num_tokens for r in records)
    num_steps = sum(len(r.step_spans) for r in records)
    step_tokens = sum(end - start for r in records for start, end in r.step_spans)
    separators = sum(r.num_separators for r in records)

    def share(test: Callable[[ResponseNumbers], bool]) -> float:
        return _mean([test(r) for r in records])

    return {
        "response/tokens": _mean([r.num_tokens for r in records]),
        "response/steps": _mean([len(r.step_spans) for r in records]),
        "response/tokens_per_step": step_tokens / num_steps if num_steps else NAN,
        "response/separator_rate": separators / num_tokens if num_tokens else NAN,
        "response/blank_share": share(lambda r: not r.has_visible),
        "response/one_step_share": share(lambda r: len(r.step_spans) == 1),
        "response/truncated_share": share(lambda r: not r.terminated),
        "response/repetition": _mean([r.repetition for r in records]),
        "response/reflection": _mean([r.reflection for r in records]),
    }


def _hack_metrics(records: Sequence[ResponseNumbers]) -> dict[str, float]:
    correct = [r for r in records if r.correct]
    return {
        **{
            metric: _mean([name in r.hacks for r in records])
            for metric, name in SHARES.items()
        },
        "hacking/pseudo_positive_share": _mean(
            [_is_pseudo_positive(r) for r in correct]
        ),
        "hacking/hacked_share": _mean(
            [
                r.min_reward > 0.0 and not r.correct
                for r in records
                if r.min_reward is not None and r.correct is not None
            ]
        ),
    }


def _is_pseudo_positive(record: ResponseNumbers) -> bool:
    """Whether a correct response is highly repetitive or has a very bad step."""
    worst = record.min_reward
    is_bad = worst is not None and worst < PSEUDO_POSITIVE_MIN_REWARD
    return is_bad or "repetition" in record.hacks


def _mean(values: Sequence[float | None]) -> float:
    """The mean over what is known (None is left out); NaN if nothing is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known, dtype=np.float64)) if known else NAN
