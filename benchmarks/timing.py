"""How fast something is, and how fast the machine could be."""

import time
from collections.abc import Callable
from typing import Any

import torch


def seconds_of(run: Callable[[], Any]) -> float:
    """Seconds of a call, and of all that it has the GPU do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured FLOP/s of a large square matrix product."""
    size = 8192 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=dtype)

    def multiply() -> None:
        for _ in range(10):
            a @ a

    multiply()
    return 20 * size**3 / min(seconds_of(multiply) for _ in range(3))
