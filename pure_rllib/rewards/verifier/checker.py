"""One pair of gold answer and response: found, read, compared."""

import functools
import logging
import re
from dataclasses import dataclass, replace
from typing import Any

import math_verify

from pure_rllib.data.boxed import last_box
from pure_rllib.rewards.verifier.answer import (
    LINE_ENDS,
    boxed_answer,
    cleaned,
    is_marked,
    is_prose,
    stated_answers,
)
from pure_rllib.rewards.verifier.compare import BareLists, Comparison
from pure_rllib.rewards.verifier.kinds.collection import Collection
from pure_rllib.rewards.verifier.kinds.expression import Expression
from pure_rllib.rewards.verifier.kinds.number import Number
from pure_rllib.rewards.verifier.kinds.quantity import Quantity
from pure_rllib.rewards.verifier.kinds.text import Text, letters_of
from pure_rllib.rewards.verifier.latex import (
    BeyondError,
    UnreadableError,
    tokens,
    written,
)
from pure_rllib.rewards.verifier.read import Answer, read
from pure_rllib.rewards.verifier.units import registry

MAX_SHOWN_CHARS = 1000
_MIN_SOLUTION_CHARS = 100
# Commas that part thousands or the items of a list; no item begins with a 0.
_THOUSANDS = re.compile(r"\d,[1-9]\d\d(?!\d)(?!.*,0\d\d)")
_DECIMAL_COMMA = re.compile(
    r"(?<![\d.,])(?:\d{1,3}(?:[. ]\d{3})+,\d+|\d+,(?:\d\d|\d{4,}))(?![\d.,])"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """One side as it was read.

    Attributes:
        text: the answer.
        answers: what it may mean, the likeliest first; empty if it cannot be read.
        beyond: whether Math-Verify may read it.
        signs: the tokens in one way of writing, or "".
    """

    text: str
    answers: tuple[Answer, ...]
    beyond: bool = False
    signs: str = ""


class Checker:
    """Compares a response with a gold answer. Has no time limits: see the worker.

    Args:
        bare_lists: what a list without brackets is; see `kinds.collection`.
    """

    def __init__(self, bare_lists: BareLists = "set") -> None:
        # It warns that its own time limits are off, which is what we want.
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        targets = [
            math_verify.LatexExtractionConfig(boxed_match_priority=0),
            math_verify.ExprExtractionConfig(),
        ]
        self._parse = functools.partial(
            math_verify.parse, extraction_config=targets, parsing_timeout=None
        )
        self._verify = functools.partial(math_verify.verify, timeout_seconds=None)
        self._comparison = Comparison(bare_lists)
        # Reading units takes half a second, which no pair should pay for.
        registry()
        # The responses of a group share their gold answer.
        self._gold = functools.lru_cache(maxsize=1024)(self._read_gold)
        self._parsed_gold = functools.lru_cache(maxsize=1024)(self._parse_box)

    def check(self, gold: str, response: str | None) -> dict[str, Any]:
        """Returns the outcome and the answer's text of one pair.

        Args:
            gold: the gold answer, as `boxed.gold_text` writes it.
            response: what `boxed.answer_text` cut out; None to ask whether the gold
                answer can be read: the outcome is then `correct` or `error`.
        """
        wanted = self._gold(gold)
        if response is None:
            readable = self._is_readable(wanted)
            return {"outcome": "correct" if readable else "error", "answer": None}
        found = self._read_response(response, wanted)
        if found is None:
            return {"outcome": "no_answer", "answer": None}
        answer = found.text[:MAX_SHOWN_CHARS]
        if not wanted.text:
            return {"outcome": "error", "answer": answer}
        correct = self._same(wanted, found) or (
            _is_numbers_in_lines(response)
            and self._same_by_math_verify(wanted, LINE_ENDS.sub("\n", response))
        )
        if not correct and not self._is_readable(wanted):
            return {"outcome": "error", "answer": answer}
        return {"outcome": "correct" if correct else "incorrect", "answer": answer}

    def _read_gold(self, gold: str) -> Reading:
        text = boxed_answer(gold)
        found = readings(cleaned(gold) if text is None else text)
        last = last_box(gold) or ""
        if text is None or cleaned(last) == text or len(gold) < _MIN_SOLUTION_CHARS:
            return found
        # A worked solution with several boxes in a row: data sets keep the last one.
        alone = readings(cleaned(last))
        return replace(found, answers=found.answers + alone.answers)

    def _is_readable(self, gold: Reading) -> bool:
        if gold.answers:
            return True
        if not gold.beyond:
            return False
        # A string alone is what Math-Verify keeps of an answer that it cannot parse.
        return any(not isinstance(part, str) for part in self._parsed_gold(gold.text))

    @staticmethod
    def _read_response(response: str, gold: Reading) -> Reading | None:
        text = boxed_answer(response)
        if text is not None:
            found = readings(text)
            return found if found.text else None
        candidates = list(stated_answers(response))
        if is_marked(response) and candidates:
            # Nothing else is stated, whether it can be read or not.
            return readings(candidates[0])
        wants_words = not all(map(_is_mathematics, gold.answers))
        for candidate in candidates:
            found = readings(candidate)
            if not found.answers:
                continue
            # Words are an answer where words are asked for.
            if not _is_mathematics(found.answers[0]):
                if wants_words:
                    return found
            elif not is_prose(candidate):
                return found
        return None

    def _same(self, gold: Reading, found: Reading) -> bool:
        if gold.signs and gold.signs == found.signs:
            return True
        if gold.beyond or found.beyond:
            return self._same_by_math_verify(gold, f"\\boxed{{{found.text}}}")
        golds, answers = gold.answers, found.answers
        if golds and not _has_letters(golds[0]):
            if any(map(_has_letters, answers)) or not answers:
                # No letter of such an answer stands for a variable.
                answers += readings(found.text, letters=True).answers
        elif any(isinstance(a, Quantity) and a.unit is not None for a in answers):
            # The answer has a unit beyond doubt: the gold answer's letters may be one.
            golds += readings(gold.text, letters=True).answers
        if any(self._comparison.same(a, b) for a in golds for b in answers):
            return True
        if any(isinstance(side, Text) for side in gold.answers + found.answers):
            letters = letters_of(gold.text)
            return letters is not None and letters == letters_of(found.text)
        return False

    def _same_by_math_verify(self, gold: Reading, text: str) -> bool:
        parsed, answer = self._parsed_gold(gold.text), self._parse(text)
        return bool(parsed and answer and self._verify(parsed, answer))

    def _parse_box(self, text: str) -> list[Any]:
        parsed: list[Any] = self._parse(f"\\boxed{{{text}}}")
        return parsed


def _is_numbers_in_lines(response: str) -> bool:
    """Says whether a response is lines of bare numbers, which states nothing.

    Which of them is the answer is for Math-Verify's search to say.
    """
    lines = LINE_ENDS.split(response.strip())
    return len(lines) > 1 and all(re.fullmatch(r"[\d\s./-]*", line) for line in lines)


def _has_letters(answer: Answer) -> bool:
    if isinstance(answer, Expression):
        return bool(answer.value.free_symbols)
    return not isinstance(answer, Number)


def _is_mathematics(answer: Answer) -> bool:
    items = answer.items if isinstance(answer, Collection) else (answer,)
    return not all(isinstance(item, Text) for item in items)


def readings(text: str, *, letters: bool = False) -> Reading:
    """Reads a text in all the ways that its commas allow."""
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    ways = [(text, True)]
    if _THOUSANDS.search(text):
        ways.append((text, False))
    decimal = _DECIMAL_COMMA.search(text)
    if decimal and not re.search(r"[\d(\[{]", text.replace(decimal[0], "")):
        number = re.sub(r"[. ](?=\d{3})", "", decimal[0]).replace(",", ".")
        ways.append((text.replace(decimal[0], number), True))
    answers: list[Answer] = []
    beyond, signs = False, ""
    for way, join_thousands in ways:
        try:
            signs = signs or written(tokens(way, join_thousands=join_thousands))
            answers.append(read(way, letters=letters, join_thousands=join_thousands))
        except (BeyondError, RecursionError):
            # Brackets in brackets in brackets run out of stack.
            beyond = True
        except UnreadableError:
            continue
    return Reading(text, tuple(answers), beyond and not answers, signs)
