"""Whether two answers are the same: a rule for each pair of kinds.

The rules themselves stand with the kinds. A pair that has none is not the same.
"""

from typing import Literal

import sympy

from pure_rllib.rewards.verifier.kinds.choice import Choice
from pure_rllib.rewards.verifier.kinds.collection import Collection, same_collection
from pure_rllib.rewards.verifier.kinds.expression import Expression, same_formula
from pure_rllib.rewards.verifier.kinds.interval import Region, region_of, same_region
from pure_rllib.rewards.verifier.kinds.matrix import Matrix, same_matrix
from pure_rllib.rewards.verifier.kinds.number import Number, same_number
from pure_rllib.rewards.verifier.kinds.quantity import Quantity, same_quantity
from pure_rllib.rewards.verifier.kinds.relation import (
    Relation,
    defined_values,
    same_relation,
)
from pure_rllib.rewards.verifier.kinds.text import Text
from pure_rllib.rewards.verifier.latex import UnreadableError
from pure_rllib.rewards.verifier.read import Answer, Reader

BareLists = Literal["set", "tuple"]
_VECTORS = {"()", "[]", r"\langle\rangle"}
_Value = Number | Quantity | Expression


class Comparison:
    """Compares answers.

    Args:
        bare_lists: what a list without brackets is; see `kinds.collection`.
    """

    def __init__(self, bare_lists: BareLists = "set"):
        self.bare_lists = bare_lists

    def same(self, gold: Answer, answer: Answer) -> bool:
        """Says whether a response's answer is the gold answer."""
        if isinstance(gold, Number) and isinstance(answer, Number):
            return same_number(gold, answer)
        if isinstance(gold, Choice) or isinstance(answer, Choice):
            return self._same_choice(gold, answer)
        if isinstance(gold, Text) or isinstance(answer, Text):
            return self._same_text(gold, answer)
        if isinstance(gold, _Value) and isinstance(answer, _Value):
            if isinstance(gold, Quantity) or isinstance(answer, Quantity):
                return same_quantity(gold, answer)
            return same_formula(gold, answer)
        if isinstance(gold, Matrix) and isinstance(answer, Matrix):
            return same_matrix(gold, answer)
        return self._same_structure(gold, answer)

    def _same_choice(self, gold: Answer, answer: Answer) -> bool:
        if isinstance(gold, Choice) and isinstance(answer, Choice):
            return gold.letter == answer.letter
        for side, other in ((gold, answer), (answer, gold)):
            if isinstance(side, Choice) and not side.rest:
                # A name, such as that of a set or a point: `x = A`.
                letter = Expression(sympy.Symbol(side.letter))
                if isinstance(other, Relation | Collection | Expression):
                    pair = (letter, other) if side is gold else (other, letter)
                    return self.same(*pair)
        if isinstance(gold, Choice) and gold.rest:
            try:
                return self.same(Reader().read(gold.rest), answer)
            except UnreadableError:
                return False
        return False

    def _same_text(self, gold: Answer, answer: Answer) -> bool:
        if isinstance(gold, Text) and isinstance(answer, Text):
            return gold.words == answer.words
        for side, other in ((gold, answer), (answer, gold)):
            if isinstance(side, Relation) and isinstance(other, Text):
                return any(
                    value != other and self.same(value, other)
                    if side is gold
                    else self.same(other, value)
                    for value in defined_values(side, self.same)
                )
        return False

    def _same_structure(self, gold: Answer, answer: Answer) -> bool:
        relations = isinstance(gold, Relation) + isinstance(answer, Relation)
        collections = isinstance(gold, Collection) + isinstance(answer, Collection)
        if relations == 2 and same_relation(gold, answer, self.same):  # type: ignore[arg-type]
            return True
        if collections == 2:
            lists = (gold, answer, self.same, self.bare_lists)
            if same_collection(*lists):  # type: ignore[arg-type]
                return True
        if self._same_region(gold, answer):
            return True
        if relations == 1:
            return self._same_definition(gold, answer)
        return collections == 1 and self._same_as_single(gold, answer)

    def _same_region(self, gold: Answer, answer: Answer) -> bool:
        conditions = Region | Relation | Collection
        if not isinstance(gold, conditions) or not isinstance(answer, conditions):
            return False
        sides = (gold, answer)
        if all(isinstance(side, Collection) and side.brackets for side in sides):
            # Two pairs, two sets: compared already, by their brackets.
            return False
        regions = [region_of(side) for side in (gold, answer)]
        return None not in regions and same_region(*regions)

    def _same_definition(self, gold: Answer, answer: Answer) -> bool:
        if isinstance(gold, Relation):
            values = defined_values(gold, self.same, trusted=True)
            return any(self.same(value, answer) for value in values)
        assert isinstance(answer, Relation)
        values = defined_values(answer, self.same)
        return any(self.same(gold, value) for value in values)

    def _same_as_single(self, gold: Answer, answer: Answer) -> bool:
        """Compares a collection with what is none."""
        if isinstance(gold, Collection):
            if isinstance(answer, Matrix):
                return self._same_entries(gold, answer)
            values = _values(gold)
            return bool(values) and all(self.same(item, answer) for item in values)
        assert isinstance(answer, Collection)
        if isinstance(gold, Matrix):
            return self._same_entries(answer, gold)
        values = _values(answer)
        if answer.brackets == "mod":
            # The gold answer asks for the remainder alone.
            first = answer.items[0]
            values = (first.sides[-1] if isinstance(first, Relation) else first,)
        return bool(values) and all(self.same(gold, item) for item in values)

    def _same_entries(self, listed: Collection, matrix: Matrix) -> bool:
        """Compares `(1,2)` with a row or a column, `[[1,2],[3,4]]` with a matrix."""
        items, value = listed.items, matrix.value
        if listed.brackets not in _VECTORS:
            return False
        if all(isinstance(item, Collection) for item in items):
            return len(items) == value.rows and all(
                self._same_entries(item, Matrix(value.row(i)))
                for i, item in enumerate(items)
            )
        if 1 not in value.shape or len(value) != len(items):
            return False
        return all(
            isinstance(item, Number | Expression)
            and same_formula(item, Expression(entry))
            for item, entry in zip(items, value, strict=True)
        )


def _values(collection: Collection) -> tuple[Answer, ...]:
    """Returns what a collection that is one value may be: `{3}`, `2 or 4/2`, `3:4`."""
    items = collection.items
    if collection.brackets == "::" and len(items) == 2:
        first, second = items
        if isinstance(first, Number) and isinstance(second, Number) and second.value:
            return (Number(first.exact / second.exact),)
    alternative = collection.alternative and not collection.brackets
    return items if len(items) == 1 or alternative else ()
