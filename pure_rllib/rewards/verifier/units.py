r"""Units: pint's, with currencies, read from the nodes behind a value."""

import functools
import re
from pathlib import Path
from typing import Any

import pint

from pure_rllib.rewards.verifier.latex import Node, Nodes, unwrap

# Money is a dimension per currency: nobody's rates are asked for here.
_MONEY = """
dollar = [dollar] = USD = buck
cent = 0.01 dollar
euro = [euro] = EUR
sterling = [sterling] = GBP = quid
yen = [yen] = JPY
yuan = [yuan] = CNY = RMB
rupee = [rupee] = INR = Rs
"""
CURRENCIES = {"$": "dollar", "€": "euro", "£": "sterling", "¥": "yen", "₹": "rupee"}
_SPELLED_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
_SIGNS = {r"\Omega": "ohm", r"\AA": "angstrom"}


@functools.cache
def registry() -> pint.UnitRegistry[Any]:
    """Returns pint's units and the currencies; building it takes half a second."""
    units: pint.UnitRegistry[Any] = pint.UnitRegistry(cache_folder=None)
    for line in _MONEY.strip().splitlines():
        units.define(line)
    return units


@functools.cache
def _constants() -> frozenset[str]:
    """Names of physical constants, which pint keeps among its units."""
    path = Path(pint.__file__).with_name("constants_en.txt")
    lines = path.read_text().splitlines()
    return frozenset(line.split("=")[0].strip() for line in lines if "=" in line)


@functools.lru_cache(maxsize=4096)
def unit_named(word: str) -> str | None:
    """Returns pint's name of a unit that a word or symbol is, or None."""
    for name in (word, word.lower()) if len(word) > 2 else (word,):
        for prefix, unit, plural in registry().parse_unit_name(name):
            symbol = prefix != "" and not name.startswith(prefix)
            # A prefix's symbol goes with a unit's symbol, which has no plural and is
            # short: "cats" are no centi-atmospheres, "units" no micronits.
            short = not plural and len(name) <= 4
            if unit not in _constants() and (not symbol or short):
                return prefix + unit
    return None


def is_si_symbol(letter: str) -> bool:
    """Says whether a letter is the symbol of a coherent unit of the SI, or the gram."""
    name = unit_named(letter)
    if name is None or letter not in (registry().get_symbol(name), "g"):
        return False
    return letter == "g" or abs(factor_of(registry().Unit(name)) - 1) < 1e-9


def factor_of(unit: Any) -> float:
    """Returns how many of the base units one of a unit is."""
    return float(registry().Quantity(1, unit).to_base_units().magnitude)


def read_unit(nodes: Nodes, *, letters: bool) -> Any:
    """Reads nodes as a unit of pint's, or None.

    Args:
        nodes: all that follows a value.
        letters: whether italic letters and short words may be units.
    """
    parts = _unit_parts(nodes, letters)
    if not parts:
        return None
    unit, power = registry().Unit(""), 1
    for part in parts:
        if part == "/":
            power = -1
        elif isinstance(part, tuple):
            name, exponent = part
            unit = unit * registry().Unit(name) ** (power * exponent)
            power = power if part is not parts[-1] else 1
    return unit


def _unit_parts(nodes: Nodes, letters: bool) -> list[Any] | None:
    """Lists names with their powers, and `/`, or returns None for what is no unit."""
    parts: list[Any] = []
    pending = 0
    # Beside a unit that is spelled, a letter is one as well: `km/h`.
    beside = any(n.kind in ("word", "text") and len(n.text) > 1 for n in nodes)
    at = 0
    while at < len(nodes):
        node = nodes[at]
        at += 1
        if node.is_sign("/") or (node.kind in ("text", "word") and node.text == "per"):
            parts.append("/")
        elif node.is_sign(r"\cdot * \times ( )"):
            # All that follows a slash is below it, with brackets or without.
            continue
        elif node.is_sign("^") and parts and isinstance(parts[-1], tuple):
            if at == len(nodes):
                return None
            exponent = _integer(unwrap((nodes[at],)), nodes[at + 1 : at + 2])
            if exponent is None:
                return None
            at += 1 if nodes[at].kind == "group" or exponent >= 0 else 2
            parts[-1] = (parts[-1][0], parts[-1][1] * exponent)
        elif node.is_sign(r"\frac") and at + 1 < len(nodes):
            top = _unit_parts(unwrap(nodes[at : at + 1]), letters)
            bottom = _unit_parts(unwrap(nodes[at + 1 : at + 2]), letters)
            if top is None or bottom is None:
                return None
            parts += [*top, "/", *bottom]
            at += 2
        elif node.text in _SPELLED_POWERS:
            if node.text.endswith("d"):
                if not parts or not isinstance(parts[-1], tuple):
                    return None
                parts[-1] = (parts[-1][0], _SPELLED_POWERS[node.text])
            else:
                pending = _SPELLED_POWERS[node.text]
        elif node.text in _SIGNS:
            parts.append((_SIGNS[node.text], 1))
        elif node.is_sign(".") and parts:
            continue
        elif node.is_sign(r"\mu") and at < len(nodes):
            name = unit_named("µ" + nodes[at].text)
            if name is None:
                return None
            parts.append((name, 1))
            at += 1
        else:
            name = _unit_of(node, letters, beside)
            if name is None:
                return None
            parts.append((name, pending or 1))
            pending = 0
    return parts if any(isinstance(part, tuple) for part in parts) else None


def _unit_of(node: Node, letters: bool, beside: bool) -> str | None:
    if node.kind == "text":
        return unit_named(node.text)
    if node.kind == "letter":
        if node.upright:
            return None if node.text in "ie" else unit_named(node.text)
        known = beside or (letters and is_si_symbol(node.text))
        return unit_named(node.text) if known else None
    if node.kind == "word":
        # Two letters in a row may be variables: `\frac{3}{2} mg`.
        definite = len(node.text) > 2
        return unit_named(node.text) if letters or definite else None
    return None


def _integer(nodes: Nodes, behind: Nodes) -> int | None:
    text = "".join(node.text for node in nodes)
    if text == "-" and behind:
        text += behind[0].text
    return int(text) if re.fullmatch(r"-?\d", text) else None
