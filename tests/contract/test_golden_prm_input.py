"""The published reward model inputs against vectors made by the published code."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

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


def left_pad(rows: list[list[int]], pad: int) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([[pad] * (width - len(row)) + row for row in rows])


def right_pad(rows: list[list[int]], pad: int, width: int | None = None) -> np.ndarray:
    width = width or max(map(len, rows))
    return np.array([row + [pad] * (width - len(row)) for row in rows])


def step_ends(responses: np.ndarray, last: np.ndarray, separators: list[int]) -> Any:
    columns = np.arange(responses.shape[1])
    is_end = np.isin(responses, separators) & (columns <= last[:, None])
    is_end[np.arange(len(last)), last] = True
    return pack_step_ends(torch.from_numpy(is_end))


def equal(actual: Tensor, expected: list[list[int]]) -> None:
    assert actual.long().tolist() == torch.tensor(expected).long().tolist()


@pytest.mark.parametrize("case", cases("openrlhf_prm_input.json"))
def test_openrlhf_input(case):
    given, expected = case["inputs"], case["outputs"]
    pad, eos = given["pad_token_id"], given["eos_token_id"]
    prompts = left_pad(given["prompts"], pad)
    responses = right_pad(given["responses"], pad)
    both = np.concatenate([prompts, responses], 1)
    mask = np.zeros_like(both)
    last = np.zeros(len(both), dtype=np.int64)
    for i, row in enumerate(both):
        # EOS is written after the last token that is neither EOS nor padding.
        real = np.flatnonzero((row != eos) & (row != pad))
        at = min(real[-1] + 1, len(row) - 1)
        row[at] = eos
        mask[i, real[0] : at + 1] = 1
        last[i] = at - prompts.shape[1]
    responses = both[:, prompts.shape[1] :]
    ends, ends_mask = step_ends(responses, last, given["separator_ids"])
    result = openrlhf_prm_input(
        torch.from_numpy(prompts),
        torch.from_numpy(responses),
        torch.from_numpy(mask),
        ends,
        ends_mask,
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
    is_eos = responses == eos
    last = np.where(is_eos.any(1), is_eos.argmax(1), buffer - 1)
    lengths = np.array([len(prompt) for prompt in given["prompts"]])
    width = prompts.shape[1]
    mask = np.concatenate(
        [
            np.arange(width) >= width - lengths[:, None],
            np.arange(buffer) <= last[:, None],
        ],
        axis=1,
    ).astype(np.int64)
    ends, ends_mask = step_ends(responses, last, given["separator_ids"])
    result = verl_prm_input(
        torch.from_numpy(prompts),
        torch.from_numpy(responses),
        torch.from_numpy(mask),
        ends,
        ends_mask,
        prm_newline_id=given["prm_newline_id"],
        pad_token_id=pad,
    )
    equal(result.input_ids, expected["input_ids"])
    equal(result.attention_mask, expected["attention_mask"])
    equal(result.position_ids, expected["position_ids"])
    is_end = torch.zeros(len(responses), buffer, dtype=torch.bool)
    is_end[ends_mask.nonzero()[:, 0], ends[ends_mask]] = True
    equal(is_end, expected["reward_mask"])
