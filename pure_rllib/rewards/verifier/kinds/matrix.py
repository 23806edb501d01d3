r"""Matrices and vectors: `pmatrix`, `bmatrix`, `array` and their like.

- The same shape and the same entries; brackets, spacing of rows and a factor in front
  are a matter of style.
- A column or a row takes the same entries as a tuple, since a vector is often written
  `(1, 2)`; a matrix takes its rows as `[[1,2],[3,4]]`.
"""

from dataclasses import dataclass
from typing import Any

from pure_rllib.rewards.verifier.equality import same_expression


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of SymPy's."""

    value: Any


def same_matrix(gold: Matrix, answer: Matrix) -> bool:
    """Compares shapes and entries."""
    return same_expression(gold.value, answer.value)
