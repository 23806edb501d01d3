"""Golden vectors on disk, of any kind: finding, reading and comparing them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

REPO = Path(__file__).resolve().parents[2]


def golden_folder(variable: str, name: str) -> Path:
    """The folder that a variable names, or `../shared/reference/NAME`.

    Skips the module that asks for one that is not there.
    """
    folder = Path(os.environ.get(variable, REPO / "../shared/reference" / name))
    if not folder.is_dir():
        pytest.skip(
            f"no golden vectors in {folder}: set {variable}", allow_module_level=True
        )
    return folder


def read_golden(folder: Path, name: str) -> dict[str, Any]:
    golden = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert golden["cases"], f"{name} has no cases"
    return golden


def numbers(value: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """A tensor of nested lists in which "nan", "inf" and "-inf" are text."""

    def read(item: Any) -> Any:
        return [read(i) for i in item] if isinstance(item, list) else float(item)

    return torch.tensor(read(value), dtype=torch.float64).to(dtype)


def same(actual: Any, expected: Any, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual).double(),
        numbers(expected),
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
    )


def float_dtype(case: dict[str, Any]) -> torch.dtype:
    return getattr(torch, case["dtype"])


def group_ids(names: list[str]) -> Tensor:
    return torch.tensor([sorted(set(names)).index(name) for name in names])
