"""How good a policy is, and whether it reasons: benchmarks, estimators, reports."""

from importlib import import_module
from typing import Any

__all__ = ["CARDS", "Benchmark", "Report", "evaluate", "load_benchmark"]

# Estimators are for programs without Ray or torch as well: the rest is imported late.
_MODULES = {
    "CARDS": "benchmarks",
    "Benchmark": "benchmarks",
    "Report": "report",
    "evaluate": "run",
    "load_benchmark": "benchmarks",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
