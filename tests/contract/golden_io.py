"""What the tests of PURE's own golden vectors share."""

import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.golden_files import golden_folder, read_golden
from tests.reference import openrlhf

GOLDEN_DIR = golden_folder("PURE_GOLDEN_DIR", "golden")
TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "bfloat16": 2e-2}
STATISTICS_TOLERANCE = 1e-7  # float64 inputs, but float32 statistics in the reference


def load(name: str) -> dict[str, Any]:
    return read_golden(GOLDEN_DIR, name)


def mask_of(value: Any) -> Tensor:
    return torch.tensor(value).bool()


def padded(rows: list[list[Any]], width: int, pad: Any, left: bool = False) -> Tensor:
    fill = [[pad] * (width - len(row)) for row in rows]
    pairs = zip(fill, rows, strict=True)
    return torch.tensor([f + row if left else row + f for f, row in pairs])


def widest(rows: list[list[Any]]) -> int:
    return max(map(len, rows))


def cases(names: Iterable[str]) -> list[Any]:
    """One parameter set (file, index) for each case of the files."""
    return [
        pytest.param(name, index, id=f"{name}-{case['id']}")
        for name in names
        for index, case in enumerate(load(name)["cases"])
    ]


def is_separator(ids: Tensor, inputs: dict[str, Any]) -> Tensor:
    return torch.isin(ids, torch.tensor(inputs["separator_ids"]))


def verify(response_ids: list[int], answer: str, vocab: list[str]) -> float:
    """The stand-in for an answer checker that the goldens were made with."""
    text = "".join(vocab[i] for i in response_ids)
    boxed = re.findall(r"\\boxed\{(.*?)\}", text)
    return float(answer == "null" or (bool(boxed) and boxed[-1] == answer))


def openrlhf_sequences(
    inputs: dict[str, Any], prompts: list[list[int]], responses: list[list[int]]
) -> tuple[openrlhf.Sequences, Tensor]:
    """Rows of one micro batch, and flags on the last tokens of steps."""
    pad, num_actions = inputs["pad_token_id"], widest(responses)
    sequences = openrlhf.build_sequences(
        padded(prompts, widest(prompts), pad, left=True),
        padded(responses, num_actions, pad),
        eos_token_id=inputs["eos_token_id"],
        pad_token_id=pad,
    )
    separators = is_separator(sequences.token_ids[:, -num_actions:], inputs)
    ends = openrlhf.step_end_mask(separators, sequences.action_mask)
    return sequences, ends


def verl_temperature(credit_assignment: float | str) -> float | None:
    return credit_assignment if isinstance(credit_assignment, float) else None
