"""From what an iteration did to the metrics that are logged."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pure_rllib.evaluation.estimators import pass_at_k
from pure_rllib.reporting.intervals import cluster_interval, wilson_interval
from pure_rllib.reporting.metrics import METRICS
from pure_rllib.reporting.records import ResponseNumbers
from pure_rllib.reporting.response_metrics import response_metrics, turn_metrics
from pure_rllib.rollouts.env_summary import EnvSummary
from pure_rllib.rollouts.group import Group, has_signal
from pure_rllib.rollouts.runner_sample import ENV_ERRORS, JUDGE_COUNTS
from pure_rllib.rollouts.sampler import SampledBatch

_EVALUATED = {
    "response_tokens": "response/tokens",
    "no_answer_share": "response/no_answer_share",
    "truncated_share": "response/truncated_share",
}


@dataclass(slots=True)
class RunCounts:
    """What a run has done so far; part of its checkpoints.

    Attributes:
        cursor: prompts whose groups have been sampled, without those under way; also
            the next group's id.
        weights_version: of the policy that env runners sample from.
        num_tokens_sampled: response tokens.
        num_responses: responses.
        num_dropped: groups left out because they taught nothing.
    """

    cursor: int = 0
    weights_version: int = 0
    num_tokens_sampled: int = 0
    num_responses: int = 0
    num_dropped: int = 0


def iteration_metrics(
    batch: SampledBatch,
    *,
    num_kept: int,
    learned: Mapping[str, float],
    seconds: Mapping[str, float],
    counts: RunCounts,
    env: EnvSummary,
    config: Any,
) -> dict[str, float]:
    """Gathers the metrics of one iteration and adds to the counts.

    Args:
        batch: what was sampled.
        num_kept: groups that were learned from.
        learned: the learners' metrics.
        seconds: wall-clock time of the algorithm's phases: `wait` (for samples),
            `learn`, `publish` and `iteration`.
        counts: of the run; changed.
        env: facts about the environment.
        config: the `LLMConfig`.

    Returns:
        Flat metrics, each explained in `reporting.metrics`; without those of what the
        environment does not have.
    """
    records: list[Any] = [r for group in batch.groups for r in group.records]
    sampled = sum(record.num_tokens for record in records)
    counts.num_tokens_sampled += sampled
    counts.num_responses += len(records)
    runner = batch.seconds
    phases = {
        "sample": runner["sample"],
        "score": runner["score"],
        "verify": runner["verify"],
        "learn": seconds["learn"],
        "sync": runner["sync"] + seconds["publish"],
    }
    sampling = sum(runner[phase] for phase in ("sample", "score", "verify", "sync"))
    overlapped = max(0.0, sampling - seconds["wait"])
    lags = [float(record.metadata["weights_lag"]) for record in records]
    learned = dict(learned)
    learned_tokens = learned.pop("num_tokens") * config.num_epochs
    metrics = {
        **{name: math.nan for name in METRICS if not name.startswith("evaluation/")},
        **response_metrics(records),
        **turn_metrics(records),
        **learned,
        "groups/no_signal_share": 1.0
        - sum(has_signal(g.records, config) for g in batch.groups) / len(batch.groups),
        "groups/dropped": float(len(batch.groups) - num_kept),
        "groups/resampled": float(batch.num_resampled),
        "prompt/dropped": float(env.num_dropped_prompts),
        **{name: float(batch.counts[name]) for name in (*JUDGE_COUNTS, ENV_ERRORS)},
        "throughput/scoring_share": phases["score"] / seconds["iteration"],
        "generator_learner_logp_gap": batch.logp_gap,
        "weights/version": float(batch.weights_version),
        "weights/lag_mean": sum(lags) / len(lags),
        "weights/lag_max": max(lags),
        "epoch": counts.cursor / env.num_problems,
        "problems_seen": float(counts.cursor),
        "throughput/sampled_tokens_per_s": _rate(sampled, phases["sample"]),
        "throughput/scored_tokens_per_s": _rate(sampled, phases["score"]),
        "throughput/learned_tokens_per_s": _rate(learned_tokens, phases["learn"]),
        **{f"seconds/{phase}": value for phase, value in phases.items()},
        "seconds/iteration": seconds["iteration"],
        "seconds/wait": seconds["wait"],
        "seconds/other": seconds["iteration"] - (sum(phases.values()) - overlapped),
        "sampling/overlap_share": _rate(overlapped, sampling),
        **{
            f"env_runners/{name}": value
            for name, value in episode_metrics(
                records,
                [
                    0.0 if r.step_rewards is None else float(sum(r.step_rewards))
                    for r in records
                ],
            ).items()
        },
        "env_runners/num_env_steps_sampled_lifetime": float(counts.num_tokens_sampled),
        "num_env_steps_sampled_lifetime": float(counts.num_tokens_sampled),
    }
    return {k: v for k, v in metrics.items() if k not in env.absent_metrics}


def single_step_warning(
    metrics: Mapping[str, float], env: EnvSummary, config: Any
) -> str | None:
    """Says why every response of an iteration is one step, where steps are rewarded.

    Args:
        metrics: of `iteration_metrics`.
        env: facts about the environment.
        config: the `LLMConfig`.

    Returns:
        None if there are steps, or no process rewards.
    """
    if not (env.has_step_scorer and config.process_reward_coeff):
        return None
    if metrics["response/one_step_share"] < 1:
        return None
    if metrics["response/blank_share"] == 1:
        reason = "the policy writes nothing visible. Start from another policy"
    elif metrics["response/separator_rate"] > 0:
        reason = (
            "its blank lines stand before or behind all of its text. Ask for blank "
            "lines between steps in `prompt_template`"
        )
    elif metrics["response/truncated_share"] == 1:
        reason = (
            f"all are cut at `max_response_tokens` ({env.max_response_tokens}) before "
            "the first blank line. Raise it"
        )
    else:
        reason = (
            "the policy writes no blank lines. Ask for them in `prompt_template`, or "
            "start from a policy that writes steps"
        )
    return (
        "every response is a single step, so that process rewards are rewards of whole "
        f"responses: {reason}. See docs/environments.md, Where a step ends."
    )


def episode_metrics(
    records: Sequence[ResponseNumbers], returns: Sequence[float]
) -> dict[str, float]:
    """Computes what RLlib reports under `env_runners`, over these responses alone.

    RLlib takes means, minima and maxima over the last
    `metrics_num_episodes_for_smoothing` episodes, of whatever iteration.

    Args:
        records: of the responses; at least one.
        returns: what each response's tokens were rewarded with.
    """
    lens = [float(record.num_tokens) for record in records]
    of_all = {"episode_return": returns, "episode_len": lens}
    return {
        **{f"{name}_mean": sum(all_) / len(all_) for name, all_ in of_all.items()},
        **{f"{name}_min": min(all_) for name, all_ in of_all.items()},
        **{f"{name}_max": max(all_) for name, all_ in of_all.items()},
        "num_episodes": float(len(records)),
        "num_env_steps_sampled": sum(lens),
    }


_LEARNED = {
    "policy_loss": "loss/policy",
    "entropy": "entropy",
    "mean_kl_loss": "kl/old_policy",
    "gradients_default_optimizer_global_norm": "gradient_norm",
}


def learner_results(metrics: Mapping[str, float]) -> dict[str, float]:
    """Picks what RLlib reports under `learners/default_policy`, by RLlib's names.

    Args:
        metrics: of `iteration_metrics`: over all learners and updates.
    """
    return {name: metrics[ours] for name, ours in _LEARNED.items() if ours in metrics}


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else math.nan


def evaluation_metrics(
    greedy: Sequence[Group],
    sampled: Sequence[Group],
    *,
    num_samples: int,
    absent: Collection[str] = (),
) -> dict[str, float]:
    """Computes accuracies, with 95% intervals, and pass@n.

    Args:
        greedy: groups of one greedy response per problem.
        sampled: groups of sampled responses, n of each problem one after the other; may
            be empty.
        num_samples: n.
        absent: metrics that the run does not have.

    Returns:
        Metrics of the `evaluation/` group, without that prefix; NaN where there is
        nothing to measure. The texts' metrics are those of the sampled responses, or
        of the greedy ones where there are none.
    """
    known = [bool(r.correct) for r in _records(greedy) if r.correct is not None]
    metrics = _interval("greedy_accuracy", wilson_interval(sum(known), len(known)))
    records = _records(sampled)
    per_problem = [
        [bool(r.correct) for r in batch if r.correct is not None]
        for start in range(0, len(records), num_samples or 1)
        for batch in [records[start : start + num_samples]]
    ]
    verified = [correct for correct in per_problem if correct]
    metrics |= _interval("sampled_accuracy", cluster_interval(verified))
    passed = [pass_at_k(len(c), sum(c), num_samples) for c in verified]
    metrics["pass_at_n"] = sum(passed) / len(passed) if passed else math.nan
    for kind, of_kind in (("greedy", _records(greedy)), ("sampled", records)):
        metrics[f"{kind}_model_reward"] = response_metrics(of_kind)["reward/model"]
    of_texts = response_metrics(records or _records(greedy))
    metrics |= {name: of_texts[of] for name, of in _EVALUATED.items()}
    return {k: v for k, v in metrics.items() if f"evaluation/{k}" not in absent}


def evaluated_episodes(groups: Sequence[Group]) -> dict[str, float]:
    """Computes `episode_metrics` of evaluation, without process rewards.

    A response's return is its reward as a whole there.
    """
    records = _records(groups)
    returns = [float(record.outcome_reward or 0.0) for record in records]
    return episode_metrics(records, returns)


def _records(groups: Sequence[Group]) -> list[ResponseNumbers]:
    return [record for group in groups for record in group.records]


def _interval(name: str, interval: tuple[float, float, float]) -> dict[str, float]:
    mean, low, high = interval
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
