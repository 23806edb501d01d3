"""Solutions whose steps are labelled right or wrong, and reading them. S steps."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pure_rllib.arithmetic.checker import check_steps
from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.arithmetic.traces import TraceMaker, generated_steps
from pure_rllib.data.files import read_rows
from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.prm_training.benchmarks import BenchmarkItem
from pure_rllib.prm_training.prm800k import Neutral, phase_tree, stepwise_tree
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.prm.rows import plain_ids

ARITHMETIC_STEPS = "embedded:arithmetic-steps"
AfterFirstError = Literal["keep", "drop"]


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """One solution with what is known of its steps.

    Attributes:
        prompt: the problem's text, before any template.
        steps: S texts.
        labels: S labels: True for right, False for wrong, None for unknown.
    """

    prompt: str
    steps: tuple[str, ...]
    labels: tuple[bool | None, ...]


def read_solutions(
    source: str,
    *,
    neutral: Neutral = "good",
    split: str = "train",
    setting: str = "--data",
) -> list[LabelledSolution]:
    """Reads labelled solutions; the form is told by the names of the columns.

    - TRL: `prompt`, `completions` and `labels`.
    - Our own: `prompt`, `steps` and `labels`; a label may be null. A folder with
      `*.jsonl` files is read file by file.
    - PRM800K's phase files (`question`, `label`), and their conversion with one row per
      rated step (`instruction`, `responses`, `next_response`, `rating`). Solutions with
      a common beginning are branches of a tree: each rating stands in one of them.

    Args:
        source: a JSON, JSON Lines or Parquet file, a folder, or a data set on the hub;
            or `ARITHMETIC_STEPS`.
        neutral: what a rating of 0 means, with PRM800K.
        split: of a folder written by `datasets` or a data set on the hub.
        setting: the setting that holds the source, named by errors.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it cannot be read, its columns are none of these, or a row is wrong.
    """
    if source == ARITHMETIC_STEPS:
        return arithmetic_steps()
    folder = Path(source).expanduser()
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    solutions: list[LabelledSolution] = []
    for part in [str(file) for file in files] or [source]:
        try:
            rows = read_rows(part, split=split, subset=None, limit=None)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"`{setting}` ({source}) must hold labelled steps. {error}"
            ) from error
        solutions += _solutions(rows, part, neutral, setting)
    if not any(label is not None for s in solutions for label in s.labels):
        raise ValueError(
            f"`{setting}` ({source}) must hold labelled steps, because nothing can be "
            "learned or measured without; none of its steps has a label. Set another "
            "source."
        )
    return solutions


def _solutions(
    rows: Sequence[Mapping[str, Any]], source: str, neutral: Neutral, setting: str
) -> list[LabelledSolution]:
    columns = set(rows[0])
    if columns >= {"instruction", "responses", "next_response", "rating"}:
        trees = stepwise_tree(rows, neutral)
    elif columns >= {"question", "label"} and isinstance(rows[0]["label"], Mapping):
        trees = phase_tree(rows, neutral)
    else:
        steps = "completions" if "completions" in columns else "steps"
        if not columns >= {"prompt", steps, "labels"}:
            raise ValueError(
                f"`{setting}` ({source}) must have the columns prompt, completions and "
                "labels (TRL), prompt, steps and labels, or those of PRM800K, because "
                f"its form is told by them; it has {sorted(columns)}. Rename them."
            )
        return [_plain(row, steps, n, source) for n, row in enumerate(rows)]
    return [
        LabelledSolution(prompt, steps, labels)
        for prompt, tree in trees.items()
        for steps, labels in tree.branches()
    ]


def _plain(
    row: Mapping[str, Any], key: str, number: int, source: str
) -> LabelledSolution:
    prompt, steps, labels = row.get("prompt"), row.get(key), row.get("labels")
    good = (
        isinstance(prompt, str)
        and isinstance(steps, list | tuple)
        and isinstance(labels, list | tuple)
        and len(steps) == len(labels) > 0
        and all(isinstance(step, str) for step in steps)
        and all(label is None or label in (0, 1) for label in labels)
    )
    if not good:
        raise ValueError(
            f"Row {number} of {source} ({json.dumps(row, default=str):.160}) must have "
            f"a text `prompt`, texts `{key}` and as many `labels` that are true, false "
            "or null, because each step is learned with its label. Repair or remove it."
        )
    assert isinstance(prompt, str) and steps is not None and labels is not None
    return LabelledSolution(
        prompt, tuple(steps), tuple(None if x is None else bool(x) for x in labels)
    )


def arithmetic_steps(number: int = 20_000) -> list[LabelledSolution]:
    """Writes solutions of chain arithmetic, made as those of the embedded PRM are.

    Most of them hold errors, of every kind; they are the same ones always.

    Returns:
        `number` solutions of training problems; each step is labelled by the exact
        checker on what was written before it.
    """
    maker = TraceMaker(TASK_Z, build_tokenizer(TASK_Z).get_vocab())
    # A seed of its own: not the solutions that the embedded PRM has seen already.
    made = generated_steps(maker, random.Random(ARITHMETIC_STEPS), seed=102)
    solutions = []
    for prompt, steps in islice(made, number):
        labels = check_steps(prompt, steps, modulus=TASK_Z.modulus).labels
        solutions.append(LabelledSolution(prompt, tuple(steps), tuple(labels.tolist())))
    return solutions


def prepared(
    solutions: Sequence[LabelledSolution], after_first_error: AfterFirstError
) -> list[LabelledSolution]:
    """Keeps or drops what follows the first wrong step of each solution.

    Whether a step that builds on a wrong one is right is often a matter of taste;
    ProcessBench and Math-Shepherd only look at the first error.
    """
    made = []
    for s in solutions:
        is_cut = after_first_error == "drop" and False in s.labels
        end = s.labels.index(False) + 1 if is_cut else len(s.labels)
        made.append(LabelledSolution(s.prompt, s.steps[:end], s.labels[:end]))
    return made


def split_by_prompt(
    solutions: Sequence[LabelledSolution], share: float, seed: int
) -> tuple[list[LabelledSolution], list[LabelledSolution]]:
    """Holds out about a share of the problems, with all their solutions.

    Returns:
        The solutions to train on and those held out; no problem is in both.
    """

    def is_held_out(prompt: str) -> bool:
        digest = hashlib.blake2b(f"{seed}/{prompt}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 < share

    held = [is_held_out(solution.prompt) for solution in solutions]
    return (
        [s for s, out in zip(solutions, held, strict=True) if not out],
        [s for s, out in zip(solutions, held, strict=True) if out],
    )


def scoring_requests(
    solutions: Sequence[LabelledSolution | BenchmarkItem],
    tokenizer: Any,
    template: PromptTemplate,
) -> list[ScoringRequest]:
    """Makes of texts what a reward model is asked in RL.

    Each step is encoded by itself, as a policy that ends steps with blank lines writes
    it; nothing in a step becomes a special token, and no separator is put into a text.

    Args:
        solutions: only their prompts and steps are read.
        tokenizer: of policy and reward model.
        template: makes the policy's prompt of a problem.
    """
    unique = list(dict.fromkeys(solution.prompt for solution in solutions))
    encoded = dict(zip(unique, template.encode_batch(unique, tokenizer), strict=True))
    requests = []
    for solution in solutions:
        texts = tuple(text.strip() for text in solution.steps)
        parts = [plain_ids(tokenizer, text) for text in texts]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        requests.append(
            ScoringRequest(
                prompt=solution.prompt,
                answer=None,
                prompt_ids=np.asarray(encoded[solution.prompt], np.int64),
                response_ids=np.asarray([i for part in parts for i in part], np.int64),
                step_spans=np.stack([np.append(0, ends[:-1]), ends], axis=1),
                step_texts=texts,
            )
        )
    return requests
