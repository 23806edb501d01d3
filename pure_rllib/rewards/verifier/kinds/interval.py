r"""Intervals and regions: `(2,5]`, `x>3`, `\mathbb{R}`, unions, `\{x \mid x>0\}`.

- An interval, an inequality in one variable and a set of its solutions are the same if
  they hold the same numbers; the variable's name does not matter.
- "and" and a comma between inequalities join conditions, "or" joins regions.
- `(1,2)` is a pair or an open interval: the other side decides.
"""

from dataclasses import dataclass
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from pure_rllib.rewards.verifier.equality import same_expression
from pure_rllib.rewards.verifier.kinds.collection import Collection
from pure_rllib.rewards.verifier.kinds.expression import Expression, value_of
from pure_rllib.rewards.verifier.kinds.number import Number
from pure_rllib.rewards.verifier.kinds.relation import INEQUALITIES, Relation

_RELATIONS = {
    "<": sympy.StrictLessThan, ">": sympy.StrictGreaterThan, r"\le": sympy.LessThan,
    r"\ge": sympy.GreaterThan, r"\ne": sympy.Ne,
}  # fmt: skip
_ENDS = {"(": True, ")": True, "[": False, "]": False}


@dataclass(frozen=True, slots=True)
class Region:
    """A set of SymPy's."""

    value: Any


def region_of(answer: Any) -> Any:
    """Returns the set of numbers that an answer stands for, or None."""
    if isinstance(answer, Region):
        return answer.value
    if isinstance(answer, Relation):
        return _of_relation(answer)
    if not isinstance(answer, Collection):
        return None
    if answer.brackets == r"\{\}":
        values = [_value(item) for item in answer.items]
        return None if None in values else sympy.FiniteSet(*values)
    if answer.brackets in ("()", "[]", "(]", "[)") and len(answer.items) == 2:
        return interval(answer.brackets, answer.items)
    if answer.brackets or not all(isinstance(i, Relation) for i in answer.items):
        return None
    regions = [_of_relation(item) for item in answer.items]
    if None in regions:
        return None
    join = sympy.Union if answer.alternative else sympy.Intersection
    return join(*regions)


def interval(brackets: str, ends: tuple[Any, ...]) -> Any:
    """Returns SymPy's interval, or None where the ends are no numbers."""
    values = [_value(end) for end in ends]
    if any(value is None or value.has(sympy.I) for value in values):
        return None
    return sympy.Interval(*values, _ENDS[brackets[0]], _ENDS[brackets[1]])


def _value(answer: Any) -> Any:
    if not isinstance(answer, Number | Expression):
        return None
    value = value_of(answer)
    return None if isinstance(value, sympy.MatrixBase) else value


def _of_relation(relation: Relation) -> Any:
    if relation.signs == (r"\in",):
        return region_of(relation.sides[1])
    if not set(relation.signs) <= INEQUALITIES:
        return None
    values = [_value(side) for side in relation.sides]
    if None in values:
        return None
    unknown = set().union(*(_unknowns(value) for value in values))
    if len(unknown) != 1:
        return None
    variable = sympy.Dummy("x", real=True)
    regions = []
    (name,) = unknown
    values = [value.xreplace({name: variable}) for value in values]
    for left, sign, right in zip(values, relation.signs, values[1:], strict=False):
        region = _solutions(left - right, sign, variable)
        if region is None:
            return None
        regions.append(region)
    return sympy.Intersection(*regions)


def _unknowns(value: Any) -> set[Any]:
    functions = value.atoms(AppliedUndef)
    inner = set().union(*(function.free_symbols for function in functions))
    return functions | (value.free_symbols - inner)


def _solutions(difference: Any, sign: str, variable: Any) -> Any:
    """Solves `difference sign 0`."""
    condition = _RELATIONS[sign](difference, 0)
    if condition in (sympy.true, sympy.false):
        return sympy.S.Reals if condition else sympy.S.EmptySet
    try:
        return sympy.solve_univariate_inequality(condition, variable, relational=False)
    except (NotImplementedError, TypeError, ValueError):
        return None


def same_region(gold: Any, answer: Any) -> bool:
    """Compares two sets, part by part where their ends are written differently."""
    if gold == answer:
        return True
    parts = [_parts(side) for side in (gold, answer)]
    if None in parts or len(parts[0]) != len(parts[1]):
        return False
    return all(
        same_expression(a.start, b.start)
        and same_expression(a.end, b.end)
        and (a.left_open, a.right_open) == (b.left_open, b.right_open)
        for a, b in zip(*parts, strict=True)
    )


def _parts(region: Any) -> Any:
    intervals: list[Any] = []
    for part in region.args if isinstance(region, sympy.Union) else (region,):
        if isinstance(part, sympy.FiniteSet):
            intervals += [sympy.Interval(point, point) for point in part.args]
        else:
            intervals.append(part)
    if not all(
        isinstance(p, sympy.Interval | sympy.FiniteSet) and p.inf.is_comparable
        for p in intervals
    ):
        return None
    points = [p for p in intervals if isinstance(p, sympy.FiniteSet)]
    if points:
        return None
    return sorted(intervals, key=lambda part: float(part.start))
