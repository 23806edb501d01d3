r"""Collections: tuples, sets, and lists with or without brackets.

- Brackets say what counts: in `(1,2)` and `[1,2,3]` the order, in `\{1,2\}` neither
  order nor repetition.
- A bare list, `1,2`, is open: by default it is a set of answers, each said once or
  more; with `bare_lists="tuple"` order and repetition count. Against brackets it is
  read as they are. A list is never a single value: `-2,-2` is not `-2`.
- `\pm 3` is `3,-3`; values joined by "or" are one value if they are all the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_INTERVALS = {"[]", "[)", "(]"}


@dataclass(frozen=True, slots=True)
class Collection:
    """Several answers.

    Attributes:
        brackets: opening and closing bracket, or "" for a bare list.
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
    if "" in (gold.brackets, answer.brackets) and brackets & _INTERVALS and pairs:
        # `[1,2]` and `[1,2)` are intervals, which no list without brackets is.
        return False
    bare = not gold.brackets and not answer.brackets
    if gold.is_ordered or answer.is_ordered or (bare and bare_lists == "tuple"):
        return len(items) == len(others) and all(
            same(a, b) for a, b in zip(items, others, strict=True)
        )
    return all(any(same(a, b) for b in others) for a in items) and all(
        any(same(a, b) for a in items) for b in others
    )
