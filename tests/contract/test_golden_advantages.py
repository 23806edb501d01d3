"""Both published implementations of PURE: rewards to advantages, and end to end."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pure_rllib.credit import pure_openrlhf, pure_verl
from pure_rllib.credit.normalize import (
    NormalizeStyle,
    advantage_moments,
    normalize_advantages,
)
from tests.contract.golden_files import float_dtype, group_ids, numbers, same
from tests.contract.golden_io import (
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
)
from tests.reference import openrlhf, verl
from tests.reference.padded_steps import pack_step_ends
from tests.reference.verl import adapt_kl_coeff

# Advantages of the OpenRLHF variant


def openrlhf_settings(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        "use_process": "PRM" in inputs["reward_mode"],
        "baseline": inputs["reward_baseline"],
        "verifiable_coeff": inputs["verifiable_reward_coef"],
        "kl_coeff": inputs["kl_coef"],
        "mask_separators": not inputs["nomask_separator_adv"],
    }


def stack(micro_batches: list[Tensor]) -> Tensor:
    """Rows of all micro batches, padded on the right to a common width with 0."""
    width = max(x.shape[1] for x in micro_batches)
    pad = torch.nn.functional.pad
    return torch.cat([pad(x, (0, width - x.shape[1])) for x in micro_batches])


def openrlhf_advantages(case: dict[str, Any], _: dict[str, Any]) -> None:
    i = case["inputs"]
    batches = i["micro_batches"]
    dtype, tolerance = float_dtype(case), TOLERANCE[case["dtype"]]

    def rows(name: str, convert: Callable[[Any], Tensor]) -> Tensor:
        return stack([convert(batch[name]) for batch in batches])

    def floats(value: Any) -> Tensor:
        return numbers(value, dtype)

    solved = torch.cat([floats(batch["solved"]) for batch in batches])
    result = pure_openrlhf.advantages(
        rows("process_reward", floats),
        rows("step_end_mask", mask_of),
        rows("action_mask", mask_of),
        torch.arange(len(solved)) // i["n_samples_per_prompt"],
        solved=solved if "VR" in i["reward_mode"] else None,
        kl=rows("kl", floats),
        **openrlhf_settings(i),
    )
    compare_openrlhf(result, solved, case, batches, tolerance)


def compare_openrlhf(
    result: pure_openrlhf.Advantages,
    solved: Tensor,
    case: dict[str, Any],
    batches: list[dict[str, Any]],
    tolerance: float,
) -> None:
    has_answer = torch.cat([mask_of(batch["have_answers"]) for batch in batches])
    match = openrlhf.match(result.outcome_rewards, solved, has_answer)
    start = 0
    for expected in case["outputs"]["micro_batches"]:
        stop = start + len(expected["advantages"])
        width = len(expected["advantages"][0])
        same(result.advantages[start:stop, :width], expected["advantages"], tolerance)
        same(result.returns[start:stop], expected["return_info"], tolerance)
        same(result.outcome_rewards[start:stop], expected["outcome_reward"], tolerance)
        same(match[start:stop], expected["match"])
        if "returns" in expected:
            same(result.advantages[start:stop, :width], expected["returns"], tolerance)
            rewards = result.rewards[start:stop, :width]
            same(rewards, expected["rewards_after_baseline"], tolerance)
        start = stop
    assert start == len(result.advantages)


def openrlhf_adv_normalization(case: dict[str, Any], _: dict[str, Any]) -> None:
    i = case["inputs"]
    advantages = stack(
        [numbers([item["advantages"]], float_dtype(case)) for item in i["items"]]
    )
    mask = stack([mask_of([item["action_mask"]]) for item in i["items"]])
    excludes = i["mask_separator_adv"]
    exact = openrlhf.normalize(advantages, mask, mask_separators=excludes)
    style: NormalizeStyle = "pure_openrlhf" if excludes else "tokens"
    moments = advantage_moments(advantages, mask, style)
    summed = normalize_advantages(advantages, mask, moments, style)
    tolerance = max(STATISTICS_TOLERANCE, TOLERANCE[case["dtype"]])
    for k, expected in enumerate(case["outputs"]["items"]):
        same(exact[k][mask[k]], expected, tolerance)
        # Sums in float64 are more exact than the reference's in float32.
        same(summed[k][mask[k]], expected, max(tolerance, 1e-6))


def openrlhf_e2e(case: dict[str, Any], meta: dict[str, Any]) -> None:
    i, o = case["inputs"], case["outputs"]
    group_size, size = i["n_samples_per_prompt"], i["micro_rollout_batch_size"]
    uses_prm, uses_vr = "PRM" in i["reward_mode"], "VR" in i["reward_mode"]
    prompts = [prompt for prompt in i["prompts"] for _ in range(group_size)]
    answers = i["answers"]
    if len(answers) == len(i["prompts"]):
        answers = [answer for answer in answers for _ in range(group_size)]
    parts: dict[str, list[Tensor]] = {}
    for b, expected in enumerate(o["micro_batches"]):
        rows = slice(b * size, (b + 1) * size)
        sequences, flags = openrlhf_sequences(i, prompts[rows], i["responses"][rows])
        mask, width = sequences.action_mask, sequences.action_mask.shape[1]
        same(mask, expected["action_mask"])
        same(flags, expected["step_end_mask"])
        rewards = torch.zeros(flags.shape)
        if uses_prm:
            rewards = openrlhf_token_rewards(i, b, flags)
        same(rewards, expected["process_reward"], TOLERANCE["float32"])
        kl = openrlhf.kl_penalty(
            numbers(i["log_probs"][b], torch.float32),
            numbers(i["ref_log_probs"][b], torch.float32),
            mask,
            use_k3=i["use_kl_estimator_k3"],
        )
        same(kl, expected["kl"], TOLERANCE["float32"])
        per_sequence = kl.sum(1) / mask.sum(1)
        same(per_sequence, expected["kl_per_sequence"], TOLERANCE["float32"])
        responses = sequences.token_ids[:, -width:].tolist()
        pairs = zip(responses, answers[rows], strict=True)
        solved = torch.tensor([verify(ids, a, meta["vocab"]) for ids, a in pairs])
        same(solved, expected["solved"])
        has_answer = torch.tensor([[a != "null"] for a in answers[rows]])
        new = {"rewards": rewards, "flags": flags, "mask": mask, "kl": kl}
        new |= {"solved": solved[:, None], "has_answer": has_answer}
        for name, value in new.items():
            parts.setdefault(name, []).append(value)
    whole = {name: stack(values) for name, values in parts.items()}
    result = pure_openrlhf.advantages(
        whole["rewards"],
        whole["flags"],
        whole["mask"],
        torch.arange(len(prompts)) // group_size,
        solved=whole["solved"][:, 0] if uses_vr else None,
        kl=whole["kl"],
        **openrlhf_settings(i),
    )
    batches = [{"have_answers": x[:, 0].tolist()} for x in parts["has_answer"]]
    compare_openrlhf(result, whole["solved"][:, 0], case, batches, TOLERANCE["float32"])
    style: NormalizeStyle = "tokens" if i["nomask_separator_adv"] else "pure_openrlhf"
    moments = advantage_moments(result.advantages, whole["mask"], style)
    normalized = normalize_advantages(result.advantages, whole["mask"], moments, style)
    for actual, valid, expected in zip(
        normalized, whole["mask"], o["normalized_advantages_per_response"], strict=True
    ):
        same(actual[valid], expected, 1e-4)


def openrlhf_token_rewards(inputs: dict[str, Any], b: int, flags: Tensor) -> Tensor:
    """Transformed process rewards of micro batch b, on the last tokens of steps."""
    ends, step_mask = pack_step_ends(flags)
    logits = numbers(inputs["prm_logits"][b], torch.float32)
    if logits.shape[1] != ends.shape[1]:
        num_prompt = logits.shape[1] - flags.shape[1]
        logits = logits.gather(
            1, (ends.clamp(min=0) + num_prompt)[..., None].expand(-1, -1, 2)
        )
    rewards = openrlhf.process_rewards(
        logits,
        step_mask,
        temperature=inputs["temperature"],
        weighted=not inputs["disable_weighted_reward"],
    )
    return torch.zeros(flags.shape).masked_scatter(flags, rewards[step_mask])


# Advantages of the verl variant


def verl_advantages(case: dict[str, Any], _: dict[str, Any]) -> None:
    i, o = case["inputs"], case["outputs"]

    def run() -> pure_verl.Advantages:
        return pure_verl.rloo_advantages(
            numbers(i["token_level_rewards"], float_dtype(case)),
            mask_of(i["eos_mask"]),
            group_ids(i["index"]),
            aggregate=i["return_aggregate_method"],
            normalize=i["adv_norm"],
        )

    if "raises" in o:
        assert o["raises"] == "ValueError"
        with pytest.raises(ValueError, match="at least 2 tokens"):
            run()
        return
    tolerance = TOLERANCE[case["dtype"]]
    if i["adv_norm"]:
        tolerance = max(tolerance, STATISTICS_TOLERANCE)
    advantages, returns = run()
    same(advantages, o["advantages"], tolerance)
    same(returns, o["returns"], TOLERANCE[case["dtype"]])


def verl_reward_combine(case: dict[str, Any], _: dict[str, Any]) -> None:
    i, o = case["inputs"], case["outputs"]
    tolerance = TOLERANCE[case["dtype"]]
    mask = mask_of(i["response_mask"])
    scores = pure_verl.token_scores(
        numbers(i["reward_fn_scores"]),
        None if i["rm_scores"] is None else numbers(i["rm_scores"]),
        i["verifiable_reward_coef"],
    )
    same(scores, o["token_level_scores"], tolerance)
    rewards, control = scores, i["kl_ctrl"]
    coeff, metrics = control["kl_coef"], {}
    if not i["use_kl_loss"]:
        has_reference = i["ref_log_prob"] is not None
        kl = None
        if has_reference:
            kl = verl.kl_penalty(
                numbers(i["old_log_probs"]),
                numbers(i["ref_log_prob"]),
                i["kl_penalty"],
            )
        rewards, mean_kl = pure_verl.apply_kl_penalty(scores, kl, mask, coeff)
        metrics = {
            "critic/kl": mean_kl,
            "critic/kl_coeff": coeff if has_reference else 0,
        }
        if control["type"] == "adaptive":
            coeff = adapt_kl_coeff(
                coeff,
                mean_kl,
                kl_target=control["target_kl"],
                num_responses=len(mask),
                horizon=control["horizon"],
            )
    same(rewards, o["token_level_rewards"], tolerance)
    assert metrics == pytest.approx(o["metrics"], rel=tolerance, abs=tolerance)
    assert coeff == pytest.approx(o["kl_coef_after"], rel=tolerance)
    compare_verl(rewards, mask, case)


def compare_verl(rewards: Tensor, mask: Tensor, case: dict[str, Any]) -> None:
    i, o = case["inputs"], case["outputs"]
    advantages, returns = pure_verl.rloo_advantages(
        rewards,
        mask,
        group_ids(i["uid"]),
        aggregate="min" if i["credit_assignment"] == "strict min-form" else "sum",
        normalize=i["adv_norm"],
    )
    tolerance = TOLERANCE[case["dtype"]]
    same(returns, o["returns"], tolerance)
    if i["adv_norm"]:
        tolerance = max(tolerance, STATISTICS_TOLERANCE)
    same(advantages, o["advantages"], tolerance)


def verl_e2e(case: dict[str, Any], _: dict[str, Any]) -> None:
    i, o = case["inputs"], case["outputs"]
    tolerance = TOLERANCE[case["dtype"]]
    responses = padded(i["responses"], i["response_buffer"], i["pad_token_id"])
    mask = verl.response_mask(responses, i["eos_token_id"])
    same(mask, o["response_mask"])
    flags = verl.split_steps(is_separator(responses, i), mask)[1]
    same(flags, o["reward_mask"])
    process_scores = verl.process_rewards(
        numbers(i["prm_logits"]),
        flags,
        temperature=verl_temperature(i["credit_assignment"]),
    )
    same(process_scores, o["rm_scores"], tolerance)
    same(numbers(i["correct"]), o["verifiable_rewards"])
    last = (mask.sum(1) - 1)[:, None]
    verifiable = torch.zeros(mask.shape, dtype=torch.float64)
    verifiable.scatter_(1, last, numbers(i["correct"])[:, None])
    same(verifiable, o["reward_fn_scores"])
    scores = pure_verl.token_scores(
        verifiable, process_scores, i["verifiable_reward_coef"]
    )
    same(scores, o["token_level_scores"], tolerance)
    kl = verl.kl_penalty(
        numbers(i["old_log_probs"]), numbers(i["ref_log_prob"]), i["kl_penalty"]
    )
    rewards, mean_kl = pure_verl.apply_kl_penalty(scores, kl, mask, i["kl_coef"])
    same(rewards, o["token_level_rewards"], tolerance)
    metrics = {"critic/kl": mean_kl, "critic/kl_coeff": i["kl_coef"]}
    assert metrics == pytest.approx(o["metrics"], rel=tolerance, abs=tolerance)
    compare_verl(rewards, mask, case)


CHECKS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    check.__name__: check
    for check in (
        openrlhf_adv_normalization,
        openrlhf_advantages,
        openrlhf_e2e,
        verl_advantages,
        verl_e2e,
        verl_reward_combine,
    )
}


@pytest.mark.parametrize(("name", "index"), cases(CHECKS))
def test_golden(name: str, index: int) -> None:
    golden = load(name)
    CHECKS[name](golden["cases"][index], golden["meta"])
