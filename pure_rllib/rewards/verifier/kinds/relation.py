r"""Relations: equations, definitions, inequalities and chains of them.

- A definition is its value: `x=5`, `f(3)=5`, `AB=5` and `y=2x+1` take the value alone
  and are taken by it. What is defined is a name, a product of names or a pair of them;
  `x^2+y^2=1` is no definition, so it is not 1.
- An equation between constants must be true: `0=5` is never 5; `2+3=5` is.
- Two equations are the same if one is a multiple of the other: `y=2x` is `2x-y=0`,
  and `y=6/x` is `xy=6`. The name of an argument is open: `f(t)=2t` is `f(x)=2x`.
  Names count: `x=5` is not `y=5`; a name's case does not, since nobody uses both.
- Two inequalities are the same if they hold for the same values: see `interval`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from pure_rllib.rewards.verifier.equality import ratio
from pure_rllib.rewards.verifier.kinds.expression import Expression, value_of
from pure_rllib.rewards.verifier.kinds.number import Number
from pure_rllib.rewards.verifier.kinds.quantity import Quantity
from pure_rllib.rewards.verifier.kinds.text import Text

EQUALS = {"=", r"\approx", r"\equiv", r"\sim", r"\simeq", r"\cong", r"\doteq"}
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
INEQUALITIES = set(_FLIPPED)
SIGNS = " ".join(sorted(EQUALS | INEQUALITIES)) + r" \in"


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain of sides.

    Attributes:
        sides: two or more answers of any kind.
        signs: what stands between them, one less.
    """

    sides: tuple[Any, ...]
    signs: tuple[str, ...]

    @property
    def is_equation(self) -> bool:
        """Whether all of its signs are equals signs."""
        return set(self.signs) <= EQUALS


def is_name(side: Any) -> bool:
    """Says whether a side can be what an equation defines."""
    if isinstance(side, Text):
        return True
    if not isinstance(side, Expression):
        items = getattr(side, "items", ())
        return bool(items) and all(is_name(item) for item in items)
    value = side.value
    if isinstance(value, sympy.MatrixBase):
        return False
    factors = sympy.Mul.make_args(value)
    return all(
        (base.is_Symbol or isinstance(base, AppliedUndef)) and exponent in (1, -1)
        for base, exponent in (factor.as_base_exp() for factor in factors)
    )


def is_false(relation: Relation, same: Callable[[Any, Any], bool]) -> bool:
    """Says whether an equation states that two different constants are equal."""
    constants = [
        side
        for side in relation.sides
        if isinstance(side, Number | Quantity)
        or (isinstance(side, Expression) and not _has_variables(side))
    ]
    exact = "=" in relation.signs and r"\approx" not in relation.signs
    return exact and any(
        not same(constants[0], other) and not _rounded(constants[0], other)
        for other in constants[1:]
    )


def _has_variables(side: Expression) -> bool:
    return bool(side.value.free_symbols or side.value.atoms(AppliedUndef))


def _rounded(first: Any, second: Any) -> bool:
    """Says whether a decimal, however short, rounds the other: `1/3=0.33`."""
    for decimal, other in ((first, second), (second, first)):
        if (
            isinstance(decimal, Number)
            and decimal.places
            and isinstance(other, Number | Expression)
        ):
            value = value_of(other).evalf(30)
            error = abs(value - value_of(decimal))
            return bool(error <= sympy.Rational(6, 10 ** (decimal.places + 1)))
    return False


def defined_values(
    relation: Relation, same: Callable[[Any, Any], bool], *, trusted: bool = False
) -> list[Any]:
    """Returns what a definition says its name is, in one or several forms; else none.

    Args:
        relation: a definition or any other relation.
        same: compares two answers.
        trusted: whether it is a gold answer, whose last side counts though others err.
    """
    if r"\in" in relation.signs:
        single = isinstance(relation.sides[-1], Number | Expression | Quantity)
        return [] if single or len(relation.signs) > 1 else [relation.sides[-1]]
    if not relation.is_equation:
        return []
    if is_false(relation, same):
        return [relation.sides[-1]] if trusted else []
    names = [side for side in relation.sides if is_name(side)]
    values = [side for side in relation.sides if not is_name(side)]
    if not values:
        return [relation.sides[-1]] if len(names) > 1 else []
    variables = [
        side
        for side in values
        if isinstance(side, Expression)
        and not isinstance(side.value, sympy.MatrixBase)
        and _has_variables(side)
    ]
    if not names and variables:
        # An equation to be solved, not a value: `2x+3y=0`.
        return []
    return values


def same_relation(
    gold: Relation, answer: Relation, same: Callable[[Any, Any], bool]
) -> bool:
    """Compares two chains sign by sign, turned round, or as equations."""
    for sides, signs in (
        (answer.sides, answer.signs),
        (answer.sides[::-1], tuple(_FLIPPED.get(s, s) for s in answer.signs[::-1])),
    ):
        if signs == gold.signs and all(map(same, gold.sides, sides)):
            return True
    if gold.is_equation and answer.is_equation:
        return _same_equation(gold, answer, same)
    if len(gold.signs) == len(answer.signs) == 1:
        factor = _ratio(gold, answer)
        if factor is None or not factor.is_real:
            return False
        sign = answer.signs[0]
        return gold.signs[0] == (sign if factor > 0 else _FLIPPED.get(sign, sign))
    return False


def _same_equation(
    gold: Relation, answer: Relation, same: Callable[[Any, Any], bool]
) -> bool:
    answer = _with_arguments_of(gold, answer)
    names = [_name(side.sides[0]) for side in (gold, answer)]
    if names[0] and names[1] and names[0].lower() == names[1].lower():
        values = [defined_values(side, same) for side in (gold, answer)]
        return any(same(a, b) for a in values[0][-1:] for b in values[1])
    if len(gold.sides) != 2 or len(answer.sides) != 2:
        return False
    return any(
        _ratio(gold, answer, numerators) is not None for numerators in (False, True)
    )


def _with_arguments_of(gold: Relation, answer: Relation) -> Relation:
    """Writes `f(t)=2t` as `f(x)=2x` if the gold answer defines `f(x)`."""
    if not all(isinstance(side, Expression) for side in (*gold.sides, *answer.sides)):
        return answer
    calls = [side.sides[0].value for side in (gold, answer)]
    if not all(isinstance(call, AppliedUndef) for call in calls):
        return answer
    arguments = [call.args for call in calls]
    if not all(arg.is_Symbol for args in arguments for arg in args):
        return answer
    if calls[0].func != calls[1].func or len(arguments[0]) != len(arguments[1]):
        return answer
    # Exchanged, since an `x` on the other side is another one.
    names = {
        **dict(zip(*arguments, strict=True)),
        **dict(zip(*reversed(arguments), strict=True)),
    }
    sides = tuple(replace(s, value=s.value.xreplace(names)) for s in answer.sides)
    return replace(answer, sides=sides)


def _name(side: Any) -> str:
    if isinstance(side, Text):
        return side.words
    if isinstance(side, Expression) and is_name(side):
        return str(side.value)
    return ""


def _ratio(gold: Relation, answer: Relation, numerators: bool = False) -> Any:
    """Returns what one difference of sides is to be multiplied by to be the other.

    Args:
        gold: two sides.
        answer: two sides.
        numerators: whether the denominators of the differences are left out, which
            does not change an equation: `y=6/x` is `xy=6`.
    """
    sides = [*gold.sides[:2], *answer.sides[:2]]
    if not all(isinstance(side, Number | Expression) for side in sides):
        return None
    values = [value_of(side) for side in sides]
    if any(isinstance(value, sympy.MatrixBase) for value in values):
        return None
    differences = [values[0] - values[1], values[2] - values[3]]
    if numerators:
        differences = [sympy.together(side).as_numer_denom()[0] for side in differences]
    return ratio(*differences)
