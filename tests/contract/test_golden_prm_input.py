"""The published reward model inputs against vectors made by the published code."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pure_rllib.credit import pure_openrlhf, pure_verl
from pure_rllib.credit.steps import pack_step_ends
from pure_rllib.rewards.prm_input import openrlhf_prm_input, verl_prm_input

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("PURE_GOLDEN_DIR", ROOT / "../shared/reference/golden"))


def cases(name: str) -> list[Any]:
    file = FOLDER / name
    if not file.is_file():
        reason = f"no golden vectors: {file} is absent, set PURE_GOLDEN_DIR"
        return [pytest.param(None, id=name, marks=pytest.mark.skip(reason=reason))]
    loaded = json.loads(file.read_text())["cases"]
    assert loaded, f"{file} has no cases"
    return [pytest.param(case, id=case["id"]) for case in loaded]


def left_pad(rows: list[list[int]], pad: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[pad] * (width - len(row)) + row for row in rows])


def right_pad(rows: list[list[int]], pad: int, width: int | None = None) -> Tensor:
    width = width or max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


def is_separator(responses: Tensor, given: dict[str, Any]) -> Tensor:
    return torch.isin(responses, torch.tensor(given["separator_ids"]))


def equal(actual: Tensor, expected: list[list[int]]) -> None:
    assert actual.long().tolist() == torch.tensor(expected).long().tolist()


@pytest.mark.parametrize("case", cases("openrlhf_prm_input.json"))
def test_openrlhf_input(case):
    given, expected = case["inputs"], case["outputs"]
    pad, eos = given["pad_token_id"], given["eos_token_id"]
    prompts = left_pad(given["prompts"], pad)
    responses = right_pad(given["responses"], pad)
    sequences = pure_openrlhf.build_sequences(
        prompts, responses, eos_token_id=eos, pad_token_id=pad
    )
    responses = sequences.token_ids[:, prompts.shape[1] :]
    steps = pack_step_ends(
        pure_openrlhf.step_end_mask(
            is_separator(responses, given), sequences.action_mask
        )
    )
    result = openrlhf_prm_input(
        prompts,
        responses,
        sequences.attention_mask,
        *steps,
        prm_newline_id=given["prm_newline_id"],
        pad_token_id=pad,
    )
    equal(result.input_ids, expected["input_ids"])
    equal(result.attention_mask, expected["attention_mask"])
    equal(result.num_tokens_per_step, expected["num_tokens_per_step"])
    equal(result.score_positions, expected["score_positions"])
    equal(result.score_positions >= 0, expected["score_mask"])


@pytest.mark.parametrize("case", cases("verl_prm_input.json"))
def test_verl_input(case):
    given, expected = case["inputs"], case["outputs"]
    pad, eos, buffer = (
        given[key] for key in ("pad_token_id", "eos_token_id", "response_buffer")
    )
    prompts = left_pad(given["prompts"], pad)
    responses = right_pad(given["responses"], pad, buffer)
    mask = pure_verl.response_mask(responses, eos)
    width = prompts.shape[1]
    lengths = torch.tensor([[len(prompt)] for prompt in given["prompts"]])
    prompt_mask = torch.arange(width) >= width - lengths
    steps, is_end = pure_verl.split_steps(is_separator(responses, given), mask)
    result = verl_prm_input(
        prompts,
        responses,
        torch.cat([prompt_mask, mask], 1),
        *steps,
        prm_newline_id=given["prm_newline_id"],
        pad_token_id=pad,
    )
    equal(result.input_ids, expected["input_ids"])
    equal(result.attention_mask, expected["attention_mask"])
    equal(result.position_ids, expected["position_ids"])
    equal(is_end, expected["reward_mask"])
