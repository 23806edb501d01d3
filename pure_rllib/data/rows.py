"""Finding a problem's parts in the rows of others: fields, messages, answers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pure_rllib.data.boxed import last_box

PROMPT_FIELDS = ("question", "problem", "prompt", "messages")
ANSWER_FIELDS = (
    *("answer", "final_answer", "gold", "ground_truth"),
    "reward_model.ground_truth",
)
ID_FIELDS = ("problem_id", "unique_id", "id", "idx")
# What programs write, in any case, for a value that is not there.
_UNKNOWN_ANSWERS = ("", "null", "nan")

_INFINITE = (math.inf, -math.inf)

Row = Mapping[str, Any]
Message = dict[str, Any]


def value_of(row: Row, field: str) -> Any:
    """Reads a field, or a nested one by its path (`reward_model.ground_truth`).

    Returns:
        None where the row has no such field.
    """
    if field in row:
        return row[field]
    value: Any = row
    for name in field.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def find_field(rows: Sequence[Row], names: Sequence[str]) -> str | None:
    """Returns the first of some fields that any row has, those with a value first.

    All rows count: writers leave a field out of a row, or fill it with null, where they
    have no value for it.
    """
    for name in names:
        if any(value_of(row, name) is not None for row in rows):
            return name
    return next((name for name in names if any(name in row for row in rows)), None)


def fields_of(rows: Iterable[Row]) -> str:
    """Lists the fields that the rows have, for messages."""
    names: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            inner = value if isinstance(value, Mapping) else {}
            names |= dict.fromkeys(f"{name}.{key}" for key in inner) or {name: None}
    return ", ".join(names)


def read_prompt(value: Any, field: str, place: str) -> tuple[str, tuple[Message, ...]]:
    """Reads a problem: its text, or messages of which the last one is its text.

    Args:
        value: text, or a list of messages with `role` and `content`, the last one the
            user's. Content is text, or a list of text blocks.
        field: where it stands, for messages of errors.
        place: of the row, likewise.

    Returns:
        The problem's text, and the messages before it.

    Raises:
        ValueError: it is neither, or holds what cannot be kept (images, blank text).
    """

    def refuse(found: Any, rule: str, way_out: str) -> ValueError:
        return ValueError(
            f"`{field}` ({found!r:.100}) of {place} {rule} {way_out} Or set "
            "`prompt_field` to another field."
        )

    if isinstance(value, str) and value.strip():
        return value, ()
    if not isinstance(value, list) or not value:
        rule = "must be text that is not blank, or messages; because it is the problem."
        raise refuse(value, rule, "Repair the row.")
    messages = []
    for message in value:
        is_message = isinstance(message, Mapping) and isinstance(
            message.get("role"), str
        )
        content = _content(message.get("content")) if is_message else None
        if content is None:
            raise refuse(
                message,
                "must be a message with `role` and `content`, the content text; "
                "because nothing else can be shown to the policy.",
                'Write {"role": "user", "content": "..."}.',
            )
        # Files with columns fill up with null what another row's message has.
        given = {key: part for key, part in message.items() if part is not None}
        messages.append({**given, "content": content})
    *history, last = messages
    if last["role"] != "user" or not last["content"].strip():
        raise refuse(
            last,
            "must end with a message of the user that is not blank; because the "
            "policy answers it.",
            "Take off what follows the question.",
        )
    return last["content"], tuple(history)


def _content(content: Any) -> str | None:
    """The text of a message; None where there is something else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts: list[str] = []
    for block in content:
        text = block.get("text") if isinstance(block, Mapping) else None
        if not isinstance(text, str) or block.get("type") != "text":
            return None
        texts.append(text)
    return "".join(texts)


def read_answer(value: Any, place: str) -> str | None:
    """Reads a gold answer; None where it is unknown.

    Raises:
        ValueError: it is neither text nor a finite number, nor a list of texts.
    """
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (isinstance(value, str | None) or is_number) or value in _INFINITE:
        raise ValueError(
            f"The answer ({value!r:.100}) of {place} must be text or a finite number; "
            "because it is compared with the responses' answers. Write it as text "
            '("\\\\infty"), or set `answer_field` to another field.'
        )
    text = "" if value is None else str(value).strip()
    return None if text.lower() in _UNKNOWN_ANSWERS else text


def answer_in_solution(solution: Any, field: str, place: str) -> str | None:
    r"""Reads a worked solution's last box, or what follows "####" in its last line.

    A box comes first: behind one, "####" begins a heading.

    Returns:
        None where there is neither, or no solution.

    Raises:
        ValueError: the solution is no text.
    """
    if not isinstance(solution, str):
        if read_answer(solution, place) is None:
            return None
        raise ValueError(
            f"`{field}` ({solution!r:.100}) of {place} must be text; because the "
            "answer is looked for in it. Set `answer_field` where it is the answer."
        )
    box = last_box(solution)
    _, mark, after = solution.strip().rpartition("\n")[2].rpartition("####")
    return (box if box is not None else after.strip() if mark else None) or None
