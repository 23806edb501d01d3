"""Both published implementations of PURE, reproduced number by number.

The golden vectors were made by running the reference code (branches `main` and `verl`
of CJReinforce/PURE). The folder is named by `PURE_GOLDEN_DIR`.
"""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pure_rllib.credit import pure_openrlhf, pure_verl
from pure_rllib.credit.kl import adapt_kl_coeff
from pure_rllib.credit.normalize import (
    NormalizeStyle,
    advantage_moments,
    normalize_advantages,
)
from pure_rllib.credit.policy_loss import clipped_policy_loss
from pure_rllib.credit.steps import StepSplitter, pack_step_ends, single_token_id
from pure_rllib.credit.text_metrics import (
    num_text_steps,
    reflection,
    reflection_counts,
    repetition,
)

ROOT = Path(__file__).parents[2]
GOLDEN_DIR = Path(
    os.environ.get("PURE_GOLDEN_DIR", ROOT / "../shared/reference/golden")
)
if not GOLDEN_DIR.is_dir():
    pytest.skip(
        f"no golden vectors in {GOLDEN_DIR}: set PURE_GOLDEN_DIR",
        allow_module_level=True,
    )

NOT_IMPLEMENTED: dict[str, dict[str, str]] = {
    "grpo": {
        "compute_grpo_outcome_advantage": "GRPO gives one advantage per response; PURE "
        "is about advantages per token, and neither published trainer runs it"
    },
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
        "compute_data_metrics": "our metrics are defined in pure_rllib.reporting: other "
        "names, and no failure where all responses are right or wrong",
        "_compute_response_info": "part of compute_data_metrics",
        "_compute_pass_at_n": "part of compute_data_metrics",
    },
}
ELSEWHERE = {
    "openrlhf_prm_input": "test_golden_prm_input.py",
    "verl_prm_input": "test_golden_prm_input.py",
}

TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "bfloat16": 2e-2}
STATISTICS_TOLERANCE = 1e-7  # float64 inputs, but float32 statistics in the reference


def load(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN_DIR / f"{name}.json").read_text(encoding="utf-8"))


def numbers(value: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """A tensor of nested lists in which "nan", "inf" and "-inf" are text."""

    def read(item: Any) -> Any:
        return [read(i) for i in item] if isinstance(item, list) else float(item)

    return torch.tensor(read(value), dtype=torch.float64).to(dtype)


def mask_of(value: Any) -> Tensor:
    return torch.tensor(value).bool()


def padded(rows: list[list[Any]], width: int, pad: Any, left: bool = False) -> Tensor:
    fill = [[pad] * (width - len(row)) for row in rows]
    pairs = zip(fill, rows, strict=True)
    return torch.tensor([f + row if left else row + f for f, row in pairs])


def widest(rows: list[list[Any]]) -> int:
    return max(map(len, rows))


def same(actual: Tensor, expected: Any, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(
        actual.double(),
        numbers(expected),
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
    )


def float_dtype(case: dict[str, Any]) -> torch.dtype:
    return getattr(torch, case["dtype"])


def group_ids(names: list[str]) -> Tensor:
    return torch.tensor([sorted(set(names)).index(name) for name in names])


# Process rewards


def openrlhf_reward_transform(case: dict[str, Any], _: dict[str, Any]) -> None:
    i = case["inputs"]
    rewards = pure_openrlhf.process_rewards(
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
    scores = pure_verl.process_rewards(
        numbers(i["prm_logits"], float_dtype(case)),
        mask,
        temperature=verl_temperature(i["credit_assignment"]),
    )
    same(scores, case["outputs"]["rm_scores"], TOLERANCE[case["dtype"]])


def verl_temperature(credit_assignment: float | str) -> float | None:
    return credit_assignment if isinstance(credit_assignment, float) else None


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


def is_separator(ids: Tensor, inputs: dict[str, Any]) -> Tensor:
    return torch.isin(ids, torch.tensor(inputs["separator_ids"]))


def verify(response_ids: list[int], answer: str, vocab: list[str]) -> float:
    """The stand-in for an answer checker that the goldens were made with."""
    text = "".join(vocab[i] for i in response_ids)
    boxed = re.findall(r"\\boxed\{(.*?)\}", text)
    return float(answer == "null" or (bool(boxed) and boxed[-1] == answer))


def openrlhf_sequences(
    inputs: dict[str, Any], prompts: list[list[int]], responses: list[list[int]]
) -> tuple[pure_openrlhf.Sequences, Tensor]:
    """Rows of one micro batch, and flags on the last tokens of steps."""
    pad, num_actions = inputs["pad_token_id"], widest(responses)
    sequences = pure_openrlhf.build_sequences(
        padded(prompts, widest(prompts), pad, left=True),
        padded(responses, num_actions, pad),
        eos_token_id=inputs["eos_token_id"],
        pad_token_id=pad,
    )
    separators = is_separator(sequences.token_ids[:, -num_actions:], inputs)
    ends = pure_openrlhf.step_end_mask(separators, sequences.action_mask)
    return sequences, ends


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
    mask = pure_verl.response_mask(responses, i["eos_token_id"])
    steps, flags = pure_verl.split_steps(is_separator(responses, i), mask)
    same(prompts, o["prompt_ids"])
    same(responses, o["response_ids"])
    same(torch.cat([prompt_mask, mask], dim=1), o["attention_mask"])
    same(steps.step_ends, o["score_ids"])
    same(steps.step_mask, o["score_mask"])
    same(flags, o["reward_mask"])
    same(steps.step_mask.sum(1), o["num_steps"])


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
    match = pure_openrlhf.match(result.outcome_rewards, solved, has_answer)
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
    style: NormalizeStyle = "pure_openrlhf" if i["mask_separator_adv"] else "tokens"
    moments = advantage_moments(advantages, mask, style)
    normalized = normalize_advantages(advantages, mask, moments, style)
    tolerance = max(STATISTICS_TOLERANCE, TOLERANCE[case["dtype"]])
    for actual, valid, expected in zip(
        normalized, mask, case["outputs"]["items"], strict=True
    ):
        same(actual[valid], expected, tolerance)


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
        kl = pure_openrlhf.kl_penalty(
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
    rewards = pure_openrlhf.process_rewards(
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
            kl = pure_verl.kl_penalty(
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
    mask = pure_verl.response_mask(responses, i["eos_token_id"])
    same(mask, o["response_mask"])
    flags = pure_verl.split_steps(is_separator(responses, i), mask)[1]
    same(flags, o["reward_mask"])
    process_scores = pure_verl.process_rewards(
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
    kl = pure_verl.kl_penalty(
        numbers(i["old_log_probs"]), numbers(i["ref_log_prob"]), i["kl_penalty"]
    )
    rewards, mean_kl = pure_verl.apply_kl_penalty(scores, kl, mask, i["kl_coef"])
    same(rewards, o["token_level_rewards"], tolerance)
    metrics = {"critic/kl": mean_kl, "critic/kl_coeff": i["kl_coef"]}
    assert metrics == pytest.approx(o["metrics"], rel=tolerance, abs=tolerance)
    compare_verl(rewards, mask, case)


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
                pure_verl.kl_penalty(*args)
        else:
            same(pure_verl.kl_penalty(*args), o["kl"], tolerance)
    else:
        mask = None if i["action_mask"] is None else mask_of(i["action_mask"])
        actual = pure_openrlhf.kl_penalty(
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
        loss, ratio = pure_openrlhf.policy_loss(
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
            aggregation="token_mean",
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
        kl,
        openrlhf_adv_normalization,
        openrlhf_advantages,
        openrlhf_e2e,
        openrlhf_reward_transform,
        openrlhf_step_split,
        policy_loss,
        separator_tokens,
        text_metrics,
        verl_advantages,
        verl_e2e,
        verl_reward_combine,
        verl_reward_transform,
        verl_step_split,
    )
}
CASES = [
    pytest.param(name, index, id=f"{name}-{case['id']}")
    for name in CHECKS
    for index, case in enumerate(load(name)["cases"])
]


@pytest.mark.parametrize(("name", "index"), CASES)
def test_golden(name: str, index: int) -> None:
    golden = load(name)
    CHECKS[name](golden["cases"][index], golden["meta"])


def test_every_file_is_accounted_for() -> None:
    files = {path.stem for path in GOLDEN_DIR.glob("*.json")}
    assert files == set(CHECKS) | set(NOT_IMPLEMENTED) | set(ELSEWHERE)
    assert not set(CHECKS) & (set(NOT_IMPLEMENTED) | set(ELSEWHERE))
    for test_file in ELSEWHERE.values():
        assert (Path(__file__).parent / test_file).is_file()


@pytest.mark.parametrize("name", NOT_IMPLEMENTED)
def test_what_is_left_out_exists(name: str) -> None:
    """Every function that we do without is named, with its reason, and no other is."""
    listed = {
        function.strip()
        for reference in load(name)["meta"]["references"]
        for function in reference["function"].split(",")
    }
    assert listed == set(NOT_IMPLEMENTED[name])
