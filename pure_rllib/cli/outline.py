"""The outline of an experiment: its top-level keys, without the setters' sections."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pure_rllib.cli.yaml_text import nearest
from pure_rllib.reporting.metrics import METRICS

OUTLINE_KEYS: dict[str, tuple[str, ...] | None] = {
    # Top-level keys; those with a fixed set of keys of their own name them.
    "run": None,
    "env": None,
    "stop": None,
    "config": None,
    "description": None,
    "num_samples": None,
    "metric": None,
    "mode": None,
    "scheduler": None,
    "max_concurrent": None,
    "arms": None,
    "seeds": None,
    "wandb": None,
    "checkpoint": ("every", "keep"),
    "report": ("rollouts_every", "max_groups", "figure", "reach"),
    "ray": ("num_cpus", "num_gpus", "object_store_memory", "address"),
}
OUTLINE_DEFAULTS: dict[str, dict[str, Any]] = {
    "checkpoint": {"every": 10, "keep": 2},
    "report": {"rollouts_every": 10, "max_groups": 8, "figure": None, "reach": None},
}
_STOP_KEYS = ("training_iteration", "time_total_s", "num_env_steps_sampled_lifetime")


def check_outline(name: str, source: str, spec: Any) -> dict[str, Any]:
    """Checks everything about the outline that needs no knowledge of the setters."""
    if not isinstance(spec, dict):
        raise ValueError(f"{source}: `{name}` ({spec!r}) must be a mapping.")
    for key in spec:
        if key not in OUTLINE_KEYS:
            raise ValueError(
                f"{source}: unknown key `{key}` beside `run`, `stop` and `config`"
                f"{nearest(key, list(OUTLINE_KEYS))}. It may be one of "
                f"{', '.join(OUTLINE_KEYS)}."
            )
        known, value = OUTLINE_KEYS[key], spec[key]
        if known is not None:
            _check_keys(source, key, value, known)
    if spec.get("run", "PURE") != "PURE":
        raise ValueError(f"{source}: `run` ({spec['run']}) must be PURE.")
    for key in ("stop", "config", "arms", "wandb", "scheduler"):
        if not isinstance(spec.get(key, {}), dict):
            raise ValueError(f"{source}: `{key}` ({spec[key]!r}) must be a mapping.")
    spec = {"run": "PURE", "stop": {}, "config": {}, **spec}
    if "env" in spec:
        spec["config"].setdefault("environment", {}).setdefault("env", spec.pop("env"))
    for section, values in [
        *spec["config"].items(),
        *((f"arms.{arm}", values) for arm, values in spec.get("arms", {}).items()),
    ]:
        if not isinstance(values, dict):
            raise ValueError(
                f"{source}: `{section}` ({values!r}) must be a mapping of settings."
            )
    _check_numbers(source, spec)
    _check_stop(source, spec["stop"])
    return spec


def _check_keys(source: str, section: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{source}: `{section}` ({value!r}) must be a mapping.")
    for key in value:
        if key not in known:
            raise ValueError(
                f"{source}: unknown key `{key}` in section `{section}`"
                f"{nearest(key, known)}. It may hold {', '.join(known)}."
            )


def _check_numbers(source: str, spec: Mapping[str, Any]) -> None:
    for key in (
        "num_samples",
        "max_concurrent",
        "checkpoint.every",
        "checkpoint.keep",
        "report.rollouts_every",
        "report.max_groups",
    ):
        section, _, name = key.rpartition(".")
        value = (spec.get(section, {}) if section else spec).get(name, 1)
        if type(value) is not int or value < 1:
            raise ValueError(f"{source}: `{key}` ({value!r}) must be an integer >= 1.")
    seeds = spec.get("seeds", [])
    if not isinstance(seeds, list) or any(type(seed) is not int for seed in seeds):
        raise ValueError(f"{source}: `seeds` ({seeds!r}) must be a list of integers.")


def _check_stop(source: str, stop: Mapping[str, Any]) -> None:
    known = [*_STOP_KEYS, *METRICS]
    for key, value in stop.items():
        if key not in known:
            raise ValueError(
                f"{source}: unknown metric `{key}` in section `stop`"
                f"{nearest(key, known)}. docs/metrics.md lists the metrics."
            )
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or math.isnan(value):
            raise ValueError(f"{source}: `stop.{key}` ({value!r}) must be a number.")
    last = stop.get("training_iteration")
    if type(last) is not int or last < 1:
        raise ValueError(
            f"{source}: `stop.training_iteration` ({last!r}) must be an integer >= 1, "
            "because every run must end. Set `stop: {training_iteration: 60}`."
        )
