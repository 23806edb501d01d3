"""The processes that make and score items of reasoning-gym's tasks.

Some tasks draw from the global generators or go through sets of strings, whose order
differs from process to process; some scorers evaluate what the policy wrote as Python.
So items are made and scored in processes of their own, in which item i of a task is
always the same one.
"""

import json
import os
import random
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pure_rllib.rewards.verifier.worker_process import Check, serve

# No task takes it for an answer, so it earns what a scorer gives to any text at all.
_NO_ANSWER = "?!"
_NUM_ITEMS_KEPT = 1024


def make_dataset(task: str, *, size: int, seed: int, config: Mapping[str, Any]) -> Any:
    """Makes reasoning-gym's data set.

    Args:
        task: its name there.
        size: number of items.
        seed: of the data set; item i depends on `seed + i`.
        config: other fields of the task's config; a part of a composite data set is a
            mapping of `name`, and if need be `weight` and `config`.
    """
    import reasoning_gym
    from reasoning_gym.composite import DatasetSpec

    fields = dict(config)
    if task == "composite":
        usual: dict[str, Any] = {"weight": 1.0, "config": {}}
        fields["datasets"] = [DatasetSpec(**{**usual, **d}) for d in config["datasets"]]
    return reasoning_gym.create_dataset(task, size=size, seed=seed, **fields)


class TaskItems:
    """The items of a data set, each always the same, and their scores.

    Args:
        setting: the arguments of `make_dataset` as JSON.
    """

    def __init__(self, setting: str):
        self.dataset = make_dataset(**json.loads(setting))
        self._known = lru_cache(_NUM_ITEMS_KEPT)(self._make)

    def item(self, index: int) -> dict[str, Any]:
        """Returns an item: `question`, `answer` (None: unknown) and `metadata`."""
        item: dict[str, Any] = self._known(index)[0]
        return item

    def check(self, index: str, answer: str) -> dict[str, Any]:
        """Returns outcome, answer and score of one answer."""
        item, least = self._known(int(index))
        try:
            score = self._score(item, answer, least)
        except Exception:
            # Scorers raise whatever they like at an answer that they cannot read.
            return {"outcome": "error", "answer": answer, "score": 0.0}
        outcome = "correct" if score == 1.0 else "incorrect"
        return {"outcome": outcome, "answer": answer, "score": score}

    def _make(self, index: int) -> tuple[dict[str, Any], float]:
        import numpy as np

        if not 0 <= index < len(self.dataset):
            # The package would make an item of a number out of range, too.
            raise IndexError(f"no item {index} in {len(self.dataset)}")
        random.seed(index)
        np.random.seed(index % 2**32)
        item = self.dataset[index]
        try:
            least = self._score(item, _NO_ANSWER, 0.0)
        except Exception:
            least = 0.0
        return item, least

    def _score(self, item: dict[str, Any], answer: str, least: float) -> float:
        """Scores an answer, in [0, 1].

        Args:
            item: as the data set made it.
            answer: without white space at both ends.
            least: what no answer earns: so much and less is worth nothing.
        """
        from reasoning_gym.dataset import ProceduralDataset

        gold = item["answer"]
        if gold is not None and answer == str(gold).strip():
            return 1.0
        parts = getattr(self.dataset, "datasets", {})
        dataset = parts.get(item["metadata"].get("source_dataset"), self.dataset)
        if type(dataset).score_answer is ProceduralDataset.score_answer:
            # It is no grade: it pays for any text that holds the gold answer.
            return 0.0
        score = float(dataset.score_answer(answer, item))
        return min(score, 1.0) if score > least else 0.0


def main(memory_limit_mb: int, time_limit_s: float, setting: str) -> None:
    """Scores pairs of an item's number and an answer until stdin ends."""

    def make_check() -> Check:
        return TaskItems(setting).check

    serve(memory_limit_mb, time_limit_s, make_check)


def write_items(setting: str) -> None:
    """Writes question and answer of each item as a line of JSON to stdout."""
    # Whatever prints from here on goes to stderr.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    items = TaskItems(setting)
    for index in range(len(items.dataset)):
        item = items.item(index)
        gold = item["answer"]
        fields = (item["question"], None if gold is None else str(gold))
        lines.write(json.dumps(fields) + "\n")
        lines.flush()
