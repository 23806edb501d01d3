r"""Units and currencies at the end of an answer: found, named and taken off.

A unit that only one side states is a matter of style ("5" for "5 cm"); two known units
that differ are two answers ("5 m" is not "5 km").
"""

import re

# Canonical name: its other spellings. Plurals in -s and -es are understood.
_SPELLINGS = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "dm": "decimeter decimetre",
    "m": "meter metre mtr",
    "km": "kilometer kilometre",
    "inch": "in",
    "foot": "feet ft",
    "yard": "yd",
    "mile": "mi",
    "mg": "milligram",
    "g": "gram gm",
    "kg": "kilogram",
    "ton": "tonne",
    "ounce": "oz",
    "pound": "lb",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "gallon": "gal",
    "cup": "",
    "acre": "",
    "hectare": "ha",
    "second": "s sec",
    "minute": "min",
    "hour": "h hr",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr",
    "degree": "deg",
    "radian": "rad",
    "celsius": "",
    "fahrenheit": "",
    "am": "",
    "pm": "",
    "dollar": "usd buck",
    "cent": "",
    "euro": "eur",
    "sterling": "gbp",
    "yen": "jpy",
    "yuan": "rmb cny",
    "rupee": "rs inr",
    "volt": "v",
    "ampere": "a amp",
    "ohm": "",
    "watt": "w",
    "joule": "j",
    "kj": "kilojoule",
    "newton": "n",
    "pascal": "pa",
    "hertz": "hz",
    "kelvin": "k",
    "mole": "mol",
    "unit": "",
}
_NAMES = {
    spelling: name
    for name, spellings in _SPELLINGS.items()
    for spelling in (name, *spellings.split())
} | {"mph": "mile/hour", "kph": "km/hour", "kmph": "km/hour", "kmh": "km/hour"}
# Words that belong to a unit and name none.
_FILLERS = {"square", "sq", "squared", "cubic", "cu", "cubed", "per", "each", "of"}
# Words after a number that change its value or join it to something else.
_NOT_UNITS = re.compile(
    r"\b(?:and|or|to|not|if|when|mod|modulo|plus|minus|times|over|factorial|dozen|"
    r"hundred|thousand|million|billion|trillion|half|halves|quarters?|\w+ths?|thirds?|"
    r"remainder|pi|sqrt|sin|cos|tan|log|ln|exp|inf|infinity|percent\w*|pct|none|no)\b"
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"(?i)\s*(?<![a-z])({'|'.join(_SCALES)})s?(?![a-z])")
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "sterling", "¥": "yen", "₹": "rupee"}
_MONEY_BEFORE = re.compile(
    r"^(?P<sign>[+-]?)\s*(?:\\?(?P<symbol>[$€£¥₹])|(?P<word>(?i:USD|EUR|GBP|Rs\.?))"
    r"(?=[\s\d.]))\s*(?=[\d.+-])"
)
_MONEY_AFTER = re.compile(r"(?<=\d)\s*\\?(?P<symbol>[$€£¥₹])$")
_DEGREES = re.compile(
    r"\s*(?:\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degrees?|(?<=\d)\^\{(?:\s*o\s*|\\text\{\s*o\s*\})\})"
    r"\s*(?P<scale>[CF]?)$"
)
# A run of words with exponents and slashes at the end, after something that is a value.
_WORD = r"[A-Za-z]+\.?(?:\s*\^\s*\{?-?\d\}?)?"
_TAIL = re.compile(rf"(?<=[\d}})\]])(?P<gap>\s*)(?P<unit>{_WORD}(?:[\s/*-]+{_WORD})*)$")
_NUMBER = re.compile(r"[+-]?[\d.,\s/]+")
_TEXT_TAIL = re.compile(
    r"(?<=[\d}\])a-zA-Z])\s*\\text\{(?P<unit>[^{}]*)\}\s*(?:\^\s*\{?-?\d\}?)?$"
)
_FRACTION_TAIL = re.compile(
    r"(?<=\d)\s*\\frac\{\s*\\text\{([^{}]*)\}\s*\}"
    r"\{\s*\\text\{([^{}]*)\}\s*(?:\^\s*\{?\d\}?)?\}$"
)


def unit_names(text: str) -> frozenset[str] | None:
    """Returns the canonical units in a text; None if a word of it is unknown."""
    names: set[str] = set()
    for word in re.findall(r"[a-z]+", text.lower().replace(".", "")):
        if word in _FILLERS:
            continue
        stems = (word, word.removesuffix("s"), word.removesuffix("es"))
        name = next((_NAMES[stem] for stem in stems if stem in _NAMES), None)
        if name is None:
            return None
        names.update(name.split("/"))
    return frozenset(names)


def units_conflict(first: frozenset[str], second: frozenset[str]) -> bool:
    """Says whether two sets of units cannot be meant for the same quantity."""
    first, second = first - {"unit"}, second - {"unit"}
    return not (first <= second or second <= first)


def take_off_unit(text: str) -> tuple[str, frozenset[str]]:
    r"""Takes unit, currency or degree sign off an answer.

    Words in `\text{...}` behind a value are prose whatever they say. Plain words must
    be known units, or follow a plain number; a single plain letter is a unit only after
    a plain number and a space, since `5m` is a product.

    Args:
        text: an answer in LaTeX, without white space at both ends.

    Returns:
        The answer without its unit, and the canonical names of the known units.
    """
    found = _MONEY_BEFORE.match(text)
    if found:
        word = found["word"]
        unit = unit_names(word) if word else {_CURRENCIES[found["symbol"]]}
        text = found["sign"] + text[found.end() :]
        rest, more = take_off_unit(text)
        return rest, frozenset(unit or ()) | more
    for pattern in (_MONEY_AFTER, _DEGREES):
        found = pattern.search(text)
        if found and text[: found.start()].strip():
            groups = found.groupdict()
            if "symbol" in groups:
                unit = {_CURRENCIES[groups["symbol"]]}
            else:
                scale = {"": "degree", "C": "celsius", "F": "fahrenheit"}
                unit = {scale[groups["scale"]]}
            return text[: found.start()].strip(), frozenset(unit)
    found = _FRACTION_TAIL.search(text)
    if found:
        unit = unit_names(" ".join(found.groups()))
        return text[: found.start()].strip(), unit or frozenset()
    found = _TEXT_TAIL.search(text)
    if found and not _NOT_UNITS.search(found["unit"].lower()):
        before = text[: found.start()].strip()
        # "\text{5 or }\text{6}" is no value with a unit.
        rest, more = take_off_unit(before)
        return rest, (unit_names(found["unit"]) or frozenset()) | more
    found = _TAIL.search(text)
    if found and not _NOT_UNITS.search(found["unit"].lower()):
        before = text[: found.start()].strip()
        words = re.findall(r"[A-Za-z]+", found["unit"])
        plain = _NUMBER.fullmatch(before) is not None
        known = unit_names(found["unit"])
        long = all(len(word) > 1 for word in words)
        prose = plain and all(
            len(word) > 2 and re.search("[aeiouyAEIOUY]", word) for word in words
        )
        if (known is not None and (long or (plain and found["gap"]))) or prose:
            return before, known or frozenset()
        if known is not None and plain and len(words) > 1 and "/" in found["unit"]:
            return before, known
    return text, frozenset()


def spell_out_scale(text: str) -> str:
    r"""Writes "1.8 million" as `1.8\times 10^{6}`."""
    found = _SCALE.search(text)
    if found and re.search(r"\d\s*$", text[: found.start()]):
        power = _SCALES[found[1].lower()]
        before, after = text[: found.start()].strip(), text[found.end() :]
        return f"{before}\\times 10^{{{power}}}{after}"
    return text
