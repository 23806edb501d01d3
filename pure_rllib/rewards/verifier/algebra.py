r"""Nodes of LaTeX read as SymPy expressions.

`i` and `e` are the imaginary unit and Euler's number, upright or not; every other
letter is a variable. Neighbours are multiplied. What is more than a formula (sums,
integrals, limits, cases) is left to Math-Verify, as is what is nested deeper than
`MAX_DEPTH`.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import sympy
from sympy.core.function import UndefinedFunction

from pure_rllib.rewards.verifier.cursor import CLOSING, Cursor
from pure_rllib.rewards.verifier.functions import (
    ACCENTS,
    APPLIED,
    BEYOND,
    CONSTANTS,
    DROPPED_ACCENTS,
    FUNCTIONS,
    INVERSES,
    MATRICES,
    SHAPES,
    TAKES_DEGREES,
    is_function,
)
from pure_rllib.rewards.verifier.latex import (
    MAX_DEPTH,
    BeyondError,
    Node,
    Nodes,
    UnreadableError,
    unwrap,
    written,
)
from pure_rllib.rewards.verifier.structure import split

# 10 to this power is written as an exponent, never as digits; more is hostile.
MAX_EXPONENT = 10_000


def read_expression(nodes: Nodes, *, wide_slash: bool = False) -> Any:
    r"""Reads nodes as one SymPy expression or matrix.

    Args:
        nodes: the whole of a formula without relations or separators.
        wide_slash: whether `a/bc` is `a/(bc)` rather than `(a/b)c`; both are in use.

    Raises:
        BeyondError: Math-Verify may read it.
        UnreadableError: it is no formula.
    """
    reader = _Formula(nodes, wide_slash, 0)
    try:
        value = reader.sum()
    except UnreadableError:
        raise
    except (TypeError, AttributeError, ArithmeticError, ValueError) as error:
        # A matrix where none can be, or a function of too many arguments.
        raise UnreadableError(str(error)) from error
    if reader.position != len(reader.nodes):
        rest = written(reader.nodes[reader.position :])
        raise UnreadableError(f"{rest} cannot stand here")
    if value is sympy.nan or value is sympy.zoo:
        raise UnreadableError("division by zero")
    return value


def number_of(text: str) -> Fraction:
    """Reads the text of a `number` node exactly."""
    digits, _, exponent = text.replace(",", "").lower().partition("e")
    if exponent and abs(int(exponent)) > MAX_EXPONENT:
        raise BeyondError("a huge exponent")
    return Fraction(digits + ("0" if digits.endswith(".") else "")) * (
        Fraction(10) ** int(exponent) if exponent else 1
    )


def rational(value: Fraction) -> sympy.Rational:
    """Writes a fraction for SymPy."""
    return sympy.Rational(value.numerator, value.denominator)


class _Formula(Cursor):
    """Recursive descent over nodes; a method per level of precedence."""

    def __init__(self, nodes: Nodes, wide_slash: bool, depth: int, trig: bool = False):
        if depth > MAX_DEPTH:
            raise BeyondError("too deep")
        super().__init__(nodes)
        self.wide_slash, self.depth, self.trig = wide_slash, depth, trig

    def _inside(self, nodes: Nodes, trig: bool | None = None) -> Any:
        trig = self.trig if trig is None else trig
        inner = _Formula(nodes, self.wide_slash, self.depth + 1, trig)
        value = inner.sum()
        if inner.position != len(inner.nodes):
            raise UnreadableError("rest of a group")
        return value

    def sum(self) -> Any:
        value = self._product()
        while self.next_is("+ -"):
            minus = self.take().text == "-"
            term = self._product()
            value = value - term if minus else value + term
        return value

    def _product(self) -> Any:
        negative = False
        while self.next_is("+ -"):
            negative ^= self.take().text == "-"
        value = self._mixed_number()
        if value is None:
            value = self._power()
        while True:
            node = self.peek()
            if node is None:
                break
            if node.is_sign(r"* \cdot \times"):
                self.take()
                value = value * self._signed_power()
            elif node.is_sign(r"\bmod"):
                self.take()
                value = sympy.Mod(value, self._signed_power())
            elif node.is_sign(r"/ \div"):
                self.take()
                divisor = self._signed_power()
                while self.wide_slash and self._starts_factor(self.peek()):
                    divisor = divisor * self._power()
                value = self._divided(value, divisor)
            elif node.is_sign(r"\over"):
                self.take()
                value = self._divided(value, self.sum())
            elif self._starts_factor(node):
                before = self.nodes[self.position - 1].kind
                if node.kind == "number" and before in ("number", "letter", "group"):
                    raise UnreadableError("a number behind a factor")
                value = value * self._power()
            else:
                break
        return -value if negative else value

    def _signed_power(self) -> Any:
        if self.next_is("+ -"):
            sign = self.take().text
            value = self._signed_power()
            return -value if sign == "-" else value
        return self._power()

    @staticmethod
    def _divided(top: Any, bottom: Any) -> Any:
        if bottom == 0:
            raise UnreadableError("division by zero")
        return top / bottom

    def _mixed_number(self) -> Any:
        r"""Reads `2\frac{1}{2}` and `2 1/2` as 5/2; `2 3/2` is nothing."""
        whole, node = self.peek(), self.peek(1)
        if whole is None or node is None or whole.kind != "number":
            return None
        if not whole.text.isdigit():
            return None
        if node.text == r"\frac":
            before = self.nodes[: self.position + 2]
            ahead = _Formula(self.nodes[self.position + 2 :], False, self.depth + 1)
            parts = [written(unwrap(ahead.argument())) for _ in range(2)]
            # `\frac12` is parted there.
            self.nodes = (*before, *ahead.nodes)
            length, plain = 2 + ahead.position, False
        elif node.kind == "number" and node.spaced and node.text.isdigit():
            slash, bottom = self.peek(2), self.peek(3)
            if slash is None or bottom is None or slash.text != "/":
                raise UnreadableError("two numbers side by side")
            parts, length, plain = [node.text, bottom.text], 4, True
        else:
            return None
        if not all(part.isdigit() for part in parts):
            return None
        top, bottom_value = map(int, parts)
        if not 0 < top < bottom_value:
            if plain:
                raise UnreadableError("an improper mixed number")
            return None
        self.position += length
        return sympy.Integer(whole.text) + sympy.Rational(top, bottom_value)

    def _starts_factor(self, node: Node | None) -> bool:
        if node is None:
            return False
        if node.kind != "sign":
            return not node.is_sign(
                r"\rfloor \rceil \cdot \times \div \over \bmod \pm \mp \rangle \%"
            )
        return node.text in "([" and len(node.text) == 1

    def _power(self) -> Any:
        start = self.position
        value = self._atom()
        base = self.nodes[start]
        while (node := self.peek()) is not None:
            if node.is_sign("^"):
                self.take()
                value = self._raised(value, base)
            elif node.is_sign("'"):
                self.take()
                value = self._named(value, "'")
            elif node.is_sign("!"):
                self.take()
                double = self.next_is("!") and not self.peek().spaced  # type: ignore[union-attr]
                if double:
                    self.take()
                value = (sympy.factorial2 if double else sympy.factorial)(value)
            elif node.is_sign(r"% \%"):
                self.take()
                value = value / 100
            else:
                break
        return value

    def _raised(self, value: Any, base: Node) -> Any:
        exponent = unwrap(self.argument(signed=True))
        marks = written(exponent).replace(" ", "")
        if marks == r"\circ":
            return value * sympy.pi / 180 if self.trig else value
        if marks in ("st", "nd", "rd", "th") and value.is_number:
            return value
        if isinstance(value, sympy.MatrixBase) and marks in ("T", r"\top", "t"):
            return value.T
        if marks in ("*", "+", "-", r"\star", r"\dagger"):
            return self._named(value, f"^{marks}")
        return value ** self._inside(exponent, trig=False)

    @staticmethod
    def _named(value: Any, mark: str) -> Any:
        if isinstance(value, UndefinedFunction):
            return sympy.Function(value.__name__ + mark)
        if not isinstance(value, sympy.Symbol):
            raise UnreadableError("only names have primes and stars")
        return sympy.Symbol(value.name + mark)

    def _atom(self) -> Any:
        node = self.take()
        if node.kind == "number":
            return self._number(node)
        if node.kind == "letter":
            return self._letter(node)
        if node.kind in ("word", "text"):
            return self._word(node)
        if node.kind == "group":
            return self._inside(node.parts[0])
        if node.kind == "rows":
            return self._rows(node)
        if node.text in CLOSING:
            inner = self._inside(self.enclosed(node.text))
            wrap = {
                "|": lambda m: m.det() if hasattr(m, "det") else sympy.Abs(m),
                r"\lfloor": sympy.floor,
                r"\lceil": sympy.ceiling,
            }
            return wrap.get(node.text, lambda value: value)(inner)
        if node.kind == "command":
            return self._command(node.text)
        raise UnreadableError(f"{node.text} cannot stand here")

    def _number(self, node: Node) -> Any:
        value = number_of(node.text)
        following = self.peek()
        if following is not None and following.text in (r"\overline", r"\dot"):
            if "." in node.text:
                self.take()
                period = written(unwrap(self.argument())).replace(" ", "")
                if not period.isdigit():
                    raise UnreadableError("a period without digits")
                value += repeated(node.text, period)
        elif following is not None and following.is_sign("_"):
            raise UnreadableError("a number in another base is no formula")
        return rational(value)

    def _letter(self, node: Node) -> Any:
        following = self.peek()
        marked = following is not None and following.is_sign("_")
        if node.text in "ie" and not marked:
            return sympy.I if node.text == "i" else sympy.E
        name = node.text + self.subscript()
        behind = self.peek()
        if behind is not None and behind.kind == "number" and not behind.spaced:
            # Programs write x2 for a second x.
            name += "_" + self.take().text
        if name[0] in APPLIED or self._is_called():
            return self._applied(name)
        return sympy.Symbol(name)

    def _is_called(self) -> bool:
        """Says whether a number alone in brackets follows: `I(0)` is no product."""
        nodes = self.nodes[self.position : self.position + 3]
        return (
            len(nodes) == 3
            and nodes[0].is_sign("(")
            and not nodes[0].spaced
            and nodes[1].kind == "number"
            and nodes[2].is_sign(")")
        )

    def _applied(self, name: str) -> Any:
        """Reads `f(x)`, `f'(x)` as a function's value, `f` alone as a name."""
        ahead = self.position
        while self.next_is("'"):
            name += self.take().text
        if self.next_is("("):
            self.take()
            arguments = split(self.enclosed("("), ",")
            return sympy.Function(name)(*(self._inside(a) for a in arguments))
        self.position = ahead
        return sympy.Symbol(name.rstrip("'"))

    def _word(self, node: Node) -> Any:
        name = node.text
        following = self.peek()
        if name in ("np", "math", "numpy", "sympy") and self.next_is("."):
            self.take()
            return self._atom()
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in FUNCTIONS:
            return self._function(FUNCTIONS[name])
        if node.kind == "text" and not (name.isalpha() and name.isupper()):
            if following is not None and following.is_sign("("):
                raise UnreadableError("an unknown function")
            return sympy.Symbol(name.lower() + self.subscript())
        for function in sorted(FUNCTIONS, key=len, reverse=True):
            before, found, after = name.partition(function)
            if found and not after and len(function) > 2 and following is not None:
                letters = tuple(Node("letter", char) for char in before)
                return self._inside(letters) * self._function(FUNCTIONS[function])
        # Letters in a row are a product; marks belong to the last one.
        letters = tuple(Node("letter", char) for char in name)
        self.nodes = (
            *self.nodes[: self.position - 1],
            *letters,
            *self.nodes[self.position :],
        )
        self.position -= 1
        return self._atom()

    def _command(self, text: str) -> Any:
        name = text[1:]
        if text in CONSTANTS:
            return CONSTANTS[text]
        if name == "frac":
            top, bottom = (self._inside(self.argument()) for _ in range(2))
            return self._divided(top, bottom)
        if name == "sqrt":
            degree = sympy.Integer(2)
            if self.next_is("["):
                self.take()
                degree = self._inside(self.enclosed("["))
            node = self.peek()
            if node is not None and (node.is_sign("(") or node.kind == "number"):
                # `\sqrt 12` without braces is meant as a whole.
                radicand = self._atom()
            else:
                radicand = self._inside(self.argument())
            if degree.is_odd and radicand.is_negative:
                # The root that is real: `\sqrt[3]{-8}` is -2.
                return -sympy.root(-radicand, degree)
            return sympy.root(radicand, degree)
        if name == "binom":
            return sympy.binomial(*(self._inside(self.argument()) for _ in range(2)))
        if name in BEYOND:
            raise BeyondError(text)
        if name in FUNCTIONS:
            return self._function(FUNCTIONS[name])
        if text in DROPPED_ACCENTS:
            return self._inside(self.argument())
        if name in ACCENTS:
            nodes = self.argument()
            if name == "overline" and any(node.kind == "number" for node in nodes):
                return sympy.conjugate(self._inside(nodes))
            inner = written(unwrap(nodes)).replace(" ", "")
            return sympy.Symbol(f"{name}({inner}){self.subscript()}")
        if text in SHAPES:
            return self._shape(name)
        # Greek letters, and names that somebody has defined.
        return sympy.Symbol(name + self.subscript())

    def _shape(self, name: str) -> Any:
        """Reads an angle by its letters, which may be said from either end."""
        points: list[str] = []
        while (node := self.peek()) is not None and node.kind in ("letter", "word"):
            points += self.take().text
            points[-1] += self.subscript()
        if not points:
            return sympy.Symbol(name + written(unwrap(self.argument())))
        return sympy.Symbol(name + "".join(min(points, points[::-1])))

    def _function(self, function: Callable[..., Any]) -> Any:
        power, base = None, None
        if self.next_is("_"):
            self.take()
            node = self.peek()
            base = self._atom() if node is not None else None
        if self.next_is("^"):
            self.take()
            power = self._inside(unwrap(self.argument(signed=True)), trig=False)
            if power == -1 and function in INVERSES:
                function, power = INVERSES[function], None
        trig = function in TAKES_DEGREES
        if self.next_is("("):
            self.take()
            parts = split(self.enclosed("("), ",")
            arguments = [self._inside(part, trig) for part in parts]
        elif (node := self.peek()) is not None and node.kind == "group":
            arguments = [self._inside(self.argument(), trig)]
        else:
            arguments = [self._bare_argument(trig)]
        if base is not None:
            arguments.append(base)
        value = function(*arguments)
        return value if power is None else value**power

    def _bare_argument(self, trig: bool) -> Any:
        r"""Reads `2x` of `\sin 2x`: factors up to a sign or the next function."""
        outer, self.trig = self.trig, trig
        value = self._signed_power()
        while (node := self.peek()) is not None:
            if (
                is_function(node)
                or node.is_sign("( [")
                or not self._starts_factor(node)
            ):
                break
            value = value * self._power()
        self.trig = outer
        return value

    def _rows(self, node: Node) -> Any:
        if node.text not in MATRICES:
            raise BeyondError(node.text)
        if len(set(node.widths)) != 1:
            raise UnreadableError("rows of different lengths")
        cells = [self._inside(cell) for cell in node.parts]
        matrix = sympy.Matrix(len(node.widths), node.widths[0], cells)
        return matrix.det() if node.text == "vmatrix" else matrix


def repeated(digits: str, period: str) -> Fraction:
    """Returns what `period`, repeated for ever, adds to a decimal of these digits."""
    places = len(digits.partition(".")[2])
    return Fraction(int(period), 10**places * (10 ** len(period) - 1))
