"""The embedded models by name, and the recipes that they are made from."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from pure_rllib.embedded.prm import PRMRecipe
from pure_rllib.embedded.sft import Phase, SFTRecipe
from pure_rllib.embedded.task import TASK_M20B, TASK_Y, TASK_Z

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


Entry = PolicyEntry | PRMEntry

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
    else:
        described["prm"] = asdict(entry.prm)
        described["policy"] = describe(entry.policy)
    return described


def recipe_hash(name: str) -> str:
    """Names the recipe's content in 12 hexadecimal digits."""
    text = json.dumps(describe(name), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
