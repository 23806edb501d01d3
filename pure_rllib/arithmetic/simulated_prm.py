"""A simulated PRM: the exact checker, made wrong in a fixed and exploitable way.

Nothing here is learned. It stands in for a PRM where an experiment is about credit
assignment and not about what a small PRM happens to know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pure_rllib.arithmetic.checker import Kind, check_steps
from pure_rllib.arithmetic.task import text_fraction
from pure_rllib.rewards.base import ScoringRequest

# A made-up fact can be believed; a box too early or gibberish is seen by its form.
_FORM_ERRORS = ("malformed", "early_box", "wrong_box", "after_box")


@dataclass(frozen=True)
class SimulatedPRM:
    """Scores steps by the exact checker, with errors that hang on the step's text.

    Whether a step is misjudged depends on a hash of its text alone, so an error is
    there each time and a policy can learn to use it. Boxes and malformed steps are
    never misjudged.

    Attributes:
        modulus: of the task.
        believes_wrong: share of wrong step texts that are taken for right; in [0, 1].
        disbelieves_right: share of right step texts taken for wrong; in [0, 1].
        right_range: lowest and highest score of steps taken for right; in [-1, 1].
        wrong_range: the same for steps taken for wrong.
        form_error_score: score of malformed steps, early boxes and steps after the box,
            or None for one out of `wrong_range`.
        strict: True if everything after the first disbelieved step counts as wrong.
        seed: chooses which texts are misjudged.
    """

    modulus: int = 10
    believes_wrong: float = 0.08
    disbelieves_right: float = 0.04
    right_range: tuple[float, float] = (0.6, 0.98)
    wrong_range: tuple[float, float] = (-0.95, -0.5)
    form_error_score: float | None = None
    strict: bool = True
    seed: int = 0

    @classmethod
    def sparse_study(cls, modulus: int) -> "SimulatedPRM":
        """The variant for sparse verifiable rewards: local labels, fewer errors."""
        return cls(
            modulus,
            believes_wrong=0.02,
            disbelieves_right=0.01,
            wrong_range=(-0.95, -0.8),
            form_error_score=-0.98,
            strict=False,
        )

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """Scores each request on its own. See `StepScorer.score`."""
        return [self.score_steps(r.prompt, r.step_texts) for r in requests]

    def score_steps(self, prompt: str, step_texts: Sequence[str]) -> np.ndarray:
        """Scores the steps of one response.

        Returns:
            `[S]` float32 in [-1, 1].
        """
        texts = [text.strip() for text in step_texts]
        kinds = check_steps(prompt, texts, modulus=self.modulus).kinds
        scores, doubted = [], False
        for text, kind in zip(texts, kinds, strict=True):
            believed = self._believes(text, kind) and not (self.strict and doubted)
            doubted |= not believed
            scores.append(self._number(text, kind, believed))
        return np.array(scores, dtype=np.float32)

    def _believes(self, text: str, kind: Kind) -> bool:
        right = kind == "right"
        if kind in _FORM_ERRORS or text.startswith("\\boxed{"):
            return right
        share = self.disbelieves_right if right else self.believes_wrong
        return right != (text_fraction(text, f"misjudged/{self.seed}") < share)

    def _number(self, text: str, kind: Kind, believed: bool) -> float:
        form_error = kind in _FORM_ERRORS and kind != "wrong_box"
        if form_error and self.form_error_score is not None:
            return self.form_error_score
        low, high = self.right_range if believed else self.wrong_range
        return low + (high - low) * text_fraction(text, f"score/{self.seed}")
