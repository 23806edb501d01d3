"""Makes the embedded models again.

    python -m scripts.embedded_models NAME ... --out FOLDER

Each gets a folder FOLDER/NAME with weights, tokenizer and `recipe.json`: what it was
made from, and its measured figures. The PRMs start from the models that the package
holds, so to replace all of them, make them in the order of `recipes.NAMES` with
`--out pure_rllib/arithmetic/models`. On two cores arithmetic-policy takes 20 seconds,
arithmetic-y-policy 40, the others 2 to 4 minutes each.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
)

from pure_rllib.arithmetic.prm_quality import evaluate_prm
from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.models.loading import EMBEDDED, resolve_model
from scripts.embedded_models.prm import train_prm
from scripts.embedded_models.recipes import (
    FOLDER,
    NAMES,
    POLICY,
    POLICY_RECIPES,
    PRM,
    PRM_RECIPE,
    ROUNDS_COMMANDS,
    describe,
)
from scripts.embedded_models.sft import train_policy
from scripts.embedded_models.training import own_random_state

Made = tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]


def make(name: str) -> Made:
    """Makes one model; returns it with its tokenizer and its measured figures."""
    if name in POLICY_RECIPES:
        return train_policy(POLICY_RECIPES[name])
    folder = resolve_model(EMBEDDED + POLICY)
    policy = Qwen2ForCausalLM.from_pretrained(folder).eval()
    if name == PRM:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prm, figures = train_prm(PRM_RECIPE, policy, tokenizer)
        return prm, tokenizer, figures
    return _prm_by_commands(policy)


def _prm_by_commands(policy: Qwen2ForCausalLM) -> Made:
    """Runs commands as a user would, and takes the PRM that the last one writes."""
    start = time.monotonic()
    with TemporaryDirectory(prefix="pure_rllib-") as folder:
        for command in ROUNDS_COMMANDS:
            words = command.replace(FOLDER, folder).split()
            # One thread, as for all embedded models: see `own_random_state`.
            subprocess.run(
                [sys.executable, "-m", "pure_rllib.cli", *words],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                check=True,
            )
        written = Path(folder, "prm")
        prm = Qwen2ForTokenClassification.from_pretrained(written).eval()
        tokenizer = AutoTokenizer.from_pretrained(written)
    with own_random_state(0):
        figures = evaluate_prm([prm], policy, tokenizer, TASK_Z)
    return prm, tokenizer, {**figures, "seconds": time.monotonic() - start}


def main() -> None:
    """Makes the models that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=NAMES, metavar="NAME")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    for name in options.names:
        model, tokenizer, figures = make(name)
        folder = options.out / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        recipe = {"name": name, "recipe": describe(name), "figures": figures}
        (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
        print(f"{folder}: {json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    main()
