"""From a model reference to a folder; embedded models are trained on first use.

A reference is a local folder, a hub id, or `embedded:<name>`. Embedded models lie in
`$PURE_RLLIB_CACHE` (default `~/.cache/pure_rllib`), one folder per recipe.
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, Qwen2ForCausalLM

from pure_rllib.arithmetic.commands import prm_by_commands
from pure_rllib.arithmetic.prm import train_prm
from pure_rllib.arithmetic.recipes import (
    ENTRIES,
    CommandsEntry,
    PolicyEntry,
    describe,
    needed,
    recipe_hash,
)
from pure_rllib.arithmetic.sft import train_policy
from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.arithmetic.training import Progress

PREFIX = "embedded:"
RECIPE_FILE = "recipe.json"
_POLL_S = 0.5


def cache_folder() -> Path:
    """Returns the folder of the embedded models; it need not exist."""
    default = Path.home() / ".cache" / "pure_rllib"
    return Path(os.environ.get("PURE_RLLIB_CACHE") or default)


def model_folder(name: str) -> Path:
    """Returns where the embedded model `name` lies once it is made.

    Raises:
        ValueError: if there is no embedded model of this name.
    """
    if name not in ENTRIES:
        known = ", ".join(PREFIX + known for known in ENTRIES)
        raise ValueError(
            f"`{PREFIX}{name}` must be an embedded model; because there is no recipe "
            f"of this name. Set one of {known}, a folder or a hub id."
        )
    return cache_folder() / f"{name}-{recipe_hash(name)}"


def resolve_model(ref: str, *, progress: Progress | None = None) -> str:
    """Turns a model reference into what `from_pretrained` takes.

    Safe to call from several processes at once: one trains, the others wait.

    Args:
        ref: a folder or hub id, passed through, or `embedded:<name>`, trained if it is
            not in the cache.
        progress: called with a line of text and the fraction done, in [0, 1].

    Returns:
        A local folder with weights in safetensors, tokenizer and `recipe.json` (recipe
        and measured figures), or `ref` itself.

    Raises:
        ValueError: if an embedded model has an unknown name.
        RuntimeError: if training missed its target.
    """
    if not ref.startswith(PREFIX):
        return ref
    name = ref.removeprefix(PREFIX)
    folder = model_folder(name)
    if not folder.is_dir():
        # Before the lock of this model: what it starts from has a lock of its own.
        for other in needed(name):
            resolve_model(PREFIX + other, progress=progress)
        with _locked(folder, progress):
            if not folder.is_dir():
                _make(name, folder, progress)
    return str(folder)


def prepare(
    names: Iterable[str], progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """Makes several embedded models; one that two of them need is made once.

    Args:
        names: names without the prefix.
        progress: called with a line of text and the fraction of all models done.

    Returns:
        For each name what its `recipe.json` holds.

    Raises:
        ValueError: if a name is unknown, before anything is trained.
    """
    wanted = list(dict.fromkeys(part for name in names for part in _with_needed(name)))
    prepared = {}
    for done, name in enumerate(wanted):
        part = _part_of(progress, done, len(wanted)) if progress else None
        folder = resolve_model(PREFIX + name, progress=part)
        prepared[name] = read_recipe(folder)
    return prepared


def read_recipe(folder: str | Path) -> dict[str, Any]:
    """Reads the recipe and the measured figures of an embedded model's folder."""
    return json.loads((Path(folder) / RECIPE_FILE).read_text())


def _with_needed(name: str) -> list[str]:
    """Puts before a model what it is made from."""
    model_folder(name)
    return [*(part for other in needed(name) for part in _with_needed(other)), name]


def _part_of(progress: Progress, done: int, total: int) -> Progress:
    return lambda text, fraction: progress(text, (done + fraction) / total)


@contextmanager
def _locked(folder: Path, progress: Progress | None) -> Iterator[None]:
    """Lets one process at a time make a folder. A dead process leaves no lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if progress and not told:
                    progress(f"{folder.name}: another process is making it", 0.0)
                told = True
                time.sleep(_POLL_S)
        yield


def _make(name: str, folder: Path, progress: Progress | None) -> None:
    """Trains a model into a temporary folder, which then takes its name at once."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        model, tokenizer, figures = _train(name, progress)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        recipe = {"name": name, "recipe": describe(name), "figures": figures}
        (temporary / RECIPE_FILE).write_text(json.dumps(recipe, indent=2) + "\n")
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _train(name: str, progress: Progress | None) -> tuple[Any, Any, dict[str, Any]]:
    entry = ENTRIES[name]
    if isinstance(entry, PolicyEntry):
        return train_policy(entry.sft, progress)
    base = resolve_model(PREFIX + needed(name)[0])
    tokenizer = AutoTokenizer.from_pretrained(base)
    policy = Qwen2ForCausalLM.from_pretrained(base).eval()
    if isinstance(entry, CommandsEntry):
        return prm_by_commands(entry.commands, policy, TASK_Z, progress)
    prm, figures = train_prm(entry.prm, policy, tokenizer, progress)
    return prm, tokenizer, figures
