r"""Finding the final answer, `\boxed{...}`, in a text, in time linear in its length."""

import re

_TOKENS = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
# Boxes at most this far apart are one answer if the gap names a list, as in Math-Verify
# ("\boxed{1} and \boxed{2}"); of boxes with nothing in between the last one counts.
_MAX_GAP_CHARS = 70
_SEPARATOR = re.compile(r"[,;]|\b(?:and|or)\b")


def find_boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Finds the outermost complete boxes of a text.

    Boxes are `\boxed{...}` and `\fbox{...}` with balanced braces; a box that is never
    closed is no box. Braces count even where they are escaped, as in Math-Verify.

    Args:
        text: any text, hostile ones included.

    Returns:
        `(start, end, content)` per box in their order; `text[start:end]` is the whole
        box, content is without white space at both ends.
    """
    open_braces: list[re.Match[str]] = []
    boxes: list[tuple[int, int, str]] = []
    for token in _TOKENS.finditer(text):
        if token.group() != "}":
            open_braces.append(token)
        elif open_braces:
            opening = open_braces.pop()
            if opening.group() != "{":
                # Boxes inside this one were closed earlier: they are not outermost.
                while boxes and boxes[-1][0] > opening.start():
                    boxes.pop()
                # The content is cut out later, once per outermost box: cutting it here
                # takes quadratic time on 100,000 nested boxes.
                boxes.append((opening.start(), token.end(), ""))
    return [
        (start, end, text[text.index("{", start) + 1 : end - 1].strip())
        for start, end, _ in boxes
    ]


def last_box(text: str) -> str | None:
    """Returns the content of the last complete box of a text, or None without one."""
    boxes = find_boxes(text)
    return boxes[-1][2] if boxes else None


def answer_text(response: str, *, max_chars: int, boxed_only: bool = False) -> str:
    r"""Cuts out of a response the part that holds its answer.

    With one complete box this is the box alone, whatever surrounds it. Boxes that a
    comma, "and" or "or" joins are kept together, since "\boxed{1} and \boxed{2}" is
    one answer. Without a box it is the response's end.

    Args:
        response: the response's text.
        max_chars: >= 1; longer boxes are no answer, longer texts lose their beginning.
        boxed_only: whether a response without a box has no answer.

    Returns:
        The part that is to be parsed; "" if there is no answer.
    """
    boxes = find_boxes(response)
    if not boxes:
        return "" if boxed_only else response[-max_chars:].strip()
    first = last = len(boxes) - 1
    end = boxes[last][1]
    if not boxes[last][2] or len(boxes[last][2]) > max_chars:
        return ""
    while (
        first > 0
        and boxes[first][0] - boxes[first - 1][1] < _MAX_GAP_CHARS
        and end - boxes[first - 1][0] <= max_chars
        and _SEPARATOR.search(response, boxes[first - 1][1], boxes[first][0])
    ):
        first -= 1
    contents = {content for _, _, content in boxes[first:]}
    if len(contents) == 1:
        return f"\\boxed{{{boxes[last][2]}}}"
    return response[boxes[first][0] : end]


def gold_text(gold: str) -> str:
    r"""Writes a gold answer as a box, so that it is parsed as LaTeX.

    One that holds a box stays as it is; `$..$`, `\(..\)` and `\[..\]` around the whole
    answer are taken off.
    """
    text = gold.strip()
    if not text or find_boxes(text):
        return text
    for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inner = text.removeprefix(opening).removesuffix(closing)
        if len(text) - len(inner) == len(opening + closing) and opening not in inner:
            return f"\\boxed{{{inner.strip()}}}"
    return f"\\boxed{{{text}}}"
