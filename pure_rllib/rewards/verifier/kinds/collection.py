r"""Collections: tuples, sets, and lists with or without brackets.

- Brackets say what counts: in `(1,2)` and `[1,2,3]` the order, in `\{1,2\}` neither
  order nor repetition.
- A bare list, `1,2`, is open: by default it is a set of answers, each said once or
  more; with `bare_lists="tuple"` order and repetition count. Against brackets it is
  read as they are. A list is never a single value: `-2,-2` is not `-2`.
- Ratios (`3:4`), congruences (`2 \pmod 5`) and sets by a condition
  (`\{2k \mid k\in\mathbb{Z}\}`) are compared part by part, and are no lists; a
  function by cases is the set of its values with their conditions.
- In lists that have the same words behind their numbers, these say which is which.
- `\pm 3` is `3,-3`; values joined by "or" are one value if they are all the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Ratios and times, congruences, sets by a condition.
_JOINED = {"::", "mod", r"\{|\}"}
_INTERVALS = {"[]", "[)", "(]"}


@dataclass(frozen=True, slots=True)
class Collection:
    """Several answers.

    Attributes:
        brackets: opening and closing bracket, "" for a bare list, or what joins the
            items in their place: `::`, `mod`, `\{|\}`.
        items: answers of any kind; one or more, or none between braces.
        alternative: whether an "or" joins them.
    """

    brackets: str
    items: tuple[Any, ...]
    alternative: bool = False

    @property
    def is_ordered(self) -> bool:
        """Whether its brackets are those of a tuple."""
        return self.brackets not in ("", r"\{\}")


def same_collection(
    gold: Collection,
    answer: Collection,
    same: Callable[[Any, Any], bool],
    bare_lists: str,
) -> bool:
    """Compares two collections; `same` compares their items."""
    brackets = {gold.brackets, answer.brackets} - {""}
    items, others = gold.items, answer.items
    pairs = len(items) == 2 or len(others) == 2
    if len(brackets) == 2 and (pairs or r"\{\}" in brackets):
        # Pairs in other brackets are other intervals; longer ones are a list's style.
        vectors = brackets == {"()", r"\langle\rangle"}
        if not vectors:
            return False
    if "" in (gold.brackets, answer.brackets) and (
        brackets & _JOINED or (brackets & _INTERVALS and pairs)
    ):
        # `[1,2]` and `[1,2)` are intervals, which no list without brackets is.
        return False
    labels = [{getattr(item, "label", "") for item in side} for side in (items, others)]
    if labels[0] == labels[1] and len(labels[0]) > 1 and "" not in labels[0]:
        # "3 red, 2 blue": here the words say which is which.
        unlabelled, same = same, lambda a, b: a.label == b.label and unlabelled(a, b)
    bare = not gold.brackets and not answer.brackets
    if gold.is_ordered or answer.is_ordered or (bare and bare_lists == "tuple"):
        return len(items) == len(others) and all(
            same(a, b) for a, b in zip(items, others, strict=True)
        )
    return all(any(same(a, b) for b in others) for a in items) and all(
        any(same(a, b) for a in items) for b in others
    )
