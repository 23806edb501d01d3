"""A PRM that commands of `pure-rllib` make, each in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
)

from pure_rllib.arithmetic.prm_quality import evaluate_prm
from pure_rllib.arithmetic.task import ArithmeticTask
from pure_rllib.arithmetic.training import Progress, own_random_state

FOLDER = "FOLDER"
"""Stands for the temporary folder in a command."""
_SHOWN = 2000


def prm_by_commands(
    commands: Sequence[str],
    policy: Qwen2ForCausalLM,
    task: ArithmeticTask,
    progress: Progress | None = None,
) -> tuple[Qwen2ForTokenClassification, PreTrainedTokenizerBase, dict[str, Any]]:
    """Runs commands and takes the PRM that the last one writes to FOLDER/prm.

    Args:
        commands: words after `pure-rllib`.
        policy: whose samples the PRM is measured on.
        task: the family of problems that it is measured on.
        progress: called with each command and the fraction done.

    Returns:
        The PRM, its tokenizer and its quality, see `evaluate_prm`, with `seconds`.

    Raises:
        ValueError: a package that the last command needs is not installed.
        RuntimeError: a command failed.
    """
    if find_spec("accelerate") is None:
        # Not after the minutes of the commands before.
        raise ValueError(
            "`accelerate` (not installed) must be there, because `pure-rllib "
            "prm-train` makes this PRM with it. Run `pip install 'pure-rllib[prm]'`."
        )
    start = time.monotonic()
    with TemporaryDirectory(prefix="pure_rllib-") as folder:
        for done, command in enumerate(commands):
            if progress:
                progress(f"PRM: pure-rllib {command}", done / len(commands))
            _run([word.replace(FOLDER, folder) for word in command.split()])
        written = Path(folder, "prm")
        prm = Qwen2ForTokenClassification.from_pretrained(written).eval()
        tokenizer = AutoTokenizer.from_pretrained(written)
    with own_random_state(0):
        figures = evaluate_prm([prm], policy, tokenizer, task)
    return prm, tokenizer, {**figures, "seconds": time.monotonic() - start}


def _run(words: list[str]) -> None:
    # One thread, as for all embedded models: see `own_random_state`.
    done = subprocess.run(
        [sys.executable, "-m", "pure_rllib.cli.main", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"`pure-rllib {' '.join(words)}` must end with status 0, because an "
            f"embedded model is made by it; it ended with {done.returncode}:\n"
            f"{done.stdout[-_SHOWN:]}"
        )
