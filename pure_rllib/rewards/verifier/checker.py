"""One pair of gold answer and response: rules of notation, then Math-Verify."""

import functools
import logging
import re
from typing import Any

from pure_rllib.rewards.verifier.notation import (
    LINE_ENDS,
    AnswerForm,
    answer_at_end,
    as_decimal_comma,
    read_answer,
    same_numeral,
    sides_of_definition,
    single_answer,
    with_whole_fractions,
)
from pure_rllib.rewards.verifier.units import units_conflict

MAX_SHOWN_CHARS = 1000
_INTEGER = re.compile(r"[+-]?\d{1,30}")
# Math-Verify compares six decimals, which says nothing about smaller numbers.
_SMALL = 1e-3
_SMALL_TOLERANCE = 1e-3


class Checker:
    """Compares a response with a gold answer. Has no time limits: see the worker.

    Both are rewritten by the rules of `notation` where they are one answer; texts
    of several boxes or of sentences go to Math-Verify as they are. Boxed answers come
    first; without one, LaTeX and plain expressions are looked for.
    """

    def __init__(self) -> None:
        # Imported here: the parent uses this module's name but must not load sympy.
        import math_verify

        # It warns that its own time limits are off, which is what we want.
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        targets = [
            math_verify.LatexExtractionConfig(boxed_match_priority=0),
            math_verify.ExprExtractionConfig(),
        ]
        self._parse_text = functools.partial(
            math_verify.parse, extraction_config=targets, parsing_timeout=None
        )
        # Units are off already, and Math-Verify takes variables for some.
        config = targets[0].normalization_config
        without_units = type(config)(
            basic_latex=True,
            units=False,
            malformed_operators=True,
            nits=True,
            boxed="all",
            equations=False,
        )
        targets = [
            math_verify.LatexExtractionConfig(
                boxed_match_priority=0, normalization_config=without_units
            ),
            math_verify.ExprExtractionConfig(),
        ]
        self._parse_form = functools.partial(
            math_verify.parse, extraction_config=targets, parsing_timeout=None
        )
        self._same = functools.partial(math_verify.verify, timeout_seconds=None)
        # The responses of a group share their gold answer.
        self._gold = functools.lru_cache(maxsize=1024)(self._read)
        self._parsed_gold = functools.lru_cache(maxsize=1024)(self._parse)

    def check(self, gold: str, response: str | None) -> dict[str, Any]:
        """Returns the outcome and the answer's text of one pair.

        Args:
            gold: the gold answer, as `boxed.gold_text` writes it.
            response: what `boxed.answer_text` cut out; None to ask whether the gold
                answer can be read: the outcome is then `correct` or `error`.
        """
        gold_form = self._gold(gold)
        if response is None:
            readable = self._readable(gold, gold_form)
            return {"outcome": "correct" if readable else "error", "answer": None}
        form = self._read(response)
        in_words = form and form.words and not (gold_form and gold_form.words)
        if form is None or (in_words and "\\boxed" not in response):
            return self._check_text(gold, gold_form, LINE_ENDS.sub("\n", response))
        answer = (form.words or form.latex)[:MAX_SHOWN_CHARS]
        if not form.latex:
            return {"outcome": "no_answer", "answer": None}
        verdict = _compare_forms(gold_form, form) if gold_form else None
        if verdict is None:
            parsed = self._parse(response, form)
            if not parsed:
                return {"outcome": "no_answer", "answer": None}
            parsed_gold = self._parsed_gold(gold, gold_form)
            if not parsed_gold:
                return {"outcome": "error", "answer": answer}
            verdict = self._equal(parsed_gold, parsed)
            if not verdict and gold_form:
                verdict = self._second_reading(gold_form, form)
        return {"outcome": "correct" if verdict else "incorrect", "answer": answer}

    def _read(self, text: str) -> AnswerForm | None:
        answer = single_answer(text)
        return None if answer is None else read_answer(answer)

    def _parse(self, text: str, form: AnswerForm | None) -> list[Any]:
        """Parses a form, or the text itself where it has none."""
        if form is None:
            return self._parse_text(text)
        return self._parse_latex(form.latex)

    def _parse_latex(self, latex: str) -> list[Any]:
        return self._parse_form(f"\\boxed{{{latex}}}") if latex else []

    def _readable(self, gold: str, form: AnswerForm | None) -> bool:
        if form is not None and (form.words or form.choice):
            return True
        # A string alone is what Math-Verify keeps of an answer that it cannot parse.
        return any(not isinstance(part, str) for part in self._parsed_gold(gold, form))

    def _check_text(
        self, gold: str, gold_form: AnswerForm | None, response: str
    ) -> dict[str, Any]:
        """Checks a response of several boxes, or of sentences without one."""
        at_end = None if "\\boxed" in response else answer_at_end(response)
        if at_end is not None:
            return self.check(gold, f"\\boxed{{{at_end}}}")
        parsed = self._parse_text(response)
        if not parsed:
            return {"outcome": "no_answer", "answer": None}
        texts = [part for part in parsed if isinstance(part, str)]
        answer = texts[-1][:MAX_SHOWN_CHARS] if texts else None
        parsed_gold = self._parsed_gold(gold, gold_form)
        if not parsed_gold:
            return {"outcome": "error", "answer": answer}
        correct = self._equal(parsed_gold, parsed)
        return {"outcome": "correct" if correct else "incorrect", "answer": answer}

    def _equal(self, gold: list[Any], answer: list[Any]) -> bool:
        return self._same(gold, answer) and not _differ_below_rounding(gold, answer)

    def _second_reading(self, gold: AnswerForm, form: AnswerForm) -> bool:
        """Compares what a notation may also mean, where the other side says so."""
        for first, second in ((gold, form), (form, gold)):
            if as_decimal_comma(first) == second.latex:
                return True
        fractions = with_whole_fractions(form)
        if fractions is not None:
            parsed = [self._parsed_gold(gold.latex, gold), self._parse_latex(fractions)]
            if self._equal(*parsed):
                return True
        sides, gold_sides = sides_of_definition(form), sides_of_definition(gold)
        if sides and gold_sides and sides[0].lower() == gold_sides[0].lower():
            parsed = [self._parse_latex(value) for _, value in (gold_sides, sides)]
            return self._equal(*parsed)
        return False


def _compare_forms(gold: AnswerForm, form: AnswerForm) -> bool | None:
    """Compares what needs no algebra; None if that does not decide."""
    if gold.choice and form.choice and gold.choice != form.choice:
        return False
    if gold.choice and gold.latex == gold.choice and form.choice:
        return True
    if units_conflict(gold.units, form.units):
        return False
    if (gold.percent and form.units) or (form.percent and gold.units):
        return False
    if gold.key == form.key:
        return True
    if form.base and form.base != (gold.base or 10):
        return False
    if gold.words is not None and form.words is not None:
        return gold.words == form.words
    if _INTEGER.fullmatch(gold.latex) and _INTEGER.fullmatch(form.latex):
        return int(gold.latex) == int(form.latex)
    return True if same_numeral(gold, form) else None


def _differ_below_rounding(gold: list[Any], answer: list[Any]) -> bool:
    """Says whether two small numbers only agree because both round to zero."""
    numbers = []
    for parsed in (gold, answer):
        first = parsed[0]
        if isinstance(first, str) or not getattr(first, "is_number", False):
            return False
        value = first.evalf(15)
        if not value.is_Float:
            return False
        numbers.append(float(value))
    size = max(abs(number) for number in numbers)
    return size < _SMALL and abs(numbers[0] - numbers[1]) > _SMALL_TOLERANCE * size
