"""Both published implementations of PURE, reproduced number by number.

The golden vectors were made by running the reference code (branches `main` and `verl`
of CJReinforce/PURE). The folder is named by `PURE_GOLDEN_DIR`. Here: process rewards,
steps, KL, loss and text, and the account of what is reproduced and what is not.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pure_rllib.credit.baselines import group_advantages
from pure_rllib.credit.policy_loss import clipped_policy_loss
from pure_rllib.credit.steps import StepSplitter, single_token_id
from pure_rllib.credit.text_metrics import (
    num_text_steps,
    reflection,
    reflection_counts,
    repetition,
)
from tests.contract.golden_files import float_dtype, group_ids, numbers, same
from tests.contract.golden_io import (
    GOLDEN_DIR,
    STATISTICS_TOLERANCE,
    TOLERANCE,
    cases,
    is_separator,
    load,
    mask_of,
    openrlhf_sequences,
    padded,
    verify,
    verl_temperature,
    widest,
)
from tests.reference import openrlhf, verl
from tests.reference.padded_steps import pack_step_ends
from tests.reference.verl import adapt_kl_coeff

NOT_IMPLEMENTED: dict[str, dict[str, str]] = {
    "reinforce_pp": {
        "compute_reinforce_plus_plus_outcome_advantage": "REINFORCE++ has no group "
        "baseline; the published trainer refuses it"
    },
    "remax_gae": {
        "compute_remax_outcome_advantage": "ReMax needs a greedy response per prompt, "
        "which we do not sample; the published trainer refuses it",
        "compute_gae_advantage_return": "GAE needs a value network, which PURE does "
        "without",
    },
    "verl_data_metrics": {
        "compute_data_metrics": "ours are those of pure_rllib.reporting: other names, "
        "and no failure where all responses are right or wrong",
        "_compute_response_info": "part of compute_data_metrics",
        "_compute_pass_at_n": "part of compute_data_metrics",
    },
}
ELSEWHERE = {
    "openrlhf_prm_input": "test_golden_prm_input.py",
    "verl_prm_input": "test_golden_prm_input.py",
    "openrlhf_adv_normalization": "test_golden_advantages.py",
    "openrlhf_advantages": "test_golden_advantages.py",
    "openrlhf_e2e": "test_golden_advantages.py",
    "verl_advantages": "test_golden_advantages.py",
    "verl_e2e": "test_golden_advantages.py",
    "verl_reward_combine": "test_golden_advantages.py",
}

# Process rewards


def openrlhf_reward_transform(case: dict[str, Any], _: dict[str, Any]) -> None:
    i = case["inputs"]
    rewards = openrlhf.process_rewards(
        numbers(i["logits"], float_dtype(case)),
        mask_of(i["reward_mask"]),
        temperature=i["temperature"],
        weighted=not i["disable_weighted_reward"],
    )
    tolerance = TOLERANCE[case["dtype"]]
    same(rewards, case["outputs"]["process_reward"], tolerance)
    same(rewards.sum(1), case["outputs"]["outcome_reward"], tolerance)


def verl_reward_transform(case: dict[str, Any], _: dict[str, Any]) -> None:
    i = case["inputs"]
    mask = mask_of(i["reward_mask"])
    assert mask.shape[1] == i["response_length"]
    scores = verl.process_rewards(
        numbers(i["prm_logits"], float_dtype(case)),
        mask,
        temperature=verl_temperature(i["credit_assignment"]),
    )
    same(scores, case["outputs"]["rm_scores"], TOLERANCE[case["dtype"]])


# Steps


class ListTokenizer:
    """A tokenizer whose vocabulary is a list of texts."""

    all_special_ids = ()

    def __init__(self, texts: list[str]):
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def batch_decode(self, ids: list[list[int]], **_: bool) -> list[str]:
        return ["".join(self.texts[i] for i in row) for row in ids]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [i for i, known in enumerate(self.texts) if known == text]


def separator_tokens(case: dict[str, Any], _: dict[str, Any]) -> None:
    tokenizer = ListTokenizer(case["inputs"]["vocab"])
    separators = StepSplitter.from_tokenizer(tokenizer).is_separator.nonzero()[0]
    newline = single_token_id(tokenizer, "\n")
    for reference in ("openrlhf", "verl"):
        expected = case["outputs"][reference]
        assert separators.tolist() == expected["separator_ids"]
        assert [newline] == expected["prm_newline_ids"]


def openrlhf_step_split(case: dict[str, Any], meta: dict[str, Any]) -> None:
    i, o = case["inputs"], case["outputs"]
    sequences, flags = openrlhf_sequences(i, i["prompts"], i["responses"])
    ends, step_mask = pack_step_ends(flags)
    same(sequences.token_ids, o["sequences"])
    same(sequences.attention_mask, o["attention_mask"])
    same(sequences.action_mask, o["action_mask"])
    assert sequences.action_mask.shape[1] == o["num_actions"]
    assert widest(i["prompts"]) == o["problem_length"]
    same(torch.where(step_mask, ends + 1, -1), o["score_ids"])
    same(step_mask, o["score_mask"])
    same(flags, o["reward_mask"])
    assert step_mask.shape[1] == o["max_num_steps"]
    same(step_mask.sum(1), o["num_steps"])
    same(sequences.action_mask.sum(1), o["response_length"])
    same(sequences.attention_mask.sum(1), o["total_length"])
    responses = sequences.token_ids[:, -o["num_actions"] :].tolist()
    pairs = list(zip(responses, i["answers"], strict=True))
    assert [verify(ids, a, meta["vocab"]) for ids, a in pairs] == o["solved"]
    assert [answer != "null" for answer in i["answers"]] == o["have_answers"]


def verl_step_split(case: dict[str, Any], _: dict[str, Any]) -> None:
    i, o = case["inputs"], case["outputs"]
    pad = i["pad_token_id"]
    prompts = padded(i["prompts"], widest(i["prompts"]), pad, left=True)
    responses = padded(i["responses"], i["response_buffer"], pad)
    lengths = torch.tensor([len(prompt) for prompt in i["prompts"]])
    prompt_mask = torch.arange(prompts.shape[1]).flip(0) < lengths[:, None]
    mask = verl.response_mask(responses, i["eos_token_id"])
    steps, flags = verl.split_steps(is_separator(responses, i), mask)
    same(prompts, o["prompt_ids"])
    same(responses, o["response_ids"])
    same(torch.cat([prompt_mask, mask], dim=1), o["attention_mask"])
    same(steps.step_ends, o["score_ids"])
    same(steps.step_mask, o["score_mask"])
    same(flags, o["reward_mask"])
    same(steps.step_mask.sum(1), o["num_steps"])


# KL, loss and text


def kl(case: dict[str, Any], _: dict[str, Any]) -> None:
    i, o, function = case["inputs"], case["outputs"], case["function"]
    dtype, tolerance = float_dtype(case), TOLERANCE[case["dtype"]]
    if function.endswith("_adaptive"):
        coeff, values = i["init"], []
        for current, count in i["updates"]:
            coeff = adapt_kl_coeff(
                coeff,
                current,
                kl_target=i["target"],
                num_responses=count,
                horizon=i["horizon"],
            )
            values.append(coeff)
        assert values == pytest.approx(o["values"], rel=tolerance)
    elif function == "verl":
        args = (
            numbers(i["logprob"], dtype),
            numbers(i["ref_logprob"], dtype),
            i["kl_penalty"],
        )
        if "raises" in o:
            assert o["raises"] == "NotImplementedError"
            with pytest.raises(NotImplementedError, match="`kl_penalty`"):
                verl.kl_penalty(*args)
        else:
            same(verl.kl_penalty(*args), o["kl"], tolerance)
    else:
        mask = None if i["action_mask"] is None else mask_of(i["action_mask"])
        actual = openrlhf.kl_penalty(
            numbers(i["log_probs"], dtype),
            numbers(i["log_probs_base"], dtype),
            mask,
            use_k3=i["use_kl_estimator_k3"],
        )
        tolerance = max(tolerance, STATISTICS_TOLERANCE)
        same(actual, o["kl"], tolerance)
        if mask is not None:
            per_sequence = actual.sum(1) / mask.sum(1)
            same(per_sequence, o["kl_per_sequence"], tolerance)


def policy_loss(case: dict[str, Any], _: dict[str, Any]) -> None:
    i, o, dtype = case["inputs"], case["outputs"], float_dtype(case)
    tolerance = TOLERANCE[case["dtype"]]
    logp = numbers(i["log_probs"], dtype).requires_grad_()
    old_logp = numbers(i["old_log_probs"], dtype)
    advantages = numbers(i["advantages"], dtype)
    mask = torch.ones(logp.shape).bool() if i["mask"] is None else mask_of(i["mask"])
    if case["function"] == "openrlhf":
        loss, ratio = openrlhf.policy_loss(
            logp, old_logp, advantages, mask, clip=i["clip"]
        )
        same(ratio, o["avg_ratio"], tolerance)
        per_sequence = (advantages * mask).sum(1) / mask.sum(1)
        same(per_sequence.mean(), o["avg_advantage"], tolerance)
    else:
        loss, stats = clipped_policy_loss(
            logp,
            old_logp,
            advantages,
            mask,
            clip_low=i["clip"],
            clip_high=i["clip"],
        )
        num_clipped = stats["clip_low_count"] + stats["clip_high_count"]
        # A mean of flags, which the reference takes in float32.
        share_tolerance = max(tolerance, STATISTICS_TOLERANCE)
        same(num_clipped / stats["num_tokens"], o["clipfrac"], share_tolerance)
        same(stats["kl_k1_sum"] / stats["num_tokens"], o["ppo_kl"], tolerance)
    same(loss.detach(), o["loss"], tolerance)
    loss.backward()
    assert logp.grad is not None
    same(logp.grad, o["grad_log_probs"], tolerance)


def grpo(case: dict[str, Any], _: dict[str, Any]) -> None:
    i, o = case["inputs"], case["outputs"]
    rewards = numbers(i["token_level_rewards"], float_dtype(case))
    groups = group_ids(i["index"])
    actual = group_advantages(rewards.sum(1), groups, baseline="mean", scale="std")
    tolerance = max(TOLERANCE[case["dtype"]], STATISTICS_TOLERANCE)
    for name in ("advantages", "returns"):
        same(actual[:, None] * mask_of(i["eos_mask"]), o[name], tolerance)


def text_metrics(case: dict[str, Any], _: dict[str, Any]) -> None:
    text, o = case["inputs"]["text"], case["outputs"]
    assert num_text_steps(text) == o["num_steps"]
    assert math.isclose(repetition(text), o["repeat_score"], rel_tol=1e-15)
    assert reflection(text) == o["reflection_score"]
    assert reflection_counts(text.lower()) == o["reflection_counts"]
    assert sum(reflection_counts(text)) == o["reflection_score_case_sensitive"]


CHECKS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    check.__name__: check
    for check in (
        grpo,
        kl,
        openrlhf_reward_transform,
        openrlhf_step_split,
        policy_loss,
        separator_tokens,
        text_metrics,
        verl_reward_transform,
        verl_step_split,
    )
}


@pytest.mark.parametrize(("name", "index"), cases(CHECKS))
def test_golden(name: str, index: int) -> None:
    golden = load(name)
    CHECKS[name](golden["cases"][index], golden["meta"])


def test_every_file_is_accounted_for() -> None:
    files = {path.stem for path in GOLDEN_DIR.glob("*.json")}
    assert files == set(CHECKS) | set(NOT_IMPLEMENTED) | set(ELSEWHERE)
    assert not set(CHECKS) & (set(NOT_IMPLEMENTED) | set(ELSEWHERE))
    for name, test_file in ELSEWHERE.items():
        assert name in (Path(__file__).parent / test_file).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NOT_IMPLEMENTED)
def test_what_is_left_out_exists(name: str) -> None:
    """Every function that we do without is named, with its reason, and no other is."""
    listed = {
        function.strip()
        for reference in load(name)["meta"]["references"]
        for function in reference["function"].split(",")
    }
    assert listed == set(NOT_IMPLEMENTED[name])
