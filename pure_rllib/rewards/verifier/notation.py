r"""Answers rewritten by general rules, so that Math-Verify reads what is meant.

One value has many notations: `pi/2`, `\frac\pi2`, `1{,}000`, `x = 5`, `90^\circ`,
`2 1/2`, `(C) 12`. Each rule here is about notation, none about a value; each holds for
gold answers and responses alike. The module must stay light (no sympy): the workers'
start waits for it.
"""

import re
import unicodedata
from dataclasses import dataclass

from pure_rllib.data.boxed import find_boxes
from pure_rllib.rewards.verifier.units import spell_out_scale, take_off_unit

# Longer ones are expressions that no rule here is about, or hostile.
MAX_CHARS = 500
_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ",
    "⋅": r"\cdot ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "°": r"^\circ ", "±": r"\pm ", "√": r"\sqrt ", "ℝ": r"\mathbb{R}", "²": "^{2}",
    "³": "^{3}", "，": ",", "：": ":", "（": "(", "）": ")", "％": r"\%", "′": "'",
}  # fmt: skip
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_TEXT_COMMANDS = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt)|mbox|hbox|"
    r"operatorname)\s*(?=\{)"
)
_LAYOUT = (
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|limits)(?![A-Za-z])\s*"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne"),
    (re.compile(r"\\(?:varnothing|empty)(?![A-Za-z])|\\\{\s*\\\}"), r"\\emptyset"),
    # Separators of thousands that mean nothing else.
    (re.compile(r"(?<=\d)\s*(?:\{\s*,\s*\}|,\s*\\!)\s*(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\\!"), ""),
    (re.compile(r"[,\s]*\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}[,\s]*"), ", "),
    (re.compile(r"(?<=\d)\\[,;:](?=\d{3}(?!\d))"), ""),
    (re.compile(r"\\(?:[,;: ]|quad|qquad|enspace|thinspace)(?![A-Za-z])|~"), " "),
    (re.compile(r"(?<!\\)\s+"), " "),
)
_PREFIXES = re.compile(
    r"^(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the\s+)?(?:final\s+|correct\s+)?"
    r"answers?\s*(?:is|are|:|=)\s*:?|\\text\{\s*(?:the\s+)?(?:final\s+)?answers?\s*"
    r"(?:is|are|:)?\s*\}\s*[:=]?|(?:approximately|approx\.?|about)\s(?=[\d\\.$-])|"
    r"\\text\{\s*(?:approximately|about)\s*\}|\\approx(?![A-Za-z]))\s*",
    re.IGNORECASE,
)
# A letter in parentheses, or with one, a full stop or a colon behind it; no product.
_CHOICE = re.compile(
    r"^(?:\(\s*([A-Z])\s*\)|([A-Z])\s*(?:\)|[.:](?=\s|$)))\s*(?![-+*/^=<>,(_!\\]|:\S)"
)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?")
# 1.234,56 and 1 234,56: what follows the comma is the fraction.
_CONTINENTAL = re.compile(r"[+-]?\d{1,3}(?:(?:\.\d{3})+|(?: \d{3})+),\d+")
_INTEGER = r"(?:\d{1,3}(?:[ ,]\d{3})+|\d+)"
_MIXED = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<whole>{_INTEGER})"
    r"(?:[ \t\u00a0]+(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
    r"|\s*\\frac\s*\{?(?P<latex_top>\d+)\}?\s*\{?(?P<latex_bottom>\d+)\}?)"
)
# At the end of a sentence; what comes before must not belong to the number.
_MIXED_AT_END = re.compile(
    rf"(?:^|[^\d\s/.,)+*^\r\n-])[ \t]*(?P<mixed>[+-]?{_INTEGER}[ \t]+\d+/\d+)"
    r"[ \t]*(?P<percent>\\?%|percent(?:age)?|pct)?[ \t.$]*$",
    re.IGNORECASE,
)
_BRACKETED_AT_END = re.compile(
    r"\s\[\s*([+-]?[\d.,]+(?:\s*/\s*\d+)?[^\[\]\n,;()]{0,30})\][.\s]*$"
)
_PLAIN_NUMBER = re.compile(r"[+-]?(?:\d[\d.,]*|\.\d+)(?:\s*/\s*\d+)?\s*%?")
LINE_ENDS = re.compile("\r\n?|[\n\x0b\x85\u2028\u2029]")
_PERCENT = re.compile(
    r"\s*(?:\\?%|\\text\{\s*(?:\\?%|percent|per\s?cent|percentage|pct)\.?\s*\}"
    r"|(?<![A-Za-z\\])(?:percent|per cent|percentage|pct))\s*$",
    re.IGNORECASE,
)
_BASE = re.compile(r"([0-9A-Fa-f]+)_\s*(?:\{\s*(\d{1,2})\s*\}|(\d{1,2}))")
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})")
_FUNCTIONS = "arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|ln|log|exp"
_PLAIN = (
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!="), r"\\ne "),
    (re.compile(r"\*"), r"\\cdot "),
    (re.compile(r"(?<![A-Za-z\\])(?i:pi)(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![A-Za-z\\])inf(?:inity)?(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"(?<![A-Za-z\\])sqrt(?=\s*[\d({])"), r"\\sqrt"),
    (re.compile(rf"(?<![A-Za-z\\])({_FUNCTIONS})(?=\s*[\d({{^\\]|\s[a-z]\b)"), r"\\\1"),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt\s+(\d+|\w)"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt\s*(\d\d+)$"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt(\[\w+\])\s*(\w)"), r"\\sqrt\1{\2}"),
)
# What TeX takes as an argument without braces; two digits are left to Math-Verify.
_BARE_ARGUMENTS = re.compile(
    r"\\(?P<name>frac|binom)\s*"
    r"(?P<top>\{[^{}]*\}|\\(?:pi|theta|alpha|beta)(?![A-Za-z])|[A-Za-z0-9])\s*"
    r"(?P<bottom>\{[^{}]*\}|\\(?:pi|theta|alpha|beta)(?![A-Za-z])|[A-Za-z0-9])"
)
_CONNECTORS = re.compile(
    r"\s*(?:[,;]\s*)?(?:\\text\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
    r"|;)\s*(?:,\s*)?"
)
_WHOLE_FRACTION = re.compile(r"(?<![\w.}])(\d+)/(\d+)(?=\s*[A-Za-z\\(])")
_DEFINITION = re.compile(r"([A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?)\s*=([^=]+)")
_ALL_REALS = {"all reals", "all real numbers", "real numbers", "the real numbers"}
_NOTHING = {"no solution", "no solutions", "empty set", "the empty set"}
_HALF_DAY = re.compile(r"\b([ap])\.\s?m\b\.?", re.IGNORECASE)
_WORDS = re.compile(r"[A-Za-z][A-Za-z' .-]*")
_LATEX_NAMES = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """One answer as it is compared.

    Attributes:
        latex: what Math-Verify is to read; "" if the answer is not well formed.
        key: answers with the same key are the same answer.
        words: an answer in words: lower case, single spaces; None for mathematics.
        choice: the letter of a multiple choice, or None.
        units: canonical names of the units that were taken off.
        percent: whether a percent sign stood at the end.
        base: of a number's digits where a subscript names it, or None.
    """

    latex: str
    key: str
    words: str | None = None
    choice: str | None = None
    units: frozenset[str] = frozenset()
    percent: bool = False
    base: int | None = None


def single_answer(text: str) -> str | None:
    r"""Returns the one answer that a text consists of, or None.

    That is the content of its only box, of dollar signs around the whole, or a text
    without a sentence's words.

    Args:
        text: what `boxed.answer_text` or `boxed.gold_text` returned.
    """
    boxes = find_boxes(text)
    if boxes:
        return boxes[0][2] if len(boxes) == 1 else None
    if r"\boxed" in text or r"\fbox" in text:
        return None
    bare = re.sub(r"<\|\w+\|>", "", text).strip()
    if len(bare) > MAX_CHARS or LINE_ENDS.search(bare):
        return None
    if any(kind.fullmatch(bare) for kind in (_PLAIN_NUMBER, _THOUSANDS, _CONTINENTAL)):
        return bare
    if re.fullmatch("[a-z]", bare):
        return None
    inner = _unwrap(bare)
    if "$" in inner.replace(r"\$", "") and not inner.startswith(("$", "[$")):
        return None
    if _MIXED.fullmatch(_PERCENT.sub("", inner)):
        return inner
    form = read_answer(inner)
    rest = re.sub(r"\\text\{[^{}]*\}", " ", form.latex)
    rest = _LATEX_NAMES.sub(" ", rest)
    if inner == bare and (
        re.search(r"[A-Za-z]{2}|\d\s+\d|:", rest)
        or not re.search(r"[A-Za-z\\\[({]", bare)
    ):
        # Words, or a plain number, which Math-Verify finds by itself.
        return None
    return inner


def answer_at_end(text: str) -> str | None:
    """Returns the mixed number or bracketed value that ends a text, or None."""
    found = _MIXED_AT_END.search(text[-200:])
    if found:
        return found["mixed"] + (found["percent"] or "")
    found = _BRACKETED_AT_END.search(text[-200:])
    return found[1] if found else None


def read_answer(answer: str) -> AnswerForm:
    r"""Applies the rules to one answer.

    Args:
        answer: the content of a box, or a text that is an answer as a whole.

    Returns:
        Its form; of answers that are long or hold a matrix only spaces are touched.
    """
    text = answer.strip()
    if len(text) > MAX_CHARS or r"\begin" in text:
        return AnswerForm(text, _key(text))
    text = _tidy(text)
    choice, text = _take_off_choice(text)
    words = _words(text)
    if words is not None:
        latex = {True: r"\emptyset", False: f"\\text{{{words}}}"}[words in _NOTHING]
        latex = r"\mathbb{R}" if words in _ALL_REALS else latex
        return AnswerForm(latex, _key(latex), words=words, choice=choice)
    percent = _PERCENT.search(text) is not None
    units: frozenset[str] = frozenset()
    if percent:
        text = _PERCENT.sub("", text).strip()
    else:
        text, units = _take_off_units(text)
    text = spell_out_scale(text)
    text = re.sub(r"\s*\\text\{\s*\}", " ", text).strip()
    text = _number(text)
    if text:
        text = _plain(text)
    base = _BASE.fullmatch(text)
    latex = text + (r"\%" if percent and text else "")
    return AnswerForm(
        latex,
        _key(latex),
        choice=choice,
        units=units,
        percent=percent,
        base=int(base[2] or base[3]) if base else None,
    )


def same_numeral(gold: AnswerForm, answer: AnswerForm) -> bool:
    """Says whether two forms are one numeral, with a percent sign on one of them.

    "What percent" may be answered with or without the sign. A sign that the gold answer
    does not have is accepted on numbers > 1 only: 0.5 is no half per cent.
    """
    if gold.percent == answer.percent:
        return False
    digits = [form.latex.removesuffix(r"\%") for form in (gold, answer)]
    if not all(re.fullmatch(r"[+-]?\d*\.?\d+", text) for text in digits):
        return False
    first, second = map(float, digits)
    return first == second and (gold.percent or abs(first) > 1)


def as_decimal_comma(form: AnswerForm) -> str | None:
    """Returns `1,22` read as 1.22, or None for what cannot be a decimal comma."""
    found = re.fullmatch(r"([+-]?\d+),(\d{1,2}|\d{4,})", form.latex)
    return f"{found[1]}.{found[2]}" if found else None


def with_whole_fractions(form: AnswerForm) -> str | None:
    r"""Returns `1/2 x` read from left to right, `\frac{1}{2} x`; None without one."""
    text = _WHOLE_FRACTION.sub(r"\\frac{\1}{\2}", form.latex)
    return None if text == form.latex else text


def sides_of_definition(form: AnswerForm) -> tuple[str, str] | None:
    """Returns name and value of an answer such as `P(x) = 1`, or None."""
    found = _DEFINITION.fullmatch(form.latex)
    return (found[1].replace(" ", ""), found[2].strip()) if found else None


def _tidy(text: str) -> str:
    """Writes symbols and layout in one way and takes wrappers off."""
    if not text.isascii():
        text = "".join(_ascii(char) for char in text)
    text = _TEXT_COMMANDS.sub(r"\\text", text)
    for pattern, replacement in _LAYOUT:
        text = pattern.sub(replacement, text)
    dollars = re.findall(r"(?<!\\)\$", text)
    if dollars and len(dollars) % 2 == 0:
        # "$125$ miles": they mark mathematics, not money.
        text = re.sub(r"(?<!\\)\$", "", text)
    before = None
    while text != before:
        before = text
        text = _unwrap(text.strip())
        text = _PREFIXES.sub("", text)
        if text.endswith((".", ",", ";")) and not text.endswith((r"\.", "..")):
            text = text[:-1].rstrip()
        text = re.sub(r"^\\text\{([^{}]*)\}$", r"\1", text)
        text = re.sub(r"^\[([^\[\],;()]*)\]$", r"\1", text)
        text = re.sub(r"^\{([^{},;]*)\}$", r"\1", text)
        text = re.sub(r"^\\text\{\s*(\\?[$€£¥₹])\s*\}", r"\1", text)
    return _HALF_DAY.sub(r"\1m", text)


def _ascii(char: str) -> str:
    if char in _SYMBOLS:
        return _SYMBOLS[char]
    if char.isascii():
        return char
    kind = unicodedata.decomposition(char).split(" ")[0]
    if kind == "<fraction>":
        top, _, bottom = unicodedata.normalize("NFKC", char).partition("\u2044")
        return f"\\frac{{{top}}}{{{bottom}}}"
    if kind in ("<wide>", "<font>", "<noBreak>"):
        return unicodedata.normalize("NFKC", char)
    if kind == "<super>":
        return f"^{{{unicodedata.normalize('NFKC', char)}}}"
    name = unicodedata.name(char, "")
    if name.startswith("GREEK SMALL LETTER ") and name.count(" ") == 3:
        return f"\\{name.split(' ')[-1].lower()} "
    return "" if unicodedata.category(char) == "Cf" else char


def _unwrap(text: str) -> str:
    for opening, closing in _WRAPPERS:
        inner = text.removeprefix(opening).removesuffix(closing)
        if (
            len(text) - len(inner) == len(opening + closing)
            and inner.strip()
            and opening not in inner
        ):
            return inner.strip()
    return text


def _take_off_choice(text: str) -> tuple[str | None, str]:
    """Splits "(C) 12" into the letter and the rest; of a letter alone both are it."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip()
    if re.fullmatch(r"[A-Z]", plain):
        return plain, plain
    found = _CHOICE.match(plain)
    if not found:
        return None, text
    letter = found[1] or found[2]
    return letter, plain[found.end() :].strip() or letter


def _words(text: str) -> str | None:
    """Returns an answer in words in lower case, or None for anything else."""
    wrapped = r"\text" in text
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip()
    if not _WORDS.fullmatch(plain):
        return None
    plain = " ".join(re.sub(r"[-.']", " ", plain.lower()).split())
    longest = max(map(len, plain.split()), default=0)
    if plain in ("pi", "infinity") or longest < (2 if wrapped else 4):
        return plain if plain in ("no", "yes") else None
    if re.search(rf"\b(?:{_FUNCTIONS}|sqrt|and|or)\b", plain):
        return None
    return re.sub(r"^(?:a|an|the) ", "", plain) if plain not in _ALL_REALS else plain


def _take_off_units(text: str) -> tuple[str, frozenset[str]]:
    """Takes the unit off an answer, or off each part of a list without brackets."""
    if not re.search(r",\s", text) or re.search(r"[(\[{]", text):
        return take_off_unit(text)
    found = [take_off_unit(part.strip()) for part in text.split(",")]
    return ", ".join(part for part, _ in found), frozenset().union(
        *(unit for _, unit in found)
    )


def _number(text: str) -> str:
    """Joins thousands and writes mixed numbers as fractions; "" if one is improper."""
    if _THOUSANDS.fullmatch(text):
        return re.sub("[ ,]", "", text)
    if _CONTINENTAL.fullmatch(text):
        return re.sub("[ .]", "", text).replace(",", ".")
    found = _MIXED.fullmatch(text)
    if not found:
        return text
    whole = int(re.sub("[ ,]", "", found["whole"]))
    top = int(found["top"] or found["latex_top"])
    bottom = int(found["bottom"] or found["latex_bottom"])
    if not 0 < top < bottom:
        # "2\frac{3}{2}" may be meant as a product; "2 3/2" is nothing.
        return text if found["top"] is None else ""
    sign = found["sign"].replace("+", "")
    return f"{sign}\\frac{{{whole * bottom + top}}}{{{bottom}}}"


def _plain(text: str) -> str:
    """Writes calculator notation and arguments without braces as LaTeX."""
    scientific = _SCIENTIFIC.fullmatch(text)
    if scientific:
        return f"{scientific[1]}\\times 10^{{{int(scientific[2])}}}"
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    return _BARE_ARGUMENTS.sub(_with_braces, text)


def _with_braces(found: re.Match[str]) -> str:
    top, bottom = found["top"], found["bottom"]
    if found["name"] == "frac" and (top + bottom).isdigit():
        return found[0]
    both = [part if part.startswith("{") else f"{{{part}}}" for part in (top, bottom)]
    return f"\\{found['name']}{both[0]}{both[1]}"


def _key(latex: str) -> str:
    text = _CONNECTORS.sub(",", latex)
    text = re.sub(r"_\{(\w)\}", r"_\1", re.sub(r"\^\{(\w)\}", r"^\1", text))
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)
