"""Imports point down only. The table is the rule; CONTRIBUTING explains it."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "pure_rllib"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the top to the bottom: a part may import what stands below its line. Of the parts
# of one line only those before a comma may import others, those behind it.
LAYERS = """
cli
testing
prm_training | algorithms
connectors, learners | evaluation
rollouts
reporting
hacking, envs
arithmetic
rewards | weight_sync
generation, data
credit | models | distributed
whole_folder | old_paths | setting_types
"""


def _allowed() -> dict[str, set[str]]:
    """What each part may import, beside itself."""
    allowed: dict[str, set[str]] = {"": {"old_paths"}}
    below: set[str] = set()
    for line in reversed(LAYERS.strip().splitlines()):
        beside = [
            [part.strip() for part in side.split(",")] for side in line.split("|")
        ]
        for parts in beside:
            for i, part in enumerate(parts):
                allowed[part] = below | set(parts[i + 1 :])
        below = below | {part for parts in beside for part in parts}
    return allowed


ALLOWED = _allowed()
# What a laptop's script may use without Ray; but the PRM's actors are Ray's.
NO_RAY = {"arithmetic", "credit", "data", "envs", "generation", "prm_training"}
NO_RAY |= {"rewards"}
RAY_FILES = {"rewards/prm/actors.py"}
OPTIONAL = {"vllm", "deepspeed", "peft", "wandb"}
OPTIONAL |= {"reasoning_gym", "gem", "textarena", "openenv"}
ROOT_LINKS = {"algorithms", "envs", "tuned_examples"}


def part_of(module: str) -> str:
    """The part that a module of ours (named below `pure_rllib`) belongs to."""
    return module.split(".")[0]


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
    name = path.relative_to(PACKAGE)
    own_module = ".".join(name.with_suffix("").parts)
    own = part_of(own_module.removesuffix("__init__").rstrip("."))
    tree = ast.parse(source)
    wrong = []
    for module, line in imported(tree):
        root, _, below = module.partition(".")
        if module.startswith("."):
            wrong.append(f"line {line}: relative import")
        elif root in ROOT_LINKS:
            wrong.append(f"line {line}: {module} goes through a link of the root")
        elif root == "ray" and own in NO_RAY and str(name) not in RAY_FILES:
            wrong.append(f"line {line}: {own} must not import ray")
        elif root in {"gymnasium", "transformers"} and own == "credit":
            wrong.append(f"line {line}: credit must not import {root}")
        elif root == "pure_rllib" and below and below != "__version__":
            part = part_of(below)
            if part not in {own, *ALLOWED.get(own, set())}:
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
        ("rewards/base.py", "def f():\n    from pure_rllib.envs import vector"),
        ("rewards/base.py", "from pure_rllib.weight_sync import check"),
        ("envs/vector.py", "from pure_rllib import algorithms"),
        ("envs/vector.py", "from pure_rllib.hacking import flags"),
        ("envs/vector.py", "from . import math_env"),
        ("reporting/metrics.py", "from pure_rllib.rollouts.group import X"),
        ("algorithms/pure/pure.py", "import vllm"),
        ("generation/vllm_engine.py", "from vllm import LLM"),
        ("generation/vllm_engine.py", "def f():\n    import ray"),
        ("cli/main.py", "from envs.math_env import MathEnv"),
    ],
)
def test_a_wrong_import_is_found(name: str, source: str) -> None:
    assert violations(PACKAGE / name, source)
