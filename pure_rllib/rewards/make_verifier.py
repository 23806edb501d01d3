"""A verifier from an environment's settings."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pure_rllib.data.problems import ListProblems, ProblemSource
from pure_rllib.rewards.base import Verifier
from pure_rllib.rewards.make_generative import GenerativeLoader
from pure_rllib.rewards.named_object import import_named
from pure_rllib.rewards.verifier.hybrid import (
    GenerativeOpinion,
    HybridVerifier,
    SecondOpinion,
)
from pure_rllib.rewards.verifier.math_verifier import MathVerifier

VERIFIERS = ("math_verify", "hybrid")
_QUESTION_SETTINGS = ("template", "min_score")


class DeferredOpinion:
    """A second opinion of a language model that is loaded when first asked.

    Args:
        make: loads it.
        template: its question, which no answer may quote.
        verdicts: its replies, which are no answers.
    """

    def __init__(
        self,
        make: Callable[[], SecondOpinion],
        template: str,
        verdicts: tuple[str, ...],
    ):
        self.template, self.verdicts = template, verdicts
        self._make = make
        self._opinion: SecondOpinion | None = None
        self._lock = threading.Lock()

    def judge_answers(
        self, golds: Sequence[str], answers: Sequence[str]
    ) -> list[bool | None]:
        """See `SecondOpinion.judge_answers`."""
        with self._lock:
            if self._opinion is None:
                self._opinion = self._make()
        return self._opinion.judge_answers(golds, answers)


def make_verifier(
    verifier: str | Verifier | None,
    verifier_kwargs: Mapping[str, Any] | None,
    problems: Sequence[ProblemSource],
) -> Verifier | None:
    """Makes the verifier that an environment's settings ask for.

    Args:
        verifier: "math_verify", "hybrid", a verifier, or None.
        verifier_kwargs: arguments of `MathVerifier`. For "hybrid" also
            `second_opinion`: a function of gold answer and answer, a `SecondOpinion`,
            "module:name" of either, or the settings of a judging model: those of
            `GenerativeLoader`, with `template` and `min_score` of `GenerativeOpinion`.
        problems: their gold answers are looked at when the verifier is first used.

    Raises:
        ValueError: an unknown name, or a setting that is wrong or has no effect.
    """
    if verifier is None or not isinstance(verifier, str):
        if verifier_kwargs:
            raise ValueError(
                f"`verifier_kwargs` ({dict(verifier_kwargs)}) only has an effect with "
                'a `verifier` given by name: set it to "math_verify", or drop them.'
            )
        return verifier
    if verifier not in VERIFIERS:
        raise ValueError(
            f'`verifier` ("{verifier}") must be one of {VERIFIERS}, None or a verifier.'
        )
    kwargs = dict(verifier_kwargs or {})
    opinion = kwargs.pop("second_opinion", None)
    if (opinion is None) == (verifier == "hybrid"):
        raise ValueError(
            f"`second_opinion` ({opinion!r:.100}) must be given with `verifier` "
            '"hybrid" and only there, because it judges what the rules reject. Set '
            "both, or neither."
        )
    rules = MathVerifier(**kwargs)
    rules.look_at_golds(_golds(problems))
    return rules if opinion is None else HybridVerifier(rules, _opinion(opinion))


def _golds(problems: Sequence[ProblemSource]) -> list[str]:
    """Returns the gold answers of problems that are a list."""
    return [
        problem.answer
        for source in problems
        # Procedural ones may be endless, and know their answers' form.
        if isinstance(source, ListProblems)
        for problem in source
        if problem.answer is not None
    ]


def _opinion(given: Any) -> Any:
    if isinstance(given, str):
        return import_named("second_opinion", given)
    if not isinstance(given, Mapping):
        return given
    settings = dict(given)
    asking = {k: settings.pop(k) for k in _QUESTION_SETTINGS if k in settings}
    # Checked now: a slip must not wait for the model.
    asked = GenerativeOpinion(None, None, **asking)  # type: ignore[arg-type]
    loader = GenerativeLoader(settings.pop("model"), None, **settings)

    def load() -> SecondOpinion:
        prm = loader()
        good, bad = prm.question.verdicts
        return GenerativeOpinion(
            prm.judge, prm.tokenizer, verdicts=(good, bad), **asking
        )

    return DeferredOpinion(load, asked.template, loader.question.verdicts)
