"""PRM800K (Lightman et al., arXiv 2305.20050): ratings of steps as trees of solutions.

A rating is 1 (good), 0 (neutral) or -1 (bad). Raters judge several candidates for a
step and go on from one of them, so all solutions of a problem form a tree.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

Neutral = Literal["good", "bad", "ignore"]
Path = tuple[str, ...]


class StepTree:
    """The rated steps of one problem."""

    def __init__(self) -> None:
        self._labels: dict[Path, set[bool]] = {}

    def add(self, path: Path, label: bool | None) -> None:
        """Adds a step with the steps before it.

        Steps before it that nobody rated need not be added. Where two raters disagree,
        the label is unknown; an unknown one says nothing against a known one.
        """
        given = self._labels.setdefault(path, set())
        if label is not None:
            given.add(label)

    def branches(self) -> Iterator[tuple[Path, tuple[bool | None, ...]]]:
        """Yields every solution that is not the beginning of another, with labels.

        A rating that several solutions share stands in the first: else common
        beginnings would weigh as much as they have continuations. Branches that have
        no rating left are not yielded.
        """
        inner = {path[:k] for path in self._labels for k in range(1, len(path))}
        used: set[Path] = set()
        for path in self._labels:
            if path in inner:
                continue
            prefixes = [path[:k] for k in range(1, len(path) + 1)]
            labels = tuple(
                None if prefix in used else self._label(prefix) for prefix in prefixes
            )
            used.update(prefixes)
            if any(label is not None for label in labels):
                yield path, labels

    def _label(self, path: Path) -> bool | None:
        given = self._labels.get(path, set())
        return min(given) if len(given) == 1 else None


def phase_tree(
    rows: Iterable[Mapping[str, Any]], neutral: Neutral
) -> dict[str, StepTree]:
    """Reads rows of OpenAI's `phase1_*.jsonl` and `phase2_*.jsonl`.

    A step that a rater wrote counts as good.

    Args:
        rows: with `question` and `label`.
        neutral: what a rating of 0 means.
    """
    trees: dict[str, StepTree] = {}
    for row in rows:
        tree = trees.setdefault(row["question"]["problem"], StepTree())
        before: Path = ()
        for step in row["label"]["steps"]:
            completions = step["completions"] or []
            for completion in completions:
                rating = label_of(completion["rating"], neutral)
                tree.add((*before, completion["text"]), rating)
            if step["chosen_completion"] is not None:
                text = completions[step["chosen_completion"]]["text"]
            elif step["human_completion"] is not None:
                text = step["human_completion"]["text"]
                tree.add((*before, text), True)
            else:
                break
            before = (*before, text)
    return trees


def stepwise_tree(
    rows: Iterable[Mapping[str, Any]], neutral: Neutral
) -> dict[str, StepTree]:
    """Reads rows with one rated step each.

    Args:
        rows: `instruction`, `responses` (the steps before), `next_response`, `rating`
            and maybe `is_human_response`.
        neutral: what a rating of 0 means.
    """
    trees: dict[str, StepTree] = {}
    for row in rows:
        label = label_of(row["rating"], neutral)
        if label is None and row["rating"] is None and row.get("is_human_response"):
            label = True
        path = (*row["responses"], row["next_response"])
        trees.setdefault(row["instruction"], StepTree()).add(path, label)
    return trees


def label_of(rating: float | str | None, neutral: Neutral) -> bool | None:
    """Turns a rating into a label; None and NaN are unknown.

    Raises:
        ValueError: it is no rating.
    """
    if neutral not in get_args(Neutral):
        raise ValueError(f"`neutral` ({neutral!r}) must be one of {get_args(Neutral)}.")
    if rating is None or math.isnan(number := float(rating)):
        return None
    if number not in (-1, 0, 1):
        raise ValueError(
            f"`rating` ({rating!r}) must be -1, 0, 1 or null, because PRM800K has no "
            "others. Repair or remove the row."
        )
    if number == 0:
        return {"good": True, "bad": False, "ignore": None}[neutral]
    return number == 1
