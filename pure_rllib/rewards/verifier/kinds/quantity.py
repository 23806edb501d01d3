r"""Quantities: a value with a unit, a currency, a degree sign or the words it counts.

- Two quantities are the same if they are the same length, time, price ...: `5 m` is
  `500 cm`, never `5 km`, `5 m^2` or `5 s`. Units are pint's.
- One side without a unit is a matter of style: `5` takes `5 cm`, `5 cm` takes `5`.
- Words that are no unit say what is counted: `7 apples` is 7.
- A letter is a unit where it cannot be a variable: upright behind a value, or, with a
  space, behind a value without letters that answers a gold answer without letters.
  `2 n`, `4 m n` and `\frac32 mg` as gold answers are formulas and refuse the number
  alone; an answer whose unit is beyond doubt lets their letters be one.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pure_rllib.rewards.verifier.algebra import rational
from pure_rllib.rewards.verifier.equality import same_expression
from pure_rllib.rewards.verifier.functions import (
    CONSTANTS,
    FUNCTION_NAMES,
    is_function,
)
from pure_rllib.rewards.verifier.kinds.expression import (
    Expression,
    same_formula,
    value_of,
)
from pure_rllib.rewards.verifier.kinds.number import Number, same_number
from pure_rllib.rewards.verifier.latex import Node, Nodes, unwrap
from pure_rllib.rewards.verifier.units import (
    CURRENCIES,
    factor_of,
    read_unit,
    registry,
    unit_named,
)

# Words behind a number that change its value or join it to something.
SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_NO_LABELS = re.compile(
    r"(?:and|or|to|not|if|when|mod|modulo|plus|minus|times|over|factorial|half|halves|"
    r"quarters?|\w+ths?|thirds?|remainder|none|no|than|is|are|was|but|percent|pct|"
    r"hundreds?|thousands?|millions?|billions?|trillions?|dozens?|"
    r"squared|cubed)"
)
_OFFSET_UNITS = {"degree_Celsius", "degree_Fahrenheit"}
_DEGREES = {"C": "degC", "F": "degF", "": "degree"}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with a unit.

    Attributes:
        value: without the unit.
        unit: pint's; None if only words follow that are no unit.
        label: these words.
    """

    value: Number | Expression
    unit: Any
    label: str = ""


def split_unit(nodes: Nodes, *, letters: bool) -> tuple[Nodes, Any, str] | None:
    r"""Splits a value from the unit or the words behind it.

    Args:
        nodes: the whole of a value.
        letters: whether italic letters may be units: behind the plain number of an
            answer to a gold answer without variables.

    Returns:
        The value's nodes, pint's unit or None, and the words that are no unit; None
        where nothing behind the value can be a unit.
    """
    sign = nodes[:1] if nodes and nodes[0].is_sign("+ -") else ()
    price = nodes[len(sign) :]
    if (len(price) > 1 and price[0].text in CURRENCIES) or _is_currency_word(price):
        name = CURRENCIES.get(price[0].text) or unit_named(price[0].text) or ""
        start = 2 if len(price) > 1 and price[1].is_sign(".") else 1
        return (*sign, *price[start:]), registry().Unit(name), ""
    if len(nodes) > 1 and nodes[-1].text in CURRENCIES:
        return nodes[:-1], registry().Unit(CURRENCIES[nodes[-1].text]), ""
    plain = True
    for start in range(1, len(nodes)):
        plain = plain and _is_plain(nodes[start - 1])
        if not _ends_value(nodes[start - 1]):
            continue
        degrees = _degrees(nodes[start:])
        if degrees is not None and not any(is_function(n) for n in nodes[:start]):
            return nodes[:start], degrees, ""
        tail = nodes[start:]
        if not plain and any(
            n.kind in ("letter", "word") and not n.upright for n in tail
        ):
            continue
        # `6m` is a product; `6 m` may be a length.
        spaced = letters and plain and tail[0].spaced
        unit = read_unit(tail, letters=spaced)
        if unit is not None:
            return nodes[:start], unit, ""
    return _split_label(nodes)


def _is_currency_word(nodes: Nodes) -> bool:
    return (
        len(nodes) > 1
        and nodes[0].kind in ("text", "word")
        and nodes[-1].kind == "number"
        and unit_named(nodes[0].text) in CURRENCIES.values()
    )


def _ends_value(node: Node) -> bool:
    ends = node.kind in ("number", "group", "letter") or node.is_sign(r") ] ! \pi")
    return ends or is_scale(node)


def is_scale(node: Node) -> bool:
    """Says whether a node is "million" or its like."""
    word = node.kind in ("word", "text")
    return word and node.text.lower().removesuffix("s") in SCALES


def _is_plain(node: Node) -> bool:
    """Says whether a node of a value has no letters."""
    if node.parts:
        return all(_is_plain(inner) for part in node.parts for inner in part)
    figures = node.kind == "number" or is_scale(node)
    return figures or node.is_sign(r"/ + - ^ ( ) \cdot \times \frac \sqrt \pi")


def _degrees(nodes: Nodes) -> Any:
    r"""Reads `^\circ`, `^\circ C` and a raised o that stands for a degree sign."""
    if len(nodes) < 2 or not nodes[0].is_sign("^"):
        return None
    mark = unwrap(nodes[1:2])
    if len(mark) != 1 or not (mark[0].text == r"\circ" or mark[0].text == "o"):
        return None
    scale = "".join(node.text for node in unwrap(nodes[2:]))
    return registry().Unit(_DEGREES[scale]) if scale in _DEGREES else None


def _split_label(nodes: Nodes) -> tuple[Nodes, Any, str] | None:
    """Splits off words that are no unit: upright ones, or spelled behind a number."""
    start = len(nodes)
    while start > 1 and _is_label(nodes[start - 1]):
        start -= 1
    behind = nodes[start:]
    if not behind or not _ends_value(nodes[start - 1]):
        return None
    upright = all(node.kind == "text" for node in behind)
    if not upright and nodes[start - 1].kind not in ("number", "group"):
        return None
    words = " ".join(node.text for node in behind).lower().split()
    if any(_NO_LABELS.fullmatch(word.strip(".,")) for word in words):
        return None
    if any(word in CONSTANTS or word in FUNCTION_NAMES for word in words):
        return None
    return nodes[:start], None, " ".join(words)


def _is_label(node: Node) -> bool:
    if node.kind == "text":
        return len(node.text) > 1 or not node.text.isascii()
    # Letters that could be said aloud are a word, not a product.
    spoken = re.search("[aeiouyAEIOUY]", node.text) is not None
    return node.kind == "word" and len(node.text) > 2 and spoken


def same_quantity(gold: Any, answer: Any) -> bool:
    """Compares two of which one at least is a quantity."""
    sides = [
        side.value if isinstance(side, Quantity) else side for side in (gold, answer)
    ]
    units = [
        side.unit if isinstance(side, Quantity) else None for side in (gold, answer)
    ]
    if any(side.percent for side in sides) and any(unit is not None for unit in units):
        return False
    if units[0] is None or units[1] is None or units[0] == units[1]:
        return same_value(sides[0], sides[1])
    if not units[0].is_compatible_with(units[1]):
        return False
    if any(str(unit) in _OFFSET_UNITS for unit in units):
        # Degrees of different scales, which no factor turns into one another.
        return False
    factors = [factor_of(unit) for unit in units]
    scale = rational_of(factors[1] / factors[0])
    return same_expression(value_of(sides[0]), value_of(sides[1]) * scale)


def rational_of(factor: float) -> Any:
    """Writes a factor between units, pint's float, as the fraction that is meant."""
    if factor < 1:
        inverse = Fraction(1 / factor).limit_denominator(10**6)
        return 1 / rational(inverse)
    return rational(Fraction(factor).limit_denominator(10**6))


def same_value(gold: Number | Expression, answer: Number | Expression) -> bool:
    """Compares two values without units."""
    if isinstance(gold, Number) and isinstance(answer, Number):
        return same_number(gold, answer)
    return same_formula(gold, answer)
