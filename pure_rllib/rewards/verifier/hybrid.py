"""Rules first; what they reject may get a second opinion.

Policies learn to write what a generative verifier accepts: "{", blanks, "the answer is
correct", a bare "Solution:" (arXiv 2505.22203, 2507.08794), its verdict or its own
question. So no model is asked about answers that are empty, gibberish or talk to the
judge: a rule in front of it cannot be persuaded.
"""

import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from pure_rllib.data.boxed import answer_text, last_box
from pure_rllib.rewards.base import Verdict, Verifier
from pure_rllib.rewards.prm.judges import Judge
from pure_rllib.rewards.prm.rows import check_chat, question_ids

QUESTION = """\
Two final answers to the same mathematics problem are compared.

Reference answer:
{gold}

Other answer:
{answer}

Do both state the same value, whatever their notation? Reply {good} or {bad}."""

_MAX_CHARS = 300
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


@runtime_checkable
class SecondOpinion(Protocol):
    """Anything that compares answers that rules could not match."""

    def judge_answers(
        self, golds: Sequence[str], answers: Sequence[str]
    ) -> list[bool | None]:
        """Returns per pair whether the answer is right, or None for no opinion."""


class FunctionOpinion:
    """Makes a second opinion of a plain function.

    Args:
        function: takes the gold answer and the response's answer, returns True, False
            or None for no opinion. Errors that it raises are not caught.
    """

    def __init__(self, function: Callable[[str, str], bool | None]):
        self.function = function

    def judge_answers(
        self, golds: Sequence[str], answers: Sequence[str]
    ) -> list[bool | None]:
        """See `SecondOpinion.judge_answers`."""
        return [self.function(g, a) for g, a in zip(golds, answers, strict=True)]


class GenerativeOpinion:
    """Asks a causal language model whether two answers are the same.

    Args:
        judge: reads the model's verdict, through any generator: see `prm.judges`.
        tokenizer: the model's. Nothing that an answer says becomes a special token.
        template: text with `{gold}`, `{answer}`, and as wanted `{good}` and `{bad}`.
        verdicts: the words for the same and for different.
        min_score: in [0, 1]; a judge's score must be above it to be a yes and below its
            negative to be a no. In between there is no opinion.

    Raises:
        ValueError: the template lacks a field, or `min_score` is out of its range.
    """

    def __init__(
        self,
        judge: Judge,
        tokenizer: Any,
        *,
        template: str = QUESTION,
        verdicts: tuple[str, str] = ("Yes", "No"),
        min_score: float = 0.0,
    ):
        for field in ("{gold}", "{answer}"):
            if field not in template:
                raise ValueError(
                    f"`template` ({template!r:.200}) must hold {field}, because the "
                    "judge has to see both answers. Leave it out for our own."
                )
        if not 0.0 <= min_score <= 1.0:
            raise ValueError(
                f"`min_score` ({min_score}) must be in [0, 1], because scores are in "
                "[-1, 1]. Set it to 0.0 to follow the likelier verdict."
            )
        check_chat(tokenizer)
        self.judge, self.tokenizer = judge, tokenizer
        self.template, self.verdicts = template, verdicts
        self.min_score = min_score

    def judge_answers(
        self, golds: Sequence[str], answers: Sequence[str]
    ) -> list[bool | None]:
        """See `SecondOpinion.judge_answers`; too long questions get no opinion."""
        asked = [self._ids(gold, a) for gold, a in zip(golds, answers, strict=True)]
        limit = self.judge.max_prompt_tokens
        rows = [i for i, ids in enumerate(asked) if limit is None or len(ids) <= limit]
        opinions: list[bool | None] = [None] * len(asked)
        if rows:
            scores = self.judge.judge([asked[i] for i in rows])
            for i, score in zip(rows, scores.tolist(), strict=True):
                if abs(score) > self.min_score:
                    opinions[i] = score > 0
        return opinions

    def _ids(self, gold: str, answer: str) -> list[int]:
        good, bad = self.verdicts
        fields = {"gold": gold, "answer": answer, "good": good, "bad": bad}
        return question_ids(self.tokenizer, self.template, fields)


class HybridVerifier:
    r"""Accepts what rules accept, and of the rest what a second opinion accepts.

    Asked are only responses whose outcome is `incorrect` or `no_answer`, that end with
    a complete `\boxed{...}`, and whose box passes `guard_reason`; of the
    response the second opinion sees that box alone. Equal pairs are asked once a call.

    Args:
        rules: the verifier that comes first.
        second_opinion: compares what the rules reject: a function of gold answer and
            answer, or a `SecondOpinion`.

    Attributes:
        counts: how many responses so far the second opinion `accepted`, `rejected` or
            was `undecided` about, and how many were kept from it per reason of a guard
            (`guard_empty`, ...). Those it accepted are the ones to audit.
    """

    def __init__(
        self,
        rules: Verifier,
        second_opinion: SecondOpinion | Callable[[str, str], bool | None],
    ):
        if not isinstance(second_opinion, SecondOpinion):
            second_opinion = FunctionOpinion(second_opinion)
        self.rules = rules
        self.second_opinion: SecondOpinion = second_opinion
        # What a model is asked and may reply, if it is one.
        self._question: str = getattr(second_opinion, "template", "")
        self._verdicts: tuple[str, ...] = getattr(second_opinion, "verdicts", ())
        self.counts: Counter[str] = Counter()

    def close(self) -> None:
        """Releases what the rules and the second opinion hold."""
        for part in (self.rules, self.second_opinion):
            close = getattr(part, "close", None)
            if close is not None:
                close()

    def verify(self, golds: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """See `Verifier.verify`."""
        verdicts = self.rules.verify(golds, responses)
        asked: dict[tuple[str, str], list[int]] = {}
        for i, verdict in enumerate(verdicts):
            if verdict.outcome not in ("incorrect", "no_answer"):
                continue
            # Of several boxes the rules read one answer; a model would be shown less.
            box = last_box(answer_text(responses[i], max_chars=10_000, boxed_only=True))
            reason = guard_reason(box, golds[i], self._question, self._verdicts)
            if box is None or reason is not None:
                self.counts[f"guard_{reason}"] += 1
            else:
                asked.setdefault((golds[i], box), []).append(i)
        if not asked:
            return verdicts
        start = time.perf_counter()
        opinions = self.second_opinion.judge_answers(
            [gold for gold, _ in asked], [answer for _, answer in asked]
        )
        seconds = (time.perf_counter() - start) / len(asked)
        names = {True: "accepted", False: "rejected", None: "undecided"}
        for ((_, box), rows), opinion in zip(asked.items(), opinions, strict=True):
            self.counts[names[opinion]] += len(rows)
            for i in rows:
                if opinion:
                    verdicts[i] = replace(
                        verdicts[i],
                        outcome="correct",
                        answer=box,
                        seconds=verdicts[i].seconds + seconds,
                        score=None,
                    )
        return verdicts


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
    if len(text) > _MAX_CHARS or len(text.split()) > _MAX_WORDS:
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
