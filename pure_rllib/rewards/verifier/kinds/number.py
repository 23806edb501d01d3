r"""Numbers: digits, fractions of digits, mixed numbers, percents, digits in a base.

- Two numbers are the same if they are equal, exactly: 1234567.5 is not 1234567.6.
- A decimal of at least six places is also the number that it rounds.
- A percent is a hundredth: 50% is 1/2. The sign alone is a matter of style ("what
  percent?"): 50% takes 50, whatever the question; 50 takes 50%, but 1/2 and 1 take
  neither 0.5% nor 1%, which would be a value of their own.
- `21st` is 21.
- `52_8` is digits in a base: it takes the same digits in that base, or without one.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from pure_rllib.rewards.verifier.algebra import number_of, repeated
from pure_rllib.rewards.verifier.equality import ROUNDED_PLACES
from pure_rllib.rewards.verifier.latex import Nodes, UnreadableError, unwrap, written

# An ellipsis repeats what was written at least so often; one digit needs three.
_REPEATED = re.compile(r"(\d)\1{2,}$|(\d{2,})\2+$")


@dataclass(frozen=True, slots=True)
class Number:
    """A number.

    Attributes:
        value: exact; of a percent the hundredfold, of digits in a base those digits.
        places: how many decimals were written, or None for integers and fractions.
        percent: whether a percent sign follows.
        base: the base that a subscript names, or None.
    """

    value: Fraction
    places: int | None = None
    percent: bool = False
    base: int | None = None

    @property
    def exact(self) -> Fraction:
        """The value with its percent sign."""
        return self.value / 100 if self.percent else self.value


def read_number(nodes: Nodes) -> Number | None:
    """Reads digits with a sign, a fraction or mixed number of digits; None else.

    Raises:
        UnreadableError: nothing is meant by it, as in `4 5/0`.
    """
    negative = False
    while nodes and nodes[0].is_sign("+ -"):
        negative ^= nodes[0].text == "-"
        nodes = nodes[1:]
    number = _unsigned(_without_ordinal(unwrap(nodes)))
    if number is None or not negative:
        return number
    return replace(number, value=-number.value)


def _without_ordinal(nodes: Nodes) -> Nodes:
    """Takes the ending off `21st` and `21^{st}`."""
    if len(nodes) in (2, 3) and nodes[0].kind == "number" and nodes[0].text.isdigit():
        ending = unwrap(nodes[2:]) if nodes[1].is_sign("^") else nodes[1:]
        if written(ending).replace(" ", "") in ("st", "nd", "rd", "th"):
            return nodes[:1]
    return nodes


def _unsigned(nodes: Nodes) -> Number | None:
    if not nodes or len(nodes) > 4 or nodes[0].kind not in ("number", "command"):
        return None
    first, rest = nodes[0], nodes[1:]
    if first.kind == "command":
        return _fraction(nodes)
    if not rest:
        return Number(number_of(first.text), _places(first.text))
    if rest[0].is_sign(r"\ldots"):
        if len(rest) == 1 and "." in first.text:
            return _with_ellipsis(first.text)
    elif rest[0].is_sign(r"\overline \dot") and len(rest) == 2 and "." in first.text:
        period = written(unwrap(rest[1:])).replace(" ", "")
        if period.isdigit():
            return Number(number_of(first.text) + repeated(first.text, period))
    elif rest[0].is_sign("_") and len(rest) == 2 and first.text.isdigit():
        base = written(unwrap(rest[1:])).replace(" ", "")
        if base.isdigit() and 2 <= int(base) <= 36:
            return Number(Fraction(int(first.text)), base=int(base))
    elif rest[0].is_sign("/") and len(rest) == 2 and rest[1].kind == "number":
        return _ratio(first.text, rest[1].text)
    elif not first.text.isdigit():
        return None
    elif rest[0].kind == "number" and rest[0].spaced and len(rest) == 3:
        if rest[1].is_sign("/") and rest[2].kind == "number":
            part = _ratio(rest[0].text, rest[2].text)
            if not 0 < part.value < 1:
                raise UnreadableError("an improper mixed number")
            return Number(int(first.text) + part.value)
    elif rest[0].text == r"\frac":
        part_of_latex = _fraction(rest)
        if part_of_latex is not None and 0 < part_of_latex.value < 1:
            return Number(int(first.text) + part_of_latex.value)
    return None


def _fraction(nodes: Nodes) -> Number | None:
    """Reads a fraction whose two arguments stand in braces or are digits."""
    if nodes[0].text != r"\frac" or len(nodes) not in (2, 3):
        return None
    if len(nodes) == 2:
        # `\frac12`
        digits = nodes[1].text
        if nodes[1].kind != "number" or len(digits) != 2 or not digits.isdigit():
            return None
        return _ratio(digits[0], digits[1])
    parts = [unwrap((node,)) for node in nodes[1:]]
    if any(len(part) != 1 or part[0].kind != "number" for part in parts):
        return None
    if nodes[1].kind == "number" and len(nodes[1].text) > 1:
        return None
    return _ratio(parts[0][0].text, parts[1][0].text)


def _ratio(top: str, bottom: str) -> Number:
    if number_of(bottom) == 0:
        raise UnreadableError("division by zero")
    return Number(number_of(top) / number_of(bottom))


def _places(text: str) -> int | None:
    mantissa, _, exponent = text.lower().partition("e")
    if exponent:
        return None
    decimals = mantissa.partition(".")[2]
    return len(decimals) or None


def _with_ellipsis(text: str) -> Number:
    """Reads `0.333...` as 1/3, and what repeats nothing as the decimal it is."""
    value, decimals = number_of(text), text.partition(".")[2]
    found = _REPEATED.search(decimals)
    if found is None:
        return Number(value, _places(text))
    period = found[1] or found[2]
    return Number(value + repeated(text, period))


def same_number(gold: Number, answer: Number) -> bool:
    """Compares two numbers by the rules of this module."""
    if gold.base != answer.base and answer.base is not None:
        # Without a base it is ten, and only then may a gold answer leave it out.
        return gold.base is None and answer.base == 10 and gold.value == answer.value
    if gold.percent != answer.percent and gold.value == answer.value:
        # A numeral above 1 takes a sign; a fraction with a sign is its own value.
        numeral = answer.value.denominator == 1 or answer.places is not None
        return gold.percent or (numeral and abs(answer.value) > 1)
    return gold.exact == answer.exact or _rounds(gold, answer) or _rounds(answer, gold)


def _rounds(decimal: Number, other: Number) -> bool:
    places = decimal.places
    if places is None or places < ROUNDED_PLACES or decimal.percent != other.percent:
        return False
    if other.places is not None and other.places <= places:
        return False
    return abs(decimal.value - other.value) <= Fraction(501, 1000 * 10**places)
