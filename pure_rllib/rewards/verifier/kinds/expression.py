r"""Expressions: formulas with variables, roots, powers, functions, `\pi`, `i` and `e`.

- The same value for all variables is the same answer, however it is written.
- `a/bc` may mean `(a/b)c` or `a/(bc)`: both are accepted.
- An additive constant may have any usual name: `x^2+C` takes `x^2+c`.
- A letter is never a unit here, and `i` and `e`, upright or not, are never letters.
"""

from dataclasses import dataclass
from typing import Any

import sympy

from pure_rllib.rewards.verifier.algebra import rational, read_expression
from pure_rllib.rewards.verifier.equality import same_expression, same_rounded
from pure_rllib.rewards.verifier.kinds.number import Number
from pure_rllib.rewards.verifier.latex import Nodes

_ADDED_CONSTANTS = {"C", "c", "K"}


@dataclass(frozen=True, slots=True)
class Expression:
    """A formula.

    Attributes:
        value: SymPy's expression or matrix.
        other: the same with slashes that reach as far as they can, where that differs.
        percent: whether a percent sign follows.
    """

    value: Any
    other: Any = None
    percent: bool = False


def formula(nodes: Nodes) -> Expression:
    """Reads nodes as a formula.

    Raises:
        UnreadableError: they are none.
    """
    value = read_expression(nodes)
    other = None
    if any(node.is_sign("/") for node in nodes):
        other = read_expression(nodes, wide_slash=True)
    return Expression(value, None if other == value else other)


def value_of(answer: Number | Expression) -> Any:
    """Returns a number or expression as SymPy's, percent signs included."""
    if isinstance(answer, Number):
        return rational(answer.exact)
    return answer.value / 100 if answer.percent else answer.value


def same_formula(gold: Number | Expression, answer: Number | Expression) -> bool:
    """Compares two of which one at least is an expression."""
    for decimal, other in ((gold, answer), (answer, gold)):
        if isinstance(decimal, Number) and isinstance(other, Expression):
            places = decimal.places or 0
            if same_rounded(value_of(other), decimal.exact, places):
                return True
    if any(isinstance(side, Number) and side.base for side in (gold, answer)):
        return False
    value = value_of(answer)
    if same_expression(value_of(gold), value):
        return True
    for side, other in ((gold, answer), (answer, gold)):
        wide = side.other if isinstance(side, Expression) else None
        if wide is not None and same_expression(wide, value_of(other)):
            return True
    return _same_but_for_constant(value_of(gold), value)


def _same_but_for_constant(gold: Any, answer: Any) -> bool:
    constants = [_added_constant(side) for side in (gold, answer)]
    if None in constants or constants[0] == constants[1]:
        return False
    return same_expression(gold - constants[0], answer - constants[1])


def _added_constant(expression: Any) -> Any:
    """Returns the constant of integration of a sum, or None."""
    if not isinstance(expression, sympy.Add):
        return None
    found = [
        term
        for term in expression.args
        if term.is_Symbol
        and term.name in _ADDED_CONSTANTS
        and not (expression - term).has(term)
    ]
    return found[0] if len(found) == 1 else None
