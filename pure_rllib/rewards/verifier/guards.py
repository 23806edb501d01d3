r"""Answers that no model is to judge: they are empty, gibberish or talk to the judge.

Policies learn to write what a generative verifier accepts: "{", blanks, "the answer is
correct", a bare "Solution:" (arXiv 2505.22203, 2507.08794), its verdict or its own
question. A rule in front of the model cannot be persuaded.
"""

import re
import unicodedata
from collections.abc import Sequence

MAX_CHARS = 300
_MAX_WORDS = 25
# So many words in a row that stand in the judge's question are taken from it.
_QUOTED_WORDS = 3
_PHRASES = re.compile(
    r"\b(?:in)?correct(?:ly|ness)?\b|\bcorrespond|\bmatch(?:es|ing)?\b|\bequivalent\b"
    r"|\b(?:answer|solution|response|student|reference|gold|ground truth|verdict)\b"
    r"|\b(?:ignore|disregard|forget|override|pretend|assume)\b|\binstructions?\b"
    r"|\b(?:output|print|reply|respond|return|grade[ds]?|scores?|judge[ds]?|accept)\b"
    r"|\b(?:you|your|please|assistant|system|user|prompt|model)\b|\bas an? ai\b"
    r"|\b(?:thought|thinking) process\b|\blet'?s\b|\bstep by step\b|\bfinal\b"
    r"|\b(?:yes|true|ok(?:ay)?|(?<!\\)right|same|identical|equal|agreed?|sure)\b"
    r"|\b(?:trust|believe|certainly|qed|q\.e\.d|i am|i['\u2019]m)\b"
    r"|\b(?:see|as) (?:above|below)\b",
    re.IGNORECASE,
)
# Chat tokens, HTML and Markdown have no place in a final answer.
_MARKUP = re.compile(
    r"<\|?/?[A-Za-z_]{2,}[^<>]*>|<!--|^\s*#{1,6}\s|```|\[INST|\*\*|^\s*[-*]\s+\w{3}"
)
_VOWELS = re.compile("[aeiouy]", re.IGNORECASE)
_LATEX_NAMES = re.compile(r"\\(?:begin|end)\{[a-z]*\}|\\[A-Za-z]+")


def guard_reason(
    answer: str | None, gold: str, question: str = "", verdicts: Sequence[str] = ()
) -> str | None:
    """Says why an answer must not reach a model.

    Args:
        answer: what the response gives as its answer; None: it gives none.
        gold: the gold answer; words of its own are never held against an answer.
        question: what the model is asked; an answer must not quote it.
        verdicts: the words that the model replies with; none may be an answer.

    Returns:
        `empty`, `too_long`, `symbols_only`, `markup`, `foreign_script`, `persuasion`,
        `gibberish`, or None for an answer that may be judged.
    """
    text = (answer or "").strip()
    if not text:
        return "empty"
    if len(text) > MAX_CHARS or len(text.split()) > _MAX_WORDS:
        return "too_long"
    visible = _LATEX_NAMES.sub(" ", text)
    if not any(char.isalnum() for char in visible) and not _names_a_value(text):
        return "symbols_only"
    if _MARKUP.search(text) or any(
        unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co") and char not in "\n\t"
        for char in text
    ):
        return "markup"
    if _scripts(visible) - _scripts(gold) - {"LATIN", "GREEK"}:
        return "foreign_script"
    known = set(_words(gold))
    for found in _PHRASES.finditer(text):
        if not set(_words(found[0])) <= known:
            return "persuasion"
    replies = [_words(verdict) for verdict in verdicts]
    if _words(visible) in replies and _words(visible) != _words(gold):
        return "persuasion"
    if (_runs(visible) & _runs(question)) - _runs(gold):
        return "persuasion"
    return "gibberish" if _is_gibberish(visible, known) else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(text: str) -> set[tuple[str, ...]]:
    words = _words(text)
    return set(zip(*(words[i:] for i in range(_QUOTED_WORDS)), strict=False))


def _names_a_value(text: str) -> bool:
    names = r"\\(?:pi|infty|emptyset|varnothing|theta|alpha|beta|phi|mathbb)"
    return re.search(names + r"(?![A-Za-z])", text) is not None


def _scripts(text: str) -> set[str]:
    return {
        unicodedata.name(char, "UNKNOWN").split(" ")[0]
        for char in text
        if char.isalpha() and unicodedata.normalize("NFKC", char).isalpha()
    } - {"MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "MICRO"}


def _is_gibberish(text: str, known: set[str]) -> bool:
    """Says whether a text repeats one thing, or holds letters that are no words."""
    if re.search(r"(.)\1{9}", text) or re.search(r"(\S+)(?:\s+\1){4}", text):
        return True
    for word in re.findall(r"[A-Za-z]{5,}", text):
        if word.lower() in known:
            continue
        if not _VOWELS.search(word) or re.search(r"(?i)[^aeiouy]{6}", word):
            return True
    marks = sum(not char.isalnum() and not char.isspace() for char in text)
    return marks > 12 and marks > 3 * sum(map(str.isalnum, text))
