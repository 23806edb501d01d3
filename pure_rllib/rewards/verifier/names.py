"""Signs and commands of LaTeX that are the same, or that say nothing."""

import unicodedata


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ",
    "⋅": r"\cdot ", "∗": "*", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ",
    "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "±": r"\pm ",
    "∓": r"\mp ", "√": r"\sqrt ", "ℝ": r"\mathbb{R}", "′": "'", "″": "''", "。": ".",
    "、": ",", "∠": r"\angle ", "…": r"\ldots ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2044": "/",
    "∣": "|", "℃": r"^\circ C", "Ω": r"\Omega ", "µ": r"\mu ", "ı": "i",
}  # fmt: skip
SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom",
    "tbinom": "binom", "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge",
    "neq": "ne", "lt": "<", "gt": ">", "varnothing": "emptyset", "empty": "emptyset",
    "lbrace": "{", "rbrace": "}", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    "lbrack": "[", "rbrack": "]", "ast": "*",
    "imath": "i", "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta",
    "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "land": "wedge",
    "lor": "vee", "to": "rightarrow", "bigcup": "cup", "bigcap": "cap",
    "implies": "Rightarrow", "backslash": "setminus", "colon": ":", "neg": "lnot",
    "bar": "overline", "Vert": "|", "lVert": "|", "rVert": "|", "infin": "infty",
}  # fmt: skip
# Sizes, styles and spaces. A space may end a word, so it is kept as `spaced`.
LAYOUT = _words(
    "left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr displaystyle "
    "textstyle scriptstyle limits nolimits rm bf it boldmath nonumber !"
)
# `\(` and `\[` begin mathematics, which is where an answer is anyway.
SPACES = _words(", ; : > ~ ( ) [ ] quad qquad enspace thinspace hfill space").union(
    " \n"
)
FONTS = _words(
    "text textbf textit textrm textsf texttt textnormal textup mathrm mathbf mathsf "
    "mathtt mbox hbox operatorname operatorname* mathit mathnormal boldsymbol bm emph "
    "underline mathcal textup textnormal"
)
# Italic fonts keep a letter what it is: a variable.
ITALIC = {"mathit", "mathbf", "mathnormal", "boldsymbol", "bm", "mathcal", "underline"}


def plain(text: str) -> str:
    """Writes what is not ASCII as LaTeX, where LaTeX has it."""
    return text if text.isascii() else "".join(_ascii(char) for char in text)


def _ascii(char: str) -> str:
    if char in _SYMBOLS:
        return _SYMBOLS[char]
    if char.isascii():
        return char
    kind = unicodedata.decomposition(char).split(" ")[0]
    if kind == "<fraction>":
        top, _, bottom = unicodedata.normalize("NFKC", char).partition("\u2044")
        return f"\\frac{{{top}}}{{{bottom}}}"
    if kind in ("<super>", "<sub>"):
        mark = "^" if kind == "<super>" else "_"
        return f"{mark}{{{plain(unicodedata.normalize('NFKC', char))}}}"
    if kind in ("<wide>", "<font>", "<noBreak>", "<compat>", "<square>"):
        return plain(unicodedata.normalize("NFKC", char))
    name = unicodedata.name(char, "")
    if name.startswith("GREEK SMALL LETTER ") and name.count(" ") == 3:
        return f"\\{name.split(' ')[-1].lower()} "
    return "" if unicodedata.category(char) in ("Cf", "Cc") else char
