"""RiskPO, ROVER and CLS-RL, reproduced number by number.

The golden vectors were made by running the reference code (RTkenny/RiskPO,
tinnerhrhe/ROVER, minglllli/CLS-RL). The folder is named by `PURE_GOLDEN_METHODS_DIR`.
"""

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pure_rllib.credit.baselines import group_advantages
from pure_rllib.credit.kl import kl_estimate
from pure_rllib.credit.policy_loss import (
    LossAggregation,
    LossScale,
    clipped_policy_loss,
    loss_denominator,
)
from pure_rllib.credit.risk import (
    LEVELS,
    RISK_PRESETS,
    QuantileTracker,
    RiskConfig,
    bundles_of,
    risk_advantages,
    risk_means,
)
from pure_rllib.credit.rover import rover_loss as credit_rover_loss
from pure_rllib.envs.labels import choice_text, num_choices
from pure_rllib.models.logprobs import LOGP, MEAN_LOGP, chunked_logps
from pure_rllib.rewards.labels import LabelVerifier, published_answer_in
from tests.contract.golden_files import (
    float_dtype,
    golden_folder,
    group_ids,
    numbers,
    read_golden,
    same,
)

FOLDER = golden_folder("PURE_GOLDEN_METHODS_DIR", "golden_methods")

Case = dict[str, Any]
FLOAT64, FLOAT32 = 1e-8, 2e-5
# Inside of a float64 case the reference goes through float32 here.
ROUNDED = 1e-7
AGGREGATIONS: dict[str, LossAggregation] = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "sequence_mean",
}


def load(name: str) -> list[Case]:
    return read_golden(FOLDER, name)["cases"]


def tolerance_of(case: Case) -> float:
    return FLOAT32 if case["dtype"] == "float32" else FLOAT64


# RiskPO


class Tracked:
    """What a tracker would have said of two quantiles and two averages."""

    def __init__(self, config: RiskConfig, inputs: Case):
        self.known = {
            config.lower_level: inputs["q_track_down"],
            config.upper_level: inputs["q_track_up"],
        }
        self.means = (inputs["g_rvar_avg"], inputs["g_cvar_avg"])

    def at(self, level: float) -> float:
        return float(self.known[level])

    def averages(self, _: RiskConfig) -> tuple[float, float]:
        return self.means


def risk_config(published: Case, has_tracked: bool) -> RiskConfig:
    """Our settings for those of the reference."""
    seeks = published["risk_seeking_upper_tail"]
    weight = published["upper_weight" if seeks else "w_mix"]
    return RiskConfig(
        lower_level=published["quantile_down"],
        upper_level=published["quantile_up"],
        risk_tail="upper" if seeks else "lower",
        tail_weight=weight if seeks or published["use_mixing_risk_measure"] else 0.0,
        zero_at="upper" if published["natural_baseline_adv"] else "lower",
        mean_baseline=published["use_mean_as_baseline"],
        # Without tracked ones the reference falls back on the bundle's own, silently.
        quantiles=published["use_q_track_mode"] if has_tracked else "batch",
        std_over="bundle" if published["norm_adv_by_std_in_grpo"] else None,
        bundle_credit=published["credit_assign_mode"],
    )


def riskpo_advantages(case: Case) -> None:
    i, o = case["inputs"], case["outputs"]
    rewards = numbers(i["token_level_rewards"], float_dtype(case)).sum(1)
    config = risk_config(i["config"], i["q_track_down"] is not None)
    tracked: Any = Tracked(config, i)
    bundles = bundles_of(group_ids(i["index"]), group_ids(i["bundle_uid"]))
    advantages = risk_advantages(rewards, bundles, config, tracker=tracked)
    for name in ("advantages", "returns"):
        actual = advantages[:, None] * numbers(i["response_mask"])
        same(actual, o[name], tolerance_of(case))
    for name, bundle in zip(sorted(set(i["bundle_uid"])), bundles, strict=True):
        same(bundle.sums(rewards), o["bundle_paper_scores"][name], tolerance_of(case))


PRESET_CASES = {
    "math_batch": "published_math",
    "dapo_batch": "published_dapo",
    "risky_batch": "risk_seeking",
}


@pytest.mark.parametrize("case_id", PRESET_CASES)
def test_presets_are_the_settings_of_the_published_scripts(case_id: str) -> None:
    (case,) = (c for c in load("riskpo_advantages") if c["id"] == case_id)
    published = risk_config(case["inputs"]["config"], has_tracked=False)
    assert published == RISK_PRESETS[PRESET_CASES[case_id]]


def riskpo_quantile_tracking(case: Case) -> None:
    i = case["inputs"]
    published = i["config"]
    mixes = published["use_mixing_risk_measure"]
    config = RiskConfig(
        lower_level=published["quantile_down"],
        upper_level=published["quantile_up"],
        tail_weight=published["w_mix"] if mixes else 0.0,
        zero_at="upper" if published["natural_baseline_base"] else "lower",
        quantile_lr=published["lr_q"],
    )
    same(LEVELS, i["levels"], FLOAT32)
    tracker = QuantileTracker(config.quantile_lr)
    for sheets, expected in zip(
        i["bundle_paper_scores"], case["outputs"]["iterations"], strict=True
    ):
        sums = numbers([one for of_bundle in sheets.values() for one in of_bundle])
        tracker.update(sums)
        low, high = tracker.at(config.lower_level), tracker.at(config.upper_level)
        same(tracker.values, expected["q"], FLOAT32)
        same(low, expected["q_track_down"], FLOAT32)
        same(high, expected["q_track_up"], FLOAT32)
        middle, tail = tracker.averages(config)
        same(middle, expected["g_rvar_avg"], FLOAT32)
        same(tail, expected["g_cvar_avg"], FLOAT32)
        # Quantiles of whole numbers may differ in float32's last digit from the sums.
        as_published = expected["q_track_down"], expected["q_track_up"]
        middle, tail = risk_means(sums, *as_published)
        same(middle, expected["rvar"], FLOAT32)
        same(tail, expected["cvar"], FLOAT32)
        weight = published["w_mix"]
        mixed = (weight * tail + middle) / (weight + 1.0)
        same(mixed, expected["mvar"], FLOAT32)


def riskpo_policy_loss(case: Case) -> None:
    i, o = case["inputs"], case["outputs"]
    logp = numbers(i["log_probs"]).requires_grad_()
    mask = numbers(i["response_mask"]).bool()
    aggregation = AGGREGATIONS[i["loss_agg_mode"]]
    # The reference counts rows without a token as well.
    denominator = (
        float(len(mask))
        if aggregation == "sequence_mean"
        else float(loss_denominator(mask, aggregation))
    )
    loss, sums = clipped_policy_loss(
        logp,
        numbers(i["old_log_probs"]),
        numbers(i["advantages"]),
        mask,
        clip_low=i["clip_low"],
        clip_high=i["clip_high"],
        dual_clip=i["dual_clip"],
        scale=LossScale(aggregation, denominator),
    )
    loss.backward()
    same(loss.detach(), o["loss"], FLOAT64)
    same(logp.grad, o["grad_log_probs"], FLOAT64)
    clipped = sums["clip_low_count"] + sums["clip_high_count"]
    same(clipped / sums["num_tokens"], o["clipfrac"], ROUNDED)
    same(sums["kl_k1_sum"] / sums["num_tokens"], o["ppo_kl"], FLOAT64)
    # `clipfrac_lower`, tokens at the dual clip, is not counted here.


# ROVER


def rover_rewards(case: Case) -> None:
    i = case["inputs"]
    by_std = i.get("norm_adv_by_std_in_grpo", False)
    rewards = group_advantages(
        numbers(i["token_level_rewards"], float_dtype(case)).sum(1),
        group_ids(i["index"]),
        baseline="mean",
        scale="std" if by_std else None,
    )
    actual = rewards[:, None] * numbers(i["response_mask"])
    same(actual, case["outputs"]["advantages"], max(ROUNDED, tolerance_of(case)))


def head_of(logits: Tensor, actions: Tensor, temperature: float) -> dict[str, Tensor]:
    """What the policy's head gives where hidden states are the logits themselves."""
    found = chunked_logps(
        logits.flatten(0, -2),
        torch.eye(logits.shape[-1]),
        actions.flatten(),
        temperature=temperature,
        chunk_tokens=2,
        outputs=(LOGP, MEAN_LOGP),
    )
    return {name: values.view(actions.shape) for name, values in found.items()}


def rover_mean_log_probs(case: Case) -> None:
    i = case["inputs"]
    logits = numbers(i["logits"], float_dtype(case))
    actions = torch.zeros(logits.shape[:-1], dtype=torch.long)
    found = head_of(logits, actions, i["temperature"])
    same(found[MEAN_LOGP], case["outputs"]["mean_log_probs"], FLOAT32)


def rover_loss(case: Case) -> None:
    i, o = case["inputs"], case["outputs"]
    published = i["config"]
    names = ("log_probs", "old_log_probs", "mean_log_probs", "old_mean_log_probs")
    logp, old_logp, mean_logp, old_mean_logp = (
        numbers(i[name]).requires_grad_() for name in names
    )
    coeff = published.get("rover_t", 1.0)
    next_coeff = published.get("next_q_scale_factor", 1.0)
    if published.get("target_adv_only"):
        next_coeff = 0.0
    mask = numbers(i["response_mask"]).bool()
    loss, values = credit_rover_loss(
        logp,
        old_logp,
        mean_logp,
        old_mean_logp,
        numbers(i["rewards"]),
        mask,
        log_ratio_coeff=coeff,
        next_value_coeff=next_coeff,
    )
    loss.backward()
    # Countdown's code computes in float32.
    tolerance = FLOAT64 if case["function"] == "math" else ROUNDED
    same(loss.detach(), o["loss"], tolerance)
    same(values["q"], o["q_values"], tolerance)
    same(values["target"], o["target"], tolerance)
    same(logp.grad, o["grad_log_probs"], tolerance)
    assert mean_logp.grad is None and not numbers(o["grad_mean_log_probs"]).any()
    if "next_q" in o:
        same(values["next_value"], o["next_q"], tolerance)


def rover_end_to_end(case: Case) -> None:
    i, o = case["inputs"], case["outputs"]
    logits = numbers(i["logits"], torch.float32).requires_grad_()
    actions, mask = torch.tensor(i["actions"]), numbers(i["response_mask"]).bool()
    new = head_of(logits, actions, i["temperature"])
    with torch.no_grad():
        old_logits = numbers(i["old_logits"], torch.float32)
        old = head_of(old_logits, actions, i["temperature"])
    rewards = group_advantages(
        numbers(i["token_level_rewards"], torch.float32).sum(1),
        torch.zeros(len(mask), dtype=torch.long),  # all to one prompt
        baseline="mean",
        scale="std" if i["norm_adv_by_std_in_grpo"] else None,
    )
    loss, values = credit_rover_loss(
        new[LOGP],
        old[LOGP],
        new[MEAN_LOGP],
        old[MEAN_LOGP],
        rewards[:, None] * mask,
        mask,
    )
    loss.backward()
    same(rewards[:, None] * mask, o["rewards"], FLOAT32)
    same(new[LOGP].detach(), o["log_probs"], FLOAT32)
    same(old[LOGP], o["old_log_probs"], FLOAT32)
    same(new[MEAN_LOGP], o["mean_log_probs"], FLOAT32)
    same(old[MEAN_LOGP], o["old_mean_log_probs"], FLOAT32)
    same(values["next_value"], o["next_q"], FLOAT32)
    same(values["target"], o["target"], FLOAT32)
    same(values["q"], o["q_values"], FLOAT32)
    same(loss.detach(), o["loss"], FLOAT32)
    same(logits.grad, o["grad_logits"], FLOAT32)


# CLS-RL


def clsrl_rewards(case: Case) -> None:
    """Not compared: `evaluation`, whose containment accepts a list of all classes;
    `accuracy`, where math-verify takes different names for equal; and the own rules of
    two data sets, `*_open_pets` (underscores) and `*_sat` (in the label's case).
    """
    i, o = case["inputs"], case["outputs"]
    text, label = i["response_text"], published_answer_in(i["solution"])
    (verdict,) = LabelVerifier(published=True).verify([label], [text])
    assert verdict.parts["accuracy"] == o["accuracy_string_only"]
    assert verdict.parts["format"] == o["format"]
    assert verdict.reward == (o["accuracy_string_only"] + o["format"]) / 2
    (verdict,) = LabelVerifier(thinking=False).verify([label], [text])
    assert verdict.reward == o["no_thinking"]


def clsrl_grpo_loss(case: Case) -> None:
    i, o = case["inputs"], case["outputs"]
    is_end = torch.tensor(i["completion_ids"]) == i["eos_token_id"]
    mask = is_end.long().cumsum(1) - is_end.long() == 0
    same(mask, o["completion_mask"], 0.0)
    rewards = numbers(i["rewards_per_func"], float_dtype(case)).sum(1)
    same(rewards, o["rewards"], tolerance_of(case))
    groups = torch.arange(len(rewards)) // i["num_generations"]
    advantages = group_advantages(
        rewards, groups, baseline="mean", scale="std", epsilon=1e-4
    )
    same(advantages, o["advantages"], tolerance_of(case))
    logp = numbers(i["per_token_logps"], float_dtype(case)).requires_grad_()
    kl = kl_estimate(logp, numbers(i["ref_per_token_logps"], float_dtype(case)), "k3")
    scale = LossScale("sequence_mean", float(len(mask)))
    policy, _ = clipped_policy_loss(
        logp, logp.detach(), advantages[:, None].expand_as(logp), mask, scale=scale
    )
    loss = policy + i["beta"] * scale.aggregate(kl, mask)
    loss.backward()
    same(kl.detach(), o["per_token_kl"], tolerance_of(case))
    same(logp.grad, o["grad_per_token_logps"], tolerance_of(case))
    same(loss.detach(), o["loss"], tolerance_of(case))


def clsrl_prompts(case: Case) -> None:
    i, o = case["inputs"], case["outputs"]
    if "num_classes" in i:
        assert num_choices(i["num_classes"]) == o["choice_n"]
        return
    rng = random.Random(i["seed"])
    text = choice_text(i["label"], i["class_names"], i["choice_n"], rng)
    assert text == o["text"]


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__: check
    for check in (
        clsrl_grpo_loss,
        clsrl_prompts,
        clsrl_rewards,
        riskpo_advantages,
        riskpo_policy_loss,
        riskpo_quantile_tracking,
        rover_end_to_end,
        rover_loss,
        rover_mean_log_probs,
        rover_rewards,
    )
}
NOT_COMPARED = {
    "clsrl_grpo_loss": {
        "one_response": "a group of one, whose deviation is NaN there; ours need two",
    },
    "rover_rewards": {
        r"math_rover_.*": "a function of the reference that nothing calls, and that "
        "is not ROVER's reward: over the whole batch, whatever the prompts",
    },
    "rover_loss": {
        "clip": "an option of the code that neither paper nor published runs use",
        "response_level": "an option of the code that neither paper nor published "
        "runs use",
    },
}
"""Cases of other mathematics than the methods', by file and id, with the reason."""


def is_compared(name: str, case_id: str) -> bool:
    reasons = NOT_COMPARED.get(name, {})
    return not any(re.fullmatch(pattern, case_id) for pattern in reasons)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        pytest.param(name, index, id=f"{name}-{case['id']}")
        for name in CHECKS
        for index, case in enumerate(load(name))
        if is_compared(name, case["id"])
    ],
)
def test_golden(name: str, index: int) -> None:
    CHECKS[name](load(name)[index])
