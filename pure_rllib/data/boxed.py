r"""Finding the final answer, `\boxed{...}`, in a text, in time linear in its length."""

import re

_TOKENS = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
# Boxes at most this far apart may be one answer.
_MAX_GAP_CHARS = 70
# What may stand between the boxes of one answer: signs of LaTeX that show nothing, ...
_INVISIBLE = re.compile(
    r"\$|\\[()\[\]\\,;: ]|\\q?quad(?![A-Za-z])|\\text\s*(?=\{)|\\\Z|[{}*]|&|\s+"
)
# ... one or more of comma, "and", "or", the label of a part, and a name. Any other word
# says something about a box, that it is wrong for example.
_JOINT = re.compile(
    r"\s*(?P<first>[.,;]|(?:and|or)\b)?(?:\s*[,;]|\s*\b(?:and|or)\b)*\s*"
    r"(?P<label>(?:for\s+)?(?:part\s+)?(?:\(\w{1,3}\)|\b\w\))\s*[:.]?)?"
    r"\s*(?:and\b|or\b)?\s*(?:[A-Za-z]\w*(?:\(\w\))?\s*=)?\s*",
    re.IGNORECASE,
)


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

    With one complete box this is the box alone, whatever surrounds it. Boxes with
    nothing but a comma, "and", "or", a part's label and a name between them are kept
    together, since "\boxed{1} and \boxed{2}" is one answer; where more is said between
    two boxes, the later one corrects the other. Without a box it is the response's end.

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
        and end - boxes[first - 1][0] <= max_chars
        and box_joint(response[boxes[first - 1][1] : boxes[first][0]]) is not None
    ):
        first -= 1
    contents = {content for _, _, content in boxes[first:]}
    if len(contents) == 1:
        return f"\\boxed{{{boxes[last][2]}}}"
    return response[boxes[first][0] : end]


def box_joint(gap: str) -> str | None:
    """Returns what joins two boxes, written as it may stand in one box.

    Args:
        gap: what stands between them.

    Returns:
        " or ", or a comma, with the name that follows; None if they are two answers.
    """
    if len(gap) >= _MAX_GAP_CHARS:
        return None
    text = _INVISIBLE.sub(" ", gap)
    found = _JOINT.fullmatch(text)
    if found is None or not (found["first"] or found["label"]):
        return None
    if found["first"] == "." and not found["label"]:
        return None
    names = re.findall(r"([A-Za-z]\w*(?:\(\w\))?\s*=)\s*$", text)
    joint = " or " if re.search(r"(?i)\bor\b", text) else ", "
    return joint + "".join(names)


def gold_text(gold: str) -> str:
    r"""Writes a gold answer as a box, so that it is parsed as LaTeX.

    Of a worked solution only what follows the last `####` counts. An answer that holds
    a box stays as it is; `$..$`, `\(..\)` and `\[..\]` around the whole are taken off.
    """
    text = gold.rpartition("####")[2].strip()
    if r"\begin" not in text:
        # Escaped twice, as JSON in JSON is; a line break has no letter behind it here.
        text = re.sub(r"\\\\(?=[A-Za-z{}])", r"\\", text)
    if not text or find_boxes(text):
        return text
    for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inner = text.removeprefix(opening).removesuffix(closing)
        if len(text) - len(inner) == len(opening + closing) and opening not in inner:
            return f"\\boxed{{{inner.strip()}}}"
    return f"\\boxed{{{text}}}"
