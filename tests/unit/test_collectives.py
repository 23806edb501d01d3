"""Sums over two real gloo processes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pure_rllib.distributed import collectives

# The file is loaded by its path: the package around it would start by loading Ray.
_PROGRAM = """
import importlib.util, json, sys
import torch
import torch.distributed as dist

path, store, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("collectives", path)
collectives = importlib.util.module_from_spec(spec)
spec.loader.exec_module(collectives)
dist.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2
)
# Buckets of 4 numbers, so that the parameters below fill several.
collectives._BUCKET_ELEMENTS = 4

# a: both have a gradient; b: only rank 0; c: only rank 1; d: frozen; e: neither;
# f: larger than a bucket; g: another dtype.
sizes = {"a": 3, "b": 2, "c": 2, "d": 2, "e": 1, "f": 7, "g": 2}
parameters = {
    name: torch.nn.Parameter(torch.zeros(size)) for name, size in sizes.items()
}
parameters["g"] = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
parameters["d"].requires_grad_(False)
for name in ("a", "bc"[rank], "f", "g"):
    parameters[name].grad = torch.full_like(parameters[name], 1.0 + rank)
collectives.sum_gradients(parameters.values())
grads = {
    name: None if p.grad is None else p.grad.float().tolist()
    for name, p in parameters.items()
}

scalar = collectives.sum_over_learners(torch.tensor(2.5 + rank))
moments = collectives.sum_over_learners(torch.tensor([1.0, rank]).double())
tied = torch.full((2,), float(rank))
collectives.broadcast_parameters([tied, tied, torch.full((3,), rank + 1.0)])
print(json.dumps({
    "ranks": collectives.num_ranks(), "grads": grads, "scalar": scalar.item(),
    "moments": moments.tolist(), "broadcast": tied.tolist(),
}))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_sum_gradients_and_share_parameters(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _PROGRAM, collectives.__file__]
    arguments.append(str(tmp_path / "store"))
    processes = [
        subprocess.Popen([*arguments, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    reports: list[dict[str, Any]] = [json.loads(output) for output in outputs]
    assert reports[0] == reports[1]
    report = reports[0]
    assert report["ranks"] == 2
    assert report["grads"] == {
        "a": [3.0] * 3,  # 1 + 2
        "b": [1.0] * 2,  # 1 + nothing
        "c": [2.0] * 2,  # nothing + 2
        "d": None,
        "e": [0.0],
        "f": [3.0] * 7,
        "g": [3.0] * 2,
    }
    assert report["scalar"] == 6.0  # 2.5 + 3.5
    assert report["moments"] == [2.0, 1.0]
    assert report["broadcast"] == [0.0, 0.0]


def test_what_breaks_while_items_are_made_is_a_broken_collective() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise RuntimeError("connection closed")

    made = collectives.collectively("gather", items())
    assert next(made) == 1
    with pytest.raises(collectives.CollectiveBrokenError, match=r'"gather".*closed'):
        next(made)
    assert list(collectives.collectively("gather", iter([1, 2]))) == [1, 2]


@pytest.mark.parametrize(
    ("limit_s", "kind", "told"),
    [
        (60.0, collectives.CollectiveBrokenError, 'failed in phase "inner"'),
        (0.0, collectives.CollectiveTimeoutError, 'waited for 0 s in phase "inner"'),
    ],
)
def test_the_innermost_phase_is_named(
    monkeypatch: pytest.MonkeyPatch,
    limit_s: float,
    kind: type[collectives.CollectiveBrokenError],
    told: str,
) -> None:
    monkeypatch.setattr(collectives, "_limit_s", limit_s)
    with (
        pytest.raises(collectives.CollectiveBrokenError, match=told) as raised,
        collectives.collective("outer"),
        collectives.collective("inner"),
    ):
        raise RuntimeError("connection closed")
    assert raised.type is kind


@pytest.mark.parametrize("error", [KeyError("own"), torch.OutOfMemoryError("own")])
def test_other_errors_in_a_collective_are_left_alone(error: Exception) -> None:
    with pytest.raises(type(error), match="own"), collectives.collective("sum"):
        raise error


def test_with_one_learner_nothing_changes() -> None:
    assert collectives.num_ranks() == 1
    with_grad, without = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    with_grad.grad = torch.tensor([1.0, 2.0])
    collectives.sum_gradients([with_grad, without])
    assert with_grad.grad.tolist() == [1.0, 2.0]
    assert without.grad is None
    tensor = torch.tensor([4.0])
    assert collectives.sum_over_learners(tensor) is tensor
    collectives.broadcast_parameters([tensor])
    assert tensor.tolist() == [4.0]
