r"""Rewrites of gold answers that keep their value, and edits that change it.

A verifier should accept each rewrite (spaces, `\left`, `\dfrac`, upright letters,
thousands, spellings of units, the order of sets, turned sums) and refuse each edit (a
digit, a sign, a bracket, a unit, a variable, an item left out). Which of them a gold
answer allows is told by its kind; a seed chooses the places.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pure_rllib.rewards.base import Verifier
from pure_rllib.rewards.verifier.checker import readings
from pure_rllib.rewards.verifier.kinds.collection import Collection
from pure_rllib.rewards.verifier.kinds.expression import Expression
from pure_rllib.rewards.verifier.kinds.number import Number
from pure_rllib.rewards.verifier.kinds.quantity import Quantity
from pure_rllib.rewards.verifier.latex import Nodes, tokens, unwrap
from pure_rllib.rewards.verifier.read import Answer
from pure_rllib.rewards.verifier.structure import split

# Commands, words in `\text{...}` and names of environments are no places to change.
_FIXED = re.compile(
    r"(\\(?:text|mbox|mathrm|operatorname|begin|end|textbf)\s*\{[^{}]*\}|\\[A-Za-z]+|\\.)"
)
_INTEGER = re.compile(r"\d{4,9}")
_LONE_LETTER = re.compile(r"(?<![A-Za-z'_{])([ie])(?![A-Za-z'_(])")
_OTHER_UNITS = ("kg", "km", "s", "V", "mm")

Change = Callable[[str, Answer, random.Random], str | None]


@dataclass(slots=True)
class StressReport:
    """How a verifier did.

    Attributes:
        right: per change, how many pairs it judged right.
        total: per change, how many pairs there were.
        wrong: `(change, gold answer, other answer)` of each pair that it did not.
    """

    right: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str, str]] = field(default_factory=list)

    def share(self, changes: Iterable[str]) -> float:
        """Returns the share of pairs of these changes that were judged right."""
        names = list(changes)
        total = sum(self.total[name] for name in names)
        return sum(self.right[name] for name in names) / total if total else 1.0


def stress(
    verifier: Verifier, golds: Sequence[str], *, seed: int = 0
) -> tuple[StressReport, StressReport]:
    """Verifies rewrites and edits of gold answers.

    Args:
        verifier: judges the pairs.
        golds: gold answers in LaTeX; those that cannot be read are left out.
        seed: chooses the places that are changed.

    Returns:
        The reports of the rewrites, which are to be accepted, and of the edits, which
        are to be refused.
    """
    reports = []
    for changes, expected in ((REWRITES, True), (EDITS, False)):
        pairs = list(changed(golds, changes, seed=seed))
        verdicts = verifier.verify(
            [gold for _, gold, _ in pairs], [f"\\boxed{{{text}}}" for *_, text in pairs]
        )
        report = StressReport()
        for (name, gold, text), verdict in zip(pairs, verdicts, strict=True):
            report.total[name] += 1
            if (verdict.outcome == "correct") == expected:
                report.right[name] += 1
            else:
                report.wrong.append((name, gold, text))
        reports.append(report)
    return reports[0], reports[1]


def changed(
    golds: Iterable[str], changes: dict[str, Change], *, seed: int = 0
) -> Iterator[tuple[str, str, str]]:
    """Yields `(change, gold answer, changed answer)` for all that a gold allows."""
    for gold in golds:
        text = gold.replace("$", "").strip()
        answers = readings(text).answers
        if not answers:
            continue
        rng = random.Random(f"{seed} {text}")
        for name, change in changes.items():
            other = change(text, answers[0], rng)
            if other is not None and other != text:
                yield name, text, other


def _outside(text: str, edit: Callable[[str], str]) -> str:
    """Applies an edit to what is neither a command nor a word."""
    parts = _FIXED.split(text)
    return "".join(part if i % 2 else edit(part) for i, part in enumerate(parts))


def _is_formula(answer: Answer) -> bool:
    if isinstance(answer, Quantity):
        return _is_formula(answer.value)
    if isinstance(answer, Number):
        return answer.base is None
    return isinstance(answer, Expression)


def _items(text: str, answer: Answer) -> tuple[str, list[str], str] | None:
    """Cuts a list without repetitions into its items, brackets apart."""
    if not isinstance(answer, Collection) or answer.brackets not in ("", r"\{\}"):
        return None
    opening, body, closing = "", text, ""
    found = re.fullmatch(
        r"(\\(?:left)?\\?\{|\\left\\\{)(.*)(\\(?:right)?\\?\}|\\right\\\})", text
    )
    if answer.brackets:
        if found is None:
            return None
        opening, body, closing = found.groups()
    items, level, start = [], 0, 0
    for at, char in enumerate(body):
        level += (char in "([{") - (char in ")]}")
        if char == "," and level == 0:
            items.append(body[start:at])
            start = at + 1
    items.append(body[start:])
    items = [item.strip() for item in items]
    if (
        len(items) < 2
        or len(items) != len(answer.items)
        or len(set(items)) != len(items)
    ):
        return None
    return opening, items, closing


def _spread(text: str, answer: Answer, rng: random.Random) -> str | None:
    if re.search(r"\d[eE][-\d]", text):
        return None
    wide = _outside(text, lambda part: re.sub(r"(?<=\d)(?=[a-zA-Z(])", " ", part))
    return _outside(wide, lambda part: re.sub(r"([=+<>])", r" \1 ", part))


def _thin(text: str, answer: Answer, rng: random.Random) -> str | None:
    if not _is_formula(answer) or r"\!" in text:
        return None
    return re.sub(r"([=+])(?=[^}])", r"\1\\,", text)


def _dense(text: str, answer: Answer, rng: random.Random) -> str | None:
    if not _is_formula(answer) or ("\\" in text and re.search(r"\\text|\\mbox", text)):
        return None
    # A space ends a command's name, and parts digits.
    return re.sub(r"(?<![A-Za-z\d\\]) +| +(?![A-Za-z\d])", "", text)


def _sized(text: str, answer: Answer, rng: random.Random) -> str | None:
    if r"\left" in text:
        return re.sub(r"\\(?:left|right)(?![A-Za-z.])\s*", "", text)
    if text.count("(") + text.count("[") != text.count(")") + text.count("]"):
        return None
    text = re.sub(r"(?<!\\)([(\[])", r"\\left\1", text)
    return re.sub(r"(?<!\\)([)\]])", r"\\right\1", text)


def _large_fraction(text: str, answer: Answer, rng: random.Random) -> str | None:
    return re.sub(r"\\[td]?frac(?![A-Za-z])", r"\\dfrac", text)


def _upright(text: str, answer: Answer, rng: random.Random) -> str | None:
    if not isinstance(answer, Expression):
        return None
    return _outside(text, lambda part: _LONE_LETTER.sub(r"\\mathrm{\1}", part))


def _thousands(text: str, answer: Answer, rng: random.Random) -> str | None:
    if not isinstance(answer, Number) or not _INTEGER.fullmatch(text):
        return None
    return f"{int(text):,}".replace(",", rng.choice([",", "{,}", r"\,", r",\!", " "]))


def _unit_spelled(text: str, answer: Answer, rng: random.Random) -> str | None:
    if not isinstance(answer, Quantity) or answer.unit is None:
        return None
    found = re.search(r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}.*$", text)
    before = text[: found.start()] if found else ""
    if not before or "\\text" in before or "\\circ" in before:
        return None
    spelled = str(answer.unit).replace("**", "^").replace("_", " ")
    return f"{before}\\text{{ {spelled}}}"


def _with_unit(text: str, answer: Answer, rng: random.Random) -> str | None:
    if not isinstance(answer, Number) or answer.percent or answer.base:
        return None
    if text[-1].isalpha():
        return None
    return text + rng.choice(
        [r"\text{ cm}", r"\ \mathrm{kg}", r"\text{ m}^2", r"\text{ units}"]
    )


def _reordered(text: str, answer: Answer, rng: random.Random) -> str | None:
    found = _items(text, answer)
    if found is None or text.count("=") > 1:
        return None
    opening, items, closing = found
    return opening + ", ".join(reversed(items)) + closing


def _sum_turned(text: str, answer: Answer, rng: random.Random) -> str | None:
    if not isinstance(answer, Expression) or r"\pm" in text or r"\%" in text:
        return None
    terms = re.fullmatch(r"([^+\-{}()\[\]=/|]+)\+([^+\-{}()\[\]=/|!^]+)", text)
    return f"{terms[2].strip()}+{terms[1].strip()}" if terms else None


def _named(text: str, answer: Answer, rng: random.Random) -> str | None:
    if not isinstance(answer, Number | Expression):
        return None
    return rng.choice(["x = ", "f(3) = ", r"\text{Area} = ", "a_n = "]) + text


def _decorated(text: str, answer: Answer, rng: random.Random) -> str | None:
    return rng.choice(
        [f"${text}$", f"{text}.", f"\\displaystyle {text}", f"\\({text}\\)"]
    )


def _slashed(text: str, answer: Answer, rng: random.Random) -> str | None:
    found = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", text)
    return f"{found[1]}{found[2]}/{found[3]}" if found else None


REWRITES: dict[str, Change] = {
    "spaces added": _spread,
    "thin spaces": _thin,
    "spaces removed": _dense,
    "sized brackets": _sized,
    "large fractions": _large_fraction,
    "upright i and e": _upright,
    "thousands": _thousands,
    "unit spelled out": _unit_spelled,
    "unit added": _with_unit,
    "set reordered": _reordered,
    "sum turned": _sum_turned,
    "name in front": _named,
    "dollars, full stops": _decorated,
    "slash": _slashed,
}


def _digit(text: str, answer: Answer, rng: random.Random) -> str | None:
    places = [m.start() for m in re.finditer(r"\d", text)]
    if not places or "pt]" in text:
        return None
    at = rng.choice(places)
    digit = rng.choice([d for d in "123456789" if d != text[at]])
    return text[:at] + digit + text[at + 1 :]


def _sign(text: str, answer: Answer, rng: random.Random) -> str | None:
    if r"\pm" in text or not _is_formula(answer):
        return None
    value = answer.value if isinstance(answer, Quantity) else answer
    if not isinstance(value, Number | Expression) or value.value == 0:
        return None
    signs = [m.start() for m in re.finditer(r"(?<=[\w})])\s*[+]", text)]
    if isinstance(answer, Expression) and signs and rng.random() < 0.5:
        at = text.index("+", rng.choice(signs))
        return text[:at] + "-" + text[at + 1 :]
    if text.startswith("-"):
        return text[1:] if isinstance(answer, Number) else None
    terms = _top_level_terms(text)
    return f"-{text}" if terms == 1 else f"-({text})"


def _top_level_terms(text: str) -> int:
    nodes: Nodes = unwrap(tokens(text))
    return len(split(nodes, "+ -"))


def _bracket(text: str, answer: Answer, rng: random.Random) -> str | None:
    found = re.fullmatch(
        r"(\\left)?\s*([(\[])([^()\[\]]*,[^()\[\],]*)(\\right)?\s*([)\]])", text
    )
    if found is None or (r"\infty" not in text and found[2] + found[5] == "()"):
        return None
    ends = {"(": "[", "[": "(", ")": "]", "]": ")"}
    opening, closing = found[2], found[5]
    if r"\infty" in found[3].split(",")[0]:
        closing = ends[closing]
    else:
        opening = ends[opening]
    return f"{opening}{found[3]}{closing}"


def _unit(text: str, answer: Answer, rng: random.Random) -> str | None:
    if not isinstance(answer, Quantity) or answer.unit is None:
        return None
    found = re.search(
        r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}.*$|\^\s*\{?\\circ\}?.*$", text
    )
    if found is None or not found.start():
        return None
    others = [unit for unit in _OTHER_UNITS if unit not in text]
    return text[: found.start()] + f"\\text{{ {rng.choice(others)}}}"


def _variable(text: str, answer: Answer, rng: random.Random) -> str | None:
    if not isinstance(answer, Number) or answer.value == 0 or text[-1].isalpha():
        return None
    letter = rng.choice("abknxyz")
    return rng.choice([text + letter, letter, f"{text} {letter}"])


def _left_out(text: str, answer: Answer, rng: random.Random) -> str | None:
    found = _items(text, answer)
    if found is None:
        return None
    opening, items, closing = found
    items.pop(rng.randrange(len(items)))
    return opening + ", ".join(items) + closing


def _imaginary(text: str, answer: Answer, rng: random.Random) -> str | None:
    if not isinstance(answer, Number) or answer.value == 0 or text[-1].isalpha():
        return None
    return text + rng.choice([r"\mathrm{i}", "i", r"\mathrm{e}", r"\pi"])


EDITS: dict[str, Change] = {
    "digit": _digit,
    "sign": _sign,
    "bracket": _bracket,
    "unit swapped": _unit,
    "variable for a number": _variable,
    "item left out": _left_out,
    "imaginary unit, e": _imaginary,
}
