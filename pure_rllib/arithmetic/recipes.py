"""The embedded models by name, and the recipes that they are made from."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from pure_rllib.arithmetic.prm import PRMRecipe
from pure_rllib.arithmetic.sft import Phase, SFTRecipe
from pure_rllib.arithmetic.task import TASK_M20B, TASK_Y, TASK_Z

# Raised when the code changes what a recipe makes, so that old caches are not used.
RECIPE_VERSION = 2


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A start policy.

    Attributes:
        sft: how it is taught.
        text: one line for lists.
    """

    sft: SFTRecipe
    text: str


@dataclass(frozen=True, slots=True)
class PRMEntry:
    """A neural PRM.

    Attributes:
        prm: how it is taught.
        policy: name of the policy that it starts from.
        text: one line for lists.
    """

    prm: PRMRecipe
    policy: str
    text: str


@dataclass(frozen=True, slots=True)
class CommandsEntry:
    """A PRM that is made by commands of `pure-rllib`, as a user would make it.

    Attributes:
        commands: what follows `pure-rllib`; see `prm_by_commands`.
        needs: embedded models that they start from; the first is the policy whose
            samples the PRM is measured on.
        text: one line for lists.
    """

    commands: tuple[str, ...]
    needs: tuple[str, ...]
    text: str


Entry = PolicyEntry | PRMEntry | CommandsEntry

ENTRIES: dict[str, Entry] = {
    # A policy stopped in the middle of the sudden rise of accuracy is slow to learn by
    # RL: it lacks the look-up of operands. These ones have it, and know some facts
    # wrongly instead, which RL can mend.
    "arithmetic-policy": PolicyEntry(
        SFTRecipe(
            TASK_Z,
            (Phase(340, faulty_share=0.2, faulty_probability=0.65),),
            sampled=0.28,
        ),
        "chain arithmetic modulo 10 with some wrong facts, unsure of itself",
    ),
    "arithmetic-y-policy": PolicyEntry(
        SFTRecipe(
            TASK_Y,
            (
                # With few filler steps the look-up is learned sooner, and for good.
                Phase(600, task=TASK_Z),
                Phase(120, faulty_share=0.2, faulty_probability=0.55),
            ),
            sampled=0.28,
        ),
        "the same with more filler steps",
    ),
    "arithmetic-sparse-policy": PolicyEntry(
        SFTRecipe(
            TASK_M20B,
            (
                Phase(1000, faulty_share=0.5, faulty_probability=0.65),
                Phase(300, faulty_share=0.35, faulty_probability=0.65),
            ),
            matrix_lr=4e-3,
        ),
        "long chains modulo 20, taught with systematic errors",
    ),
    "arithmetic-prm": PRMEntry(
        PRMRecipe(TASK_Z),
        "arithmetic-policy",
        "neural PRM for arithmetic-policy",
    ),
    # The second round: a policy finds what the first PRM lets pass, and the PRM learns
    # it among fresh errors of every kind. The run counts twice.
    "arithmetic-prm-rounds": CommandsEntry(
        (
            "train arithmetic_prm --seed 0 --out FOLDER/run "
            "--set report.rollouts_every=1 --set report.max_groups=16",
            "prm-train --model embedded:arithmetic-prm "
            "--data embedded:arithmetic-steps --rollouts FOLDER/run FOLDER/run "
            "--after-first-error keep --head-epochs 0 --head-dropout 0 --lr 1e-3 "
            "--batch-size 32 --micro-batch-size 32 --out FOLDER/prm",
        ),
        ("arithmetic-policy", "arithmetic-prm"),
        "arithmetic-prm after a second round, on rollouts of a policy trained on it",
    ),
}


def describe(name: str) -> dict[str, Any]:
    """Returns everything that decides what `name` becomes, ready for JSON."""
    entry = ENTRIES[name]
    described: dict[str, Any] = {"version": RECIPE_VERSION}
    if isinstance(entry, PolicyEntry):
        described["sft"] = asdict(entry.sft)
        for phase in described["sft"]["phases"]:
            if phase["task"] is None:
                del phase["task"]  # the recipe's, which stands beside it
    elif isinstance(entry, CommandsEntry):
        described["commands"] = list(entry.commands)
        described["needs"] = {name: describe(name) for name in entry.needs}
    else:
        described["prm"] = asdict(entry.prm)
        described["policy"] = describe(entry.policy)
    return described


def needed(name: str) -> tuple[str, ...]:
    """Names the embedded models that `name` is made from, in the order of making."""
    entry = ENTRIES[name]
    if isinstance(entry, PolicyEntry):
        return ()
    return entry.needs if isinstance(entry, CommandsEntry) else (entry.policy,)


def recipe_hash(name: str) -> str:
    """Names the recipe's content in 12 hexadecimal digits."""
    text = json.dumps(describe(name), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
