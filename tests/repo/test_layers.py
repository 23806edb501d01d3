"""Imports point down only. The table is the rule; CONTRIBUTING explains it."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "pure_rllib"
FILES = sorted(PACKAGE.rglob("*.py"))

# Which part may import which others of ours. A part is the first name below the
# package, or the longest dotted name that stands here. A part may import itself.
_LEAVES = {"generation.base", "generation.model_files", "rewards.boxed"}
_LEAVES |= {"generation.deepspeed_import"}
_BELOW_EMBEDDED = {"credit", "data", "generation", "rewards", *_LEAVES}
_BELOW_ENVS = {*_BELOW_EMBEDDED, "embedded"}
_BELOW_ALGORITHMS = {*_BELOW_ENVS, "envs", "evaluation", "reporting.metrics"}
_ABOVE_ENVS = {"algorithms", "reporting", "reporting.progress", "prm_training"}
_TOP = {*_BELOW_ALGORITHMS, *_ABOVE_ENVS}
ALLOWED: dict[str, set[str]] = {
    "credit": set(),
    "reporting.hacking_metrics": set(),
    "reporting.metrics": {"reporting.hacking_metrics"},
    "reporting": {"reporting.metrics", "rewards", "rewards.boxed", "credit"},
    "data": {"credit", "rewards.boxed"},
    # Leaves that their neighbours share.
    "generation.base": set(),
    "generation.deepspeed_import": set(),
    "generation.model_files": set(),
    "rewards.boxed": set(),
    "rewards": {"credit", *_LEAVES},
    "generation": {"credit", "generation.base", "generation.model_files"},
    "embedded": _BELOW_EMBEDDED,
    "evaluation": _BELOW_ENVS | {"reporting", "reporting.metrics"},
    "envs": _BELOW_ENVS,
    "prm_training": _BELOW_ENVS | {"reporting"},
    "algorithms": _BELOW_ALGORITHMS | {"reporting"},
    "reporting.progress": _TOP,
    "settings": _TOP,
    "experiment": _TOP | {"settings"},
    "run": _TOP | {"settings", "experiment"},
    "cli": _TOP | {"experiment", "run"},
    "testing": _BELOW_ALGORITHMS,
    "": set(),
}
NO_ENGINES = {"credit", "data", "embedded", "envs", "generation", "prm_training"}
NO_ENGINES |= {"rewards"}
ENGINES = {"ray", "vllm", "deepspeed"}
# Sampling is what vLLM does: generation may use it, inside functions.
MAY_USE = {"generation": {"vllm"}}
OPTIONAL = {"vllm", "deepspeed", "peft", "wandb"}
ROOT_LINKS = {"algorithms", "envs", "tuned_examples"}


def part_of(module: str) -> str:
    """The part that a module of ours (named below `pure_rllib`) belongs to."""
    names = module.split(".")
    dotted = [".".join(names[:i]) for i in range(len(names), 0, -1)]
    return next((name for name in dotted if name in ALLOWED), names[0])


def imported(tree: ast.AST) -> list[tuple[str, int]]:
    """Every module that is imported anywhere below a node, with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found.append((module, node.lineno))
            if module == "pure_rllib" or module.startswith("pure_rllib."):
                # `from pure_rllib import envs` may name a part.
                names = [alias.name for alias in node.names]
                found += [(f"{module}.{name}", node.lineno) for name in names]
    return found


def violations(path: Path, source: str) -> list[str]:
    """What a file of the package imports against the rules."""
    own_module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    own = part_of(own_module.removesuffix("__init__").rstrip("."))
    tree = ast.parse(source)
    wrong = []
    for module, line in imported(tree):
        root, _, below = module.partition(".")
        if module.startswith("."):
            wrong.append(f"line {line}: relative import")
        elif root in ROOT_LINKS:
            wrong.append(f"line {line}: {module} goes through a link of the root")
        elif root in ENGINES - MAY_USE.get(own, set()) and own in NO_ENGINES:
            wrong.append(f"line {line}: {own} must not import {root}")
        elif root in {"gymnasium", "transformers"} and own == "credit":
            wrong.append(f"line {line}: credit must not import {root}")
        elif root == "pure_rllib" and below and below != "__version__":
            part = part_of(below)
            if part != own and part not in ALLOWED.get(own, set()):
                wrong.append(f"line {line}: {own} must not import {part}")
    at_import = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    for node in at_import:
        for module, line in imported(node):
            if module.split(".")[0] in OPTIONAL:
                wrong.append(f"line {line}: {module} is optional: import it in use")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    assert violations(path, path.read_text()) == []


def test_every_part_has_a_layer() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert parts - {"__init__"} <= set(ALLOWED), "name the new part in ALLOWED"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("credit/steps.py", "import ray"),
        ("credit/steps.py", "from pure_rllib.rewards.base import StepScorer"),
        ("rewards/base.py", "def f():\n    from pure_rllib.data import problems"),
        ("envs/vector.py", "from pure_rllib import algorithms"),
        ("envs/vector.py", "from . import math_env"),
        ("reporting/metrics.py", "from pure_rllib.reporting.records import X"),
        ("algorithms/pure/pure.py", "import vllm"),
        ("generation/vllm_engine.py", "from vllm import LLM"),
        ("generation/vllm_engine.py", "def f():\n    import ray"),
        ("rewards/base.py", "def f():\n    import vllm"),
        ("cli.py", "from envs.math_env import MathEnv"),
    ],
)
def test_a_wrong_import_is_found(name: str, source: str) -> None:
    assert violations(PACKAGE / name, source)
