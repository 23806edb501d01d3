"""Whether two SymPy expressions have the same value.

Never by rounding to so many decimals: numbers that are exact are compared exactly,
others by their relative error at a precision that fits their digits; formulas with
variables at several points, then by SymPy's algebra.
"""

import functools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import sympy
from sympy.core.evalf import PrecisionExhausted
from sympy.core.function import AppliedUndef

# Digits beyond those of the integers in an expression, and how many need not agree.
_DIGITS, _GUARD = 40, 20
_MAX_DIGITS = 20_000
# A decimal with so many places that rounds another number is that number.
ROUNDED_PLACES = 6
_NUM_POINTS, _MIN_POINTS = 6, 3


def same_expression(first: Any, second: Any) -> bool:
    """Compares two expressions or matrices; both must be free of relations."""
    matrices = [isinstance(side, sympy.MatrixBase) for side in (first, second)]
    if all(matrices):
        return first.shape == second.shape and all(
            same_expression(a, b) for a, b in zip(first, second, strict=True)
        )
    if any(matrices):
        return False
    if first == second:
        return True
    first, second = (_without_functions(side) for side in (first, second))
    symbols = first.free_symbols | second.free_symbols
    if not symbols and first.is_Rational and second.is_Rational:
        return False
    digits = _digits(first, second)
    if digits > _MAX_DIGITS:
        # BeyondError what can be told apart in reasonable time.
        return False
    pairs = _values(first, second, symbols, digits)
    if not symbols:
        return any(_close(a, b, digits) for a, b in pairs)
    num_agreeing = 0
    for a, b in pairs:
        if not _close(a, b, digits):
            return False
        num_agreeing += 1
    if num_agreeing >= _MIN_POINTS:
        return True
    if first.has(sympy.I) != second.has(sympy.I):
        return False
    # Defined at the integers alone, such as (-1)^n.
    integers = {s: sympy.Symbol(s.name, integer=True, positive=True) for s in symbols}
    return bool(sympy.simplify((first - second).subs(integers)) == 0)


def same_rounded(exact: Any, decimal: Fraction, places: int) -> bool:
    """Says whether a decimal of so many places is a number, rounded."""
    if places < ROUNDED_PLACES or not exact.is_number:
        return False
    value = exact.evalf(places + _DIGITS)
    if not (value.is_Float or value.is_Rational):
        return False
    rational = sympy.Rational(decimal.numerator, decimal.denominator)
    # A hair more than half a unit of the last place, for a 5 that was rounded down.
    return bool(abs(value - rational) <= sympy.Rational(501, 1000 * 10**places))


def ratio(first: Any, second: Any) -> Any:
    """Returns the constant that the second is to be multiplied by to be the first.

    None where there is no such constant, or where either is constant itself.
    """
    first, second = (_without_functions(side) for side in (first, second))
    symbols = first.free_symbols
    if not symbols or second.free_symbols != symbols:
        return None
    digits = _digits(first, second)
    if digits > _MAX_DIGITS:
        return None
    pairs = _values(first, second, symbols, digits)
    ratios = [a / b for a, b in pairs if b != 0]
    if len(ratios) < _MIN_POINTS or ratios[0] == 0:
        return None
    same = all(_close(other, ratios[0], digits) for other in ratios)
    return ratios[0] if same else None


def _digits(first: Any, second: Any) -> int:
    """Returns a precision at which no constant of the two expressions is lost."""
    numbers = first.atoms(sympy.Rational) | second.atoms(sympy.Rational)
    parts = [part for number in numbers for part in (number.p, number.q)]
    digits = 2 * sum(int(part).bit_length() * 3 // 10 for part in parts)
    # `e^{100}` has few digits of its own, and yet 44 before the point.
    powers = first.atoms(sympy.Pow, sympy.Function)
    powers |= second.atoms(sympy.Pow, sympy.Function)
    return _DIGITS + digits + sum(map(_magnitude, powers))


@functools.lru_cache(maxsize=4096)
def _magnitude(constant: Any) -> int:
    """Returns how many digits a constant has before or behind the point."""
    if not constant.is_number:
        return 0
    if constant.is_Pow and constant.exp.is_Rational and abs(constant.exp) <= 1:
        # A root is no larger than what it is taken of.
        return 0
    size = abs(constant.evalf(15))
    if not size.is_Float or not size:
        return 0
    # mpmath's binary exponent: the value itself may be beyond any float.
    _, _, exponent, num_bits = size._mpf_
    return abs(exponent + num_bits) * 3 // 10


def _is_number(value: Any) -> bool:
    if value.is_Float or value.is_Rational:
        return True
    return bool(value.is_number) and all(
        part.is_Float or part.is_Rational for part in value.as_real_imag()
    )


def _without_functions(expression: Any) -> Any:
    """Puts a variable in the place of each value of an unknown function."""
    functions = expression.atoms(AppliedUndef)
    if not functions:
        return expression
    return expression.xreplace(
        {value: sympy.Symbol(str(sympy.expand(value))) for value in functions}
    )


def _points(symbols: set[Any]) -> Iterator[dict[Any, Any]]:
    """Yields small fractions, no two alike; every second point has negative ones."""
    names = sorted(symbols, key=lambda symbol: str(symbol.name))
    for point in range(_NUM_POINTS):
        values = {}
        for i, symbol in enumerate(names):
            top = 17 + (29 * i + 31 * point + 7 * i * point) % 83
            sign = -1 if point % 2 and (i + point // 2) % 2 == 0 else 1
            # Some are large, so that what is rounded down differs.
            values[symbol] = sympy.Rational(sign * top, (41, 13, 3)[point % 3])
        yield values


def _values(
    first: Any, second: Any, symbols: set[Any], digits: int
) -> Iterator[tuple[Any, Any]]:
    """Evaluates both where both are numbers of the same kind: real, or complex.

    Roots and logarithms of negative numbers are nobody's intention, so a point where
    one side alone is real says nothing about formulas with variables.
    """
    for point in _points(symbols) if symbols else ({},):
        try:
            pair = [side.evalf(digits, subs=point) for side in (first, second)]
        except (PrecisionExhausted, TypeError, ValueError, OverflowError):
            # Not defined there, or infinite.
            continue
        if not all(_is_number(value) for value in pair):
            continue
        tiny = sympy.Float(10, digits) ** (_GUARD - digits)
        if not symbols or len({abs(sympy.im(value)) > tiny for value in pair}) == 1:
            yield pair[0], pair[1]


def _close(a: Any, b: Any, digits: int) -> bool:
    size = max(abs(a), abs(b))
    return bool(abs(a - b) <= size * sympy.Float(10, digits) ** (_GUARD - digits))
