r"""Which part of a response is its answer.

A complete box is; see `pure_rllib.data.boxed`. Without one it is what the response
states: between `<answer>` marks, behind `####`, behind "the answer is" and its like,
else the text as a whole, its last formula, its last number. Candidates come in this
order, and the first that can be read counts.
"""

import itertools
import re
from collections.abc import Iterator

from pure_rllib.data.boxed import box_joint, find_boxes, last_box
from pure_rllib.rewards.verifier.functions import FUNCTION_NAMES

# Chat marks and the thoughts of a model that marks its thoughts.
_MARKS = re.compile(r"<\|[^<>|]{1,40}\|>|</?(?:think|s)>")
_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_CUE = re.compile(
    r"(?:\b(?:final\s+)?(?:answers?|results?|solutions?|values?|options?|choices?)\b"
    r"(?:[^.\n:：=]{0,60}?(?:\bis\b|\bare\b|[:：=])(?:\s*[:：])?|\s*(?=\$|\\[(\[]|\([A-Z]\)))"
    r"|(?:答案|结果)\s*(?:是|为|[:：])*|答\s*[:：])[ \t]*",
    re.IGNORECASE,
)
_STATED = re.compile(
    r"\b(?:is|are|was|equals?|to|be|get|gives?|makes?|have|has)\b[ \t:]*"
)
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
_BRACKETED = re.compile(r"\[([^\[\]\n,;()]{1,40})\][.\s]*$")
# What a text says the answer is not, or is above or below: no answer.
_DENIED = re.compile(
    r"(?:\b(?:not|nor|neither|never|than|least|most)|n't)\s+(?:(?:be|equal(?:\s+to)?)\s+)?"
    r"(?:\$[^$]*\$|\S*\d\S*)|\bbetween\s+\S*\d\S*\s+and\s+\S*\d\S*",
    re.IGNORECASE,
)
# A sentence ends before a space, so that 3.5 and "p.m." go on.
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z\[])|[。！？]|\n\s*\n")
# A condition or a reason is no part of what is stated.
_CLAUSE = re.compile(r",?\s+(?:when|if|where|for|since|because|as|which)\b")
LINE_ENDS = re.compile("\r\n?|[\n\x0b\x0c\x85\u2028\u2029]")
_NUMERAL = r"(?:\d[\d,.]*(?:[eE][+-]?\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?<![\w.])(?:[-+−]\s?)?[$€£¥₹]?\s?{_NUMERAL}(?:[ \t]+\d+)*(?:\s?/\s?\d+)?"
    r"(?:\s?\\?(?:%|[$€£¥₹])|\s?\\?(?:percent(?:age)?|pct)\b|(?:st|nd|rd|th)\b"
    r"|(?=[a-zA-Z]{1,3}[²³])|(?!\w))"
)
_LEAD_IN = re.compile(
    r"^(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the\s+)?(?:final\s+|correct\s+)?"
    r"(?:answers?|solutions?|results?|options?|choices?)\s*(?:is|are|:|=)\s*:?"
    r"|\\text\s*\{\s*(?:the\s+)?(?:final\s+)?"
    r"answers?\s*(?:is|are|:)?\s*\}\s*[:=]?|(?:approximately|approx\.?|about|roughly)\s"
    r"|\\text\s*\{\s*(?:approximately|about)\s*\}|\\approx(?![A-Za-z])|\\therefore)\s*",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\s*\*{1,2}([^*\n]+)\*{1,2}")
_DECORATION = re.compile(r"^(\*{1,3}|_{2}|`{1,3})(?=\S)(.+?)(?<=\S)\1$", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]{2,}")
_NAME = re.compile(r"[A-Za-z]{4,}[.\s]*$")
_ARTICLE = re.compile("[a-z]")
_MAX_WORDS = 6
_MAX_CANDIDATES = 12
_MAX_CUES = 3


def boxed_answer(text: str) -> str | None:
    r"""Returns what the boxes of a text hold, as one answer; None without a box."""
    boxes = find_boxes(text)
    if not boxes:
        return None
    parts = [boxes[0][2]]
    for before, box in itertools.pairwise(boxes):
        joint = box_joint(text[before[1] : box[0]])
        # What `boxed.answer_text` cut out is joined; of all else the last box counts.
        parts = [*parts, joint, box[2]] if joint else [box[2]]
    answer = cleaned("".join(parts))
    # A box in a box is one.
    inner = last_box(answer)
    return answer if inner is None else cleaned(inner)


def stated_answers(text: str) -> Iterator[str]:
    """Yields what may be the answer of a text without a box, the likeliest first.

    Args:
        text: the end of a response, of bounded length.
    """
    seen: set[str] = set()
    for candidate in _candidates(_MARKS.sub(" ", text)):
        candidate = cleaned(candidate)
        if candidate and candidate not in seen:
            seen.add(candidate)
            yield candidate
            if len(seen) >= _MAX_CANDIDATES:
                return


def _candidates(text: str) -> Iterator[str]:
    tagged = _TAGGED.findall(text)
    if tagged:
        yield tagged[-1]
        return
    _, mark, behind = text.rpartition("####")
    if mark:
        yield behind.strip().split("\n")[0]
        return
    text = _DENIED.sub(" ", text.rpartition("</think>")[2]).strip()
    cues = list(_CUE.finditer(text))
    final = [cue for cue in cues if "final" in cue[0].lower()]
    for cue in final[-1:] + cues[: -_MAX_CUES - 1 : -1]:
        yield from _statement(text[cue.end() :])
    lines = [line.strip() for line in LINE_ENDS.split(text) if line.strip()]
    if _is_formula(text):
        yield text
        return
    # Of a formula only the words are counted: `x = 6 or x = 7` has one.
    num_words = len(text.split() if is_prose(text) else _WORD.findall(text))
    longest = 2 if is_prose(text) else _MAX_WORDS
    if len(lines) == 1 and num_words <= longest and not _ARTICLE.fullmatch(text):
        yield text
    if lines:
        found = _BRACKETED.search(lines[-1])
        if found:
            yield found[1]
        for match in list(_STATED.finditer(lines[-1]))[-1:]:
            for said in _statement(lines[-1][match.end() :]):
                # Short words behind "is" go on with the sentence.
                if _NAME.match(said) or not _WORD.match(said):
                    yield said
        if "=" in lines[-1] and not _FORMULA.search(lines[-1]):
            yield lines[-1].rpartition("=")[2]
    yield from _last_parts(text)


def is_marked(text: str) -> bool:
    """Says whether a text marks its answer, or is one formula in marks of LaTeX."""
    if "####" in text or _TAGGED.search(text):
        return True
    return _is_formula(text.strip())


def _is_formula(text: str) -> bool:
    found = _FORMULA.search(text)
    return found is not None and found[0] == text


def _statement(text: str) -> Iterator[str]:
    """Yields what is said behind a cue: its sentence, formulas in front, numbers."""
    bold = _BOLD.match(text)
    if bold:
        yield bold[1]
    text = text.lstrip("*_ \t\n`")
    end = _SENTENCE_END.search(text)
    sentence = text[: end.start()] if end else text
    line = _CLAUSE.split(LINE_ENDS.split(sentence)[0])[0]
    if len(line.split()) <= 2 * _MAX_WORDS or not is_prose(line):
        yield line
        yield line.rpartition("`")[0]
    formula = _FORMULA.match(text)
    if formula:
        yield formula[0]
    yield from _last_parts(line)


def _last_parts(text: str) -> Iterator[str]:
    """Yields the last formula and the last number, the later one first."""
    formulas = list(_FORMULA.finditer(text))
    numbers = list(_NUMBER.finditer(text))
    last = [found[-1] for found in (formulas, numbers) if found]
    for match in sorted(last, key=lambda match: -match.end()):
        yield match[0]


def is_prose(text: str) -> bool:
    """Says whether a text begins like a sentence and has more than one word."""
    plain = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    words = [
        word
        for word in _WORD.findall(plain)
        if re.search("[aeiouy]", word) and word not in FUNCTION_NAMES
    ]
    return plain.lstrip(" ({")[:1].isalpha() and (
        len(words) > 1 or (len(words) == 1 and "," in plain)
    )


def cleaned(text: str) -> str:
    """Takes off what surrounds an answer: Markdown, dollar signs, an opening phrase."""
    before = None
    while text != before:
        before = text
        text = text.strip()
        found = _DECORATION.match(text)
        if found:
            text = found[2]
        text = _LEAD_IN.sub("", text)
        num_dollars = len(re.findall(r"(?<!\\)\$", text))
        if num_dollars > 1 and (num_dollars % 2 == 0 or text.endswith("$")):
            # They mark mathematics; a single one is a price.
            text = re.sub(r"(?<!\\)\$", " ", text)
    return text
