"""What the embedded models are made from."""

import json
from dataclasses import asdict
from typing import Any

from pure_rllib.arithmetic.task import TASK_M20B, TASK_M100, TASK_Y, TASK_Z
from scripts.embedded_models.prm import PRMRecipe
from scripts.embedded_models.sft import Phase, SFTRecipe

POLICY, PRM, PRM_ROUNDS = "arithmetic-policy", "arithmetic-prm", "arithmetic-prm-rounds"
FOLDER = "FOLDER"
"""Stands for a temporary folder in a command."""

# A policy stopped in the middle of the sudden rise of accuracy is slow to learn by RL:
# it lacks the look-up of operands. These ones have it, and know some facts wrongly
# instead, which RL can mend.
POLICY_RECIPES = {
    POLICY: SFTRecipe(
        TASK_Z,
        (Phase(340, faulty_share=0.2, faulty_probability=0.65),),
        sampled=0.28,
    ),
    "arithmetic-y-policy": SFTRecipe(
        TASK_Y,
        (
            # With few filler steps the look-up is learned sooner, and for good.
            Phase(600, task=TASK_Z),
            Phase(120, faulty_share=0.2, faulty_probability=0.55),
        ),
        sampled=0.28,
    ),
    "arithmetic-sparse-policy": SFTRecipe(
        TASK_M20B,
        (
            Phase(1000, faulty_share=0.5, faulty_probability=0.65),
            Phase(300, faulty_share=0.35, faulty_probability=0.65),
        ),
        matrix_lr=4e-3,
    ),
    # Nearly certain errors, and too many answers to guess among: what the policy does
    # not reach in a few samples it hardly reaches in 64.
    "arithmetic-hundred-policy": SFTRecipe(
        TASK_M100,
        (Phase(500), Phase(250, faulty_share=0.4, faulty_probability=0.8)),
        matrix_lr=4e-3,
        width=64,
    ),
}
PRM_RECIPE = PRMRecipe(TASK_Z)
# The second round: a policy finds what the first PRM lets pass, and the PRM learns it
# among fresh errors of every kind. The run counts twice.
ROUNDS_COMMANDS = (
    "train arithmetic_prm --seed 0 --out FOLDER/run "
    "--set report.rollouts_every=1 --set report.max_groups=16",
    "prm-train --model embedded:arithmetic-prm "
    "--data embedded:arithmetic-steps --rollouts FOLDER/run FOLDER/run "
    "--after-first-error keep --head-epochs 0 --head-dropout 0 --lr 1e-3 "
    "--batch-size 32 --micro-batch-size 32 --out FOLDER/prm",
)
NAMES = (*POLICY_RECIPES, PRM, PRM_ROUNDS)


def describe(name: str) -> dict[str, Any]:
    """Returns everything that decides what `name` becomes, as JSON holds it."""
    described: dict[str, Any]
    if name in POLICY_RECIPES:
        described = {"sft": asdict(POLICY_RECIPES[name])}
    elif name == PRM:
        described = {"prm": asdict(PRM_RECIPE), "policy": POLICY}
    else:
        described = {"commands": ROUNDS_COMMANDS}
    return json.loads(json.dumps(described))
