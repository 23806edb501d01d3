r"""What kind of answer a text is: the one place that decides it, from the outside in.

Lists are split first, then brackets are opened, then relations are cut at their signs;
what is left is a matrix, a number, a quantity, words or a formula.
"""

import re
from typing import Any

import sympy

from pure_rllib.rewards.verifier.functions import APPLIED, CONSTANTS
from pure_rllib.rewards.verifier.kinds.choice import Choice, read_choice
from pure_rllib.rewards.verifier.kinds.collection import Collection
from pure_rllib.rewards.verifier.kinds.expression import Expression, formula
from pure_rllib.rewards.verifier.kinds.interval import Region, region_of
from pure_rllib.rewards.verifier.kinds.matrix import Matrix
from pure_rllib.rewards.verifier.kinds.number import Number, read_number
from pure_rllib.rewards.verifier.kinds.quantity import (
    SCALES,
    Quantity,
    is_scale,
    split_unit,
)
from pure_rllib.rewards.verifier.kinds.relation import SIGNS, Relation
from pure_rllib.rewards.verifier.kinds.text import Text, read_text
from pure_rllib.rewards.verifier.latex import (
    BeyondError,
    Node,
    Nodes,
    UnreadableError,
    tokens,
    unwrap,
    written,
)
from pure_rllib.rewards.verifier.structure import (
    is_closed_by_last,
    list_items,
    outer,
    signed_variants,
    split,
)

Answer = (
    Number
    | Quantity
    | Expression
    | Relation
    | Region
    | Collection
    | Matrix
    | Choice
    | Text
)
_CASES = {"cases", "dcases", "rcases"}
_LINES = {"aligned", "align", "gathered", "gather", "split", "eqnarray", "alignedat"}
_CONDITIONALS = {"if", "for", "when", "where"}
_CLOSING = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle"}
_SET_SIGNS = r"\cup \cap \setminus"
_RATIO = Node("sign", ":")
_NUMBER_SETS = {
    r"\mathbbR": sympy.S.Reals, r"\mathbbZ": sympy.S.Integers,
    r"\mathbbN": sympy.S.Naturals, r"\mathbbQ": sympy.S.Rationals,
    r"\mathbbC": sympy.S.Complexes,
}  # fmt: skip
_HALVES = {
    "+": sympy.Interval.open(0, sympy.oo), "-": sympy.Interval.open(-sympy.oo, 0),
}  # fmt: skip
_ALL_REALS = {"all reals", "all real numbers", "real numbers", "all real x", "reals"}
_NOTHING = re.compile(
    r"no (?:real |such |integer )?(?:solution|root|value|number)s?|empty set|none"
)


class Reader:
    """Reads answers.

    Args:
        letters: whether a lone letter behind a plain number may be a unit.
    """

    def __init__(self, letters: bool = False):
        self.letters = letters

    def read(self, nodes: Nodes) -> Answer:
        """Reads nodes as one answer.

        Raises:
            BeyondError: Math-Verify may read it.
            UnreadableError: it is no answer of any kind.
        """
        nodes = self._trimmed(_in_words(nodes))
        if not nodes:
            raise UnreadableError("nothing is there")
        choice = read_choice(nodes)
        if choice is not None:
            return choice
        if nodes[0].kind == "rows" and len(nodes) == 1:
            if nodes[0].text in _CASES and set(nodes[0].widths) == {2}:
                return self._cases(nodes[0])
            if nodes[0].text in _LINES | _CASES:
                return self._lines(nodes[0])
        items, alternative = list_items(nodes)
        if len(items) > 1:
            return self._list(items, alternative)
        variants = signed_variants(nodes)
        if len(variants) > 1:
            found = tuple(self.read(variant) for variant in variants)
            # Unequal to both, equal to either.
            unequal = any(node.is_sign(r"\ne") for node in nodes)
            return Collection("", found, alternative=not unequal)
        return self._bracketed(nodes) or self._relation(nodes) or self._single(nodes)

    def _trimmed(self, nodes: Nodes) -> Nodes:
        nodes = unwrap(nodes)
        while (nodes and nodes[-1].is_sign(". , ; :")) or (
            len(nodes) > 1 and nodes[-1].is_sign("!") and nodes[-2].kind == "text"
        ):
            nodes = nodes[:-1]
        return unwrap(nodes)

    def _lines(self, node: Node) -> Answer:
        """Reads aligned lines as a list; `&` says nothing."""
        items, start = [], 0
        for width in node.widths:
            cells = node.parts[start : start + width]
            items.append(tuple(n for cell in cells for n in cell))
            start += width
        return self._list([item for item in items if item], False)

    def _cases(self, node: Node) -> Answer:
        """Reads a function by cases as the set of its values with their conditions."""
        pairs = []
        for value, condition in zip(node.parts[::2], node.parts[1::2], strict=True):
            while condition and condition[0].text.lower() in _CONDITIONALS:
                condition = condition[1:]
            parts = (self.read(value), self.read(condition))
            pairs.append(Collection("()", parts))
        return Collection(r"\{\}", tuple(pairs))

    def _list(self, items: list[Nodes], alternative: bool) -> Answer:
        found: list[Any] = []
        for item in items:
            answer = self.read(item)
            flat = isinstance(answer, Collection) and not answer.brackets
            found += answer.items if flat else [answer]  # type: ignore[union-attr]
        return (
            found[0] if len(found) == 1 else Collection("", tuple(found), alternative)
        )

    def _bracketed(self, nodes: Nodes) -> Answer | None:
        if _is_point(nodes):
            nodes = nodes[1:]
        opening, closing = nodes[0].text, nodes[-1].text
        if opening not in _CLOSING or not is_closed_by_last(nodes):
            return None
        inner = nodes[1:-1]
        if opening == r"\{" and closing == r"\}":
            condition = [i for i, n in enumerate(inner) if n.is_sign("| :")]
            if condition and len(inner) > condition[0] + 1:
                at = condition[0]
                return self._by_condition(inner[:at], inner[at + 1 :])
            if not inner:
                return Collection(r"\{\}", ())
        parts = split(inner, ",")
        if len(parts) == 1:
            parts = split(inner, ";")
        if len(parts) == 1:
            if opening == r"\{":
                found = self.read(inner)
                bare = isinstance(found, Collection) and not found.brackets
                return Collection(r"\{\}", found.items if bare else (found,))  # type: ignore[union-attr]
            return (
                self.read(inner) if opening in ("(", "[") and closing != r"\}" else None
            )
        items: list[Any] = []
        for part in parts:
            item = self.read(part)
            flat = (
                isinstance(item, Collection) and not item.brackets and opening == r"\{"
            )
            items += item.items if flat else [item]  # type: ignore[union-attr]
        return Collection(opening + closing, tuple(items))

    def _by_condition(self, form: Nodes, condition: Nodes) -> Answer:
        r"""Reads `\{x\in D \mid x>0\}` as a region, else a form and its condition."""
        holds = self.read(condition)
        region = region_of(holds)
        if region is not None and form and form[0].kind == "letter":
            if len(form) == 1:
                return Region(region)
            if form[1].is_sign(r"\in"):
                return Region(sympy.Intersection(self._set(form[2:]), region))
        return Collection(r"\{|\}", (self.read(form), holds))

    def _relation(self, nodes: Nodes) -> Answer | None:
        congruence = _with_modulus(nodes)
        if congruence is not None:
            return Collection("mod", tuple(self.read(part) for part in congruence))
        sides = split(nodes, SIGNS)
        if len(sides) > 1:
            level_signs = [n.text for n in outer(nodes) if n.is_sign(SIGNS)]
            if not sides[-1] or not sides[0]:
                if (
                    not sides[0]
                    and level_signs[0] in ("=", r"\approx")
                    and len(sides) == 2
                ):
                    return self.read(sides[1])
                raise UnreadableError("a relation without a side")
            return Relation(
                tuple(self._side(side) for side in sides), tuple(level_signs)
            )
        sides = split(tuple(_RATIO if _is_to(node) else node for node in nodes), ":")
        if len(sides) > 1 and all(sides):
            return Collection("::", tuple(self._part(side) for side in sides))
        if any(node.is_sign(_SET_SIGNS) for node in outer(nodes)):
            return Region(self._set(nodes))
        return None

    def _part(self, nodes: Nodes) -> Answer:
        """Reads a part of a ratio or a time: `30 pm` is no picometers."""
        words = None
        if any(node.kind in ("word", "text") for node in nodes):
            words = read_text(nodes, any_word=True)
        return words or self._side(nodes)

    def _side(self, nodes: Nodes) -> Answer:
        name = _named_value(nodes)
        if name is not None:
            return name
        try:
            answer = self.read(nodes)
            if isinstance(answer, Choice) and not answer.rest:
                return Expression(sympy.Symbol(answer.letter))
            return answer
        except UnreadableError:
            # "Maximum of f" = 5: what is defined need not be mathematics.
            words = read_text(nodes, any_word=True)
            if words is None:
                raise
            return words

    def _set(self, nodes: Nodes) -> Any:
        for sign, join in ((r"\cup", sympy.Union), (r"\cap", sympy.Intersection)):
            parts = split(nodes, sign)
            if len(parts) > 1:
                return join(*(self._set(part) for part in parts))
        parts = split(nodes, r"\setminus")
        if len(parts) > 1:
            regions = [self._set(part) for part in parts]
            return sympy.Complement(regions[0], sympy.Union(*regions[1:]))
        if not nodes or any(node.is_sign(_SET_SIGNS) for node in outer(nodes)):
            raise UnreadableError("a set without a side")
        region = region_of(self.read(nodes))
        if region is None:
            raise UnreadableError("no set")
        return region

    def _single(self, nodes: Nodes) -> Answer:
        if len(nodes) == 1:
            if nodes[0].text in _NUMBER_SETS:
                return Region(_NUMBER_SETS[nodes[0].text])
            if nodes[0].text == r"\emptyset":
                return Collection(r"\{\}", ())
        if nodes[0].text in _NUMBER_SETS and len(nodes) == 3:
            half = _HALVES.get(written(nodes[2:]))
            if half is not None and nodes[1].is_sign("^ _"):
                return Region(sympy.Intersection(_NUMBER_SETS[nodes[0].text], half))
        value = self._value(nodes)
        if value is not None:
            return value
        words = read_text(nodes)
        if words is not None and not _is_function(nodes):
            if words.words in _ALL_REALS:
                return Region(sympy.S.Reals)
            return Collection(r"\{\}", ()) if _NOTHING.fullmatch(words.words) else words
        try:
            found = formula(nodes)
        except BeyondError:
            raise
        except UnreadableError:
            words = read_text(nodes, any_word=True)
            if words is None:
                raise
            return words
        if isinstance(found.value, sympy.MatrixBase):
            return Matrix(found.value)
        return found

    def _value(self, nodes: Nodes) -> Answer | None:
        """Reads a number, a percent or a quantity."""
        number = read_number(nodes)
        if number is not None:
            return number
        last = nodes[-1]
        if last.is_sign(r"% \%") or last.text.lower() in (
            "percent",
            "percentage",
            "pct",
        ):
            return self._percent(nodes[:-1])
        if [node.text.lower() for node in nodes[-2:]] == ["per", "cent"]:
            return self._percent(nodes[:-2])
        if len(nodes) > 1 and is_scale(last):
            number = read_number(nodes[:-1])
            if number is not None:
                scale = SCALES[last.text.lower().removesuffix("s")]
                return Number(number.value * scale)
        found = split_unit(nodes, letters=self.letters)
        if found is None:
            return None
        if not found[0]:
            raise UnreadableError("a unit alone")
        value = self._value(found[0]) or formula(found[0])
        if not isinstance(value, Number | Expression):
            return None
        return Quantity(value, *found[1:])

    def _percent(self, nodes: Nodes) -> Answer | None:
        if not nodes:
            return None
        number = read_number(nodes)
        if number is not None:
            return Number(number.value, number.places, percent=True)
        return Expression(formula(nodes).value, percent=True)


def read(text: str, *, letters: bool = False, join_thousands: bool = True) -> Answer:
    """Reads a text as one answer. See `Reader.read`."""
    return Reader(letters).read(tokens(text, join_thousands=join_thousands))


def _in_words(nodes: Nodes) -> Nodes:
    r"""Opens `\text{...}` that holds more than words: numbers, lists, brackets."""
    found: list[Node] = []
    for node in nodes:
        content = node.text
        if node.kind != "text" or re.fullmatch(r"[^\W\d_]+", content):
            found.append(node)
            continue
        inner = tokens(content)
        for i, part in enumerate(inner):
            word = part.kind in ("word", "letter")
            spaced = part.spaced or (i == 0 and node.spaced)
            kind = "text" if word else part.kind
            found.append(Node(kind, part.text, part.parts, spaced, word))
    return tuple(found)


def _with_modulus(nodes: Nodes) -> tuple[Nodes, Nodes] | None:
    r"""Cuts off a modulus: `\pmod 5`, `(\bmod 5)`; `17 \bmod 5` is a number."""
    congruent = any(node.is_sign(r"\equiv") for node in nodes)
    for at, node in enumerate(nodes):
        if at and node.text in (r"\pmod", r"\mod", r"\bmod", "mod"):
            opened = nodes[at - 1].is_sign("(")
            if node.text == r"\bmod" and not (opened or congruent):
                return None
            left, right = nodes[: at - opened], nodes[at + 1 : len(nodes) - opened]
            return (left, right) if left and right else None
    return None


def _is_point(nodes: Nodes) -> bool:
    """Says whether a capital names coordinates, as in `P(2,3)`."""
    name = nodes[0].kind == "letter" and nodes[0].text.isupper()
    return (
        name
        and nodes[0].text not in APPLIED
        and is_closed_by_last(nodes[1:])
        and len(split(nodes[2:-1], ",")) > 1
        and any(node.kind == "number" for node in nodes)
    )


def _is_to(node: Node) -> bool:
    return node.kind in ("word", "text") and node.text == "to"


def _named_value(nodes: Nodes) -> Expression | None:
    """Reads a whole side such as `y(2)` or `P(A)` as the name of a value."""
    primes = sum(node.is_sign("'") for node in nodes)
    nodes = tuple(node for node in nodes if not node.is_sign("'"))
    if len(nodes) < 4 or nodes[0].kind != "letter" or not nodes[1].is_sign("("):
        return None
    arguments = split(nodes[2:-1], ",")
    if not nodes[-1].is_sign(")") or any(len(part) != 1 for part in arguments):
        return None
    if any(part[0].kind not in ("letter", "number") for part in arguments):
        return None
    names = [sympy.Symbol(part[0].text) for part in arguments]
    return Expression(sympy.Function(nodes[0].text + "'" * primes)(*names))


def _is_function(nodes: Nodes) -> bool:
    """Says whether upright words go into a formula: `\text{MR}-\text{MC}`."""
    words = [node.text for node in nodes if node.kind in ("word", "text")]
    if set(words) <= CONSTANTS.keys():
        return True
    signs = "( ^ _ = / -" if all(map(str.isupper, words)) else "( ^ _ = /"
    return any(node.is_sign(signs) for node in nodes)
