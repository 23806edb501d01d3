"""How good a policy is, and whether it reasons: benchmarks, estimators, reports."""

from typing import Any

__all__ = ["CARDS", "Benchmark", "Report", "evaluate", "load_benchmark"]


def __getattr__(name: str) -> Any:
    # Estimators are for programs without Ray or torch as well.
    if name in ("Benchmark", "load_benchmark", "CARDS"):
        from pure_rllib.evaluation import benchmarks as module
    elif name == "evaluate":
        from pure_rllib.evaluation import run as module  # type: ignore[no-redef]
    elif name == "Report":
        from pure_rllib.evaluation import report as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
