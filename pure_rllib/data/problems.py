"""Problems: where they come from and in which order they are asked."""

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        prompt: its text, before any prompt template.
        answer: the gold answer, or None where it is unknown.
        problem_id: names it in logs; unique in its source.
        metadata: whatever else the source knows (level, subject, ...).
    """

    prompt: str
    answer: str | None = None
    problem_id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


class ProblemSource(Protocol):
    """A finite, ordered collection of problems; `source[i]` is always the same one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Problem: ...

    @property
    def num_answers(self) -> int:
        """How many of the problems have a gold answer."""
