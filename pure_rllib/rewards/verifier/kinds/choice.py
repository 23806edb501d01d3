r"""Choices: one letter of a multiple choice, alone, in brackets or before its text.

- The letter decides: `(C) 12` is C, whatever stands behind; `(D) C` is D.
- A gold answer with a text behind its letter also takes that text alone.
- Several letters are several answers: `A and B` is not A.
"""

from dataclasses import dataclass

from pure_rllib.rewards.verifier.latex import Nodes


@dataclass(frozen=True, slots=True)
class Choice:
    """A letter.

    Attributes:
        letter: A to Z.
        rest: what stands behind it, to be read; empty for nothing.
    """

    letter: str
    rest: Nodes = ()


def read_choice(nodes: Nodes) -> Choice | None:
    """Reads `C`, `(C)`, `C)`, `(C) 12`, `C. 12`, `C: 12`; None for all else."""
    if nodes and nodes[0].text.lower() in ("option", "choice"):
        nodes = nodes[1:]
    if not nodes:
        return None
    opened = nodes[0].is_sign("(")
    letter = nodes[int(opened)] if len(nodes) > int(opened) else nodes[0]
    if letter.kind not in ("letter", "text") or not (
        len(letter.text) == 1 and letter.text.isascii() and letter.text.isupper()
    ):
        return None
    rest = nodes[1 + int(opened) :]
    if not rest:
        return None if opened else Choice(letter.text)
    closed = rest[0].is_sign(")")
    if opened and not closed:
        return None
    if closed or (rest[0].is_sign(". :") and (len(rest) == 1 or rest[1].spaced)):
        behind = rest[1:]
        # "A) and B)" is a list; `(A)+1`, `(A)^2` and `(A)(B)` go on with a formula.
        if behind and (
            behind[0].text.lower() in ("and", "or")
            or behind[0].is_sign(r"+ - * / ^ _ = < > , ( ! \cdot \times \le \ge")
        ):
            return None
        return Choice(letter.text, behind)
    return None
