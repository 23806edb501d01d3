r"""Text: names, words, dates; yes and no; what is no mathematics.

- Words are the same without regard to case, articles, punctuation and spaces.
- `\text{MR}` and `MR` are the same, though the second may be a product: so a text takes
  any answer that is written with the same letters and digits.
"""

import re
from dataclasses import dataclass

from pure_rllib.rewards.verifier.latex import Nodes

_ARTICLES = {"a", "an", "the"}
# Italic letters in a row are a product unless they are this many.
_MIN_LETTERS = 4


@dataclass(frozen=True, slots=True)
class Text:
    """Words in lower case, parted by single spaces."""

    words: str


def read_text(nodes: Nodes, *, any_word: bool = False) -> Text | None:
    """Reads words; None where a node is neither a word nor what may stand with one.

    Args:
        nodes: the whole of an answer.
        any_word: whether one short italic word is enough, as in "no".
    """
    words: list[str] = []
    is_text, abbreviated = any_word, False
    for node in nodes:
        if node.kind in ("text", "word", "letter", "number"):
            is_text |= node.kind == "text"
            is_text |= node.kind == "word" and len(node.text) >= _MIN_LETTERS
            if abbreviated and len(node.text) == 1:
                # "p.m." is one word.
                words[-2:] = [words[-2] + node.text]
            elif node.spaced or not words or node.kind == "text":
                words.append(node.text)
            else:
                words[-1] += node.text
            abbreviated = False
        elif node.is_sign("- ' . , : ? ! \""):
            abbreviated = node.text == "." and bool(words) and words[-1][-1:].isalpha()
            words += [] if node.text == "'" else [""]
        else:
            return None
    parts = " ".join(words).lower().split()
    if not is_text or not any(part.isalpha() for part in parts):
        return None
    if len(parts) > 1 and parts[0] in _ARTICLES:
        parts = parts[1:]
    return Text(" ".join(parts))


def letters_of(text: str) -> str | None:
    """Returns letters and digits in lower case, or None where there are other signs."""
    bare = re.sub(r"\\(?:text|mathrm|mbox)\b|[{}\s.,']", "", text)
    return bare.lower() if bare.isalnum() else None
