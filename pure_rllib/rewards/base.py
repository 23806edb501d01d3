"""What every step scorer and every verifier offers. S steps, T response tokens."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from pure_rllib.data.problems import Problem

Outcome = Literal["correct", "incorrect", "no_answer", "timeout", "error"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One finished response whose steps are to be scored.

    Attributes:
        prompt: the problem's text, before any template.
        answer: the gold answer, or None where it is unknown.
        prompt_ids: `[P]` int64 token ids that the policy was given.
        response_ids: `[T]` int64 token ids that it sampled, EOS included.
        step_spans: `[S, 2]` int64, half-open token ranges of the steps in the response.
        step_texts: S texts, white space at both ends removed, special tokens left out.
        history: messages before the prompt, where it is the last of a conversation.
    """

    prompt: str
    answer: str | None
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    step_spans: np.ndarray
    step_texts: tuple[str, ...]
    history: tuple[Mapping[str, Any], ...] = ()


@runtime_checkable
class StepScorer(Protocol):
    """Anything that judges the steps of responses."""

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """Returns one `[S]` float32 array in [-1, 1] per request, in their order."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one response.

    Attributes:
        outcome: `correct`, `incorrect`, `no_answer` (nothing to compare was found),
            `timeout` (over the time limit) or `error` (the checker itself failed).
        answer: the answer that was extracted, or None.
        seconds: wall-clock time of the check.
        score: the verifiable reward, in [0, 1]; None: 1.0 if correct, else 0.0.
        parts: what the score is made of, by name; each is logged as a mean.

    Raises:
        ValueError: the score is out of its range.
    """

    outcome: Outcome
    answer: str | None = None
    seconds: float = 0.0
    score: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            raise ValueError(
                f"`score` ({self.score}) of a verdict must be in [0, 1]. Rescale it in "
                "your verifier."
            )

    @property
    def reward(self) -> float:
        """The verifiable reward, in [0, 1]."""
        return float(self.outcome == "correct" if self.score is None else self.score)


@runtime_checkable
class Verifier(Protocol):
    """Anything that compares responses with gold answers."""

    def verify(self, golds: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Returns one verdict per pair of gold answer and response text."""


@runtime_checkable
class ProblemVerifier(Protocol):
    """Anything that needs more of a problem than its gold answer."""

    def verify_problems(
        self, problems: Sequence[Problem], responses: Sequence[str]
    ) -> list[Verdict]:
        """Returns one verdict per pair of problem and response text."""


AnyVerifier = Verifier | ProblemVerifier


def counts_of(part: object) -> Counter[str]:
    """Returns what a step scorer or a verifier has counted so far.

    That is its attribute `counts`, a mapping from names to counts, or, of a scorer that
    only counts responses over its context, `num_overlong`.
    """
    counts = getattr(part, "counts", None)
    if isinstance(counts, Mapping):
        return Counter(counts)
    return Counter({"overlong": getattr(part, "num_overlong", 0)})


class FunctionScorer:
    """Makes a step scorer of a plain function.

    Args:
        function: takes the prompt's text and the texts of the steps, returns one
            number in [-1, 1] per step.
    """

    def __init__(self, function: Callable[[str, tuple[str, ...]], Sequence[float]]):
        self.function = function

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """Scores each request on its own. See `StepScorer.score`."""
        return [self._score_one(request) for request in requests]

    def _score_one(self, request: ScoringRequest) -> np.ndarray:
        scores = np.asarray(
            self.function(request.prompt, request.step_texts), dtype=np.float32
        )
        if scores.shape != (len(request.step_texts),):
            raise ValueError(
                f"The step scorer returned shape {scores.shape} for "
                f"{len(request.step_texts)} steps: return one number per step."
            )
        if not (np.abs(scores) <= 1.0).all():
            raise ValueError(
                f"The step scorer returned {scores.tolist()}: process rewards must "
                "lie in [-1, 1]. Rescale them in your function."
            )
        return scores


class FunctionVerifier:
    """Makes a verifier of a plain function.

    Args:
        function: takes the gold answer and the response's text, returns whether the
            response is correct, or a score in [0, 1], above 0.5 for a correct one, or a
            `Verdict`. Errors that it raises are not caught.
    """

    def __init__(self, function: Callable[[str, str], bool | float | Verdict]):
        self.function = function

    def verify(self, golds: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Checks each pair on its own. See `Verifier.verify`."""
        pairs = zip(golds, responses, strict=True)
        return [_as_verdict(self.function(gold, text)) for gold, text in pairs]


def _as_verdict(found: object) -> Verdict:
    if isinstance(found, Verdict):
        return found
    if hasattr(found, "item"):
        found = found.item()  # a tensor, or a number or an array of NumPy's
    if found is None or isinstance(found, bool):
        return Verdict("correct" if found else "incorrect")
    if isinstance(found, Real):
        score = float(found)
        return Verdict("correct" if score > 0.5 else "incorrect", score=score)
    raise ValueError(
        f"The verifier's function returned {found!r}; it must return True or False, a "
        "number in [0, 1] or a Verdict."
    )
