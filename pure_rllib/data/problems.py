"""Problems and where they come from."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pure_rllib.data.boxed import last_box
from pure_rllib.data.files import read_rows
from pure_rllib.setting_types import Count, Share, check_setting

PROMPT_FIELDS = ("question", "problem", "prompt")
ANSWER_FIELDS = ("answer", "final_answer", "gold")
ID_FIELDS = ("problem_id", "unique_id", "id", "idx")
# PURE's training file holds the answers that it hides from training under this name.
_HIDDEN_FIELDS = ("ref_answer",)
_UNKNOWN_ANSWERS = ("", "null")


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


class ListProblems:
    """Problems that are held in memory.

    Args:
        problems: at least one. Problems without an id get their index; ids that occur
            again get a suffix.

    Raises:
        ValueError: there is no problem.
    """

    def __init__(self, problems: Iterable[Problem]):
        self._problems = _with_unique_ids(problems)
        if not self._problems:
            raise ValueError(
                "`problems` (empty) must hold at least one problem; because there is "
                "nothing to train on. Set another source."
            )
        self.num_answers = sum(p.answer is not None for p in self._problems)

    def __len__(self) -> int:
        return len(self._problems)

    def __getitem__(self, index: int) -> Problem:
        return self._problems[index]

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._problems)


def load_problems(
    source: str | Path,
    *,
    prompt_field: str | None = None,
    answer_field: str | None = None,
    id_field: str | None = None,
    answer_from_solution: str | None = None,
    split: str = "train",
    subset: str | None = None,
    answer_fraction: float = 1.0,
    limit: int | None = None,
    seed: int = 0,
) -> ListProblems:
    r"""Loads problems from a file, a folder or the Hugging Face hub.

    An answer that is missing, null, "" or "null" is unknown. All fields that are not
    named here go to the problem's metadata, except answers that the source itself hides
    (`ref_answer`, unless it is the `answer_field`).

    Args:
        source: a `.json` (list of objects), `.jsonl` or `.parquet` file; a folder that
            `datasets` wrote or can read; or the id of a data set on the hub.
        prompt_field: holds the problem's text; by default the first that exists of
            `question`, `problem`, `prompt`.
        answer_field: holds the gold answer; by default the first that exists of
            `answer`, `final_answer`, `gold`; without any, all answers are unknown.
        id_field: names the problem; by default the first that exists of `problem_id`,
            `unique_id`, `id`, `idx`, else the row's number.
        answer_from_solution: the field of a worked solution whose last box (MATH), or
            whatever follows its last "####" (GSM8K), is the answer.
        split: of a folder or a data set on the hub.
        subset: of a data set on the hub ("main" of "openai/gsm8k").
        answer_fraction: in [0, 1], the share of the known answers that are kept. Which
            ones depends on the problems' texts and `seed`, not on their order; those of
            a smaller share are among those of a larger one.
        limit: take only so many first problems, >= 1.
        seed: chooses the answers that are kept.

    Raises:
        FileNotFoundError: no such file, folder or data set.
        ValueError: wrong field, broken line, empty data set, setting out of range.
    """
    check_setting("answer_fraction", answer_fraction, Share)
    check_setting("limit", limit, Count | None)
    if answer_field is not None and answer_from_solution is not None:
        raise ValueError(
            f"`answer_field` ({answer_field!r}) must not be given together with "
            f"`answer_from_solution` ({answer_from_solution!r}); because both say "
            "where the answer is. Set one of them."
        )
    rows = read_rows(str(source), split=split, subset=subset, limit=limit)
    where = str(source)
    prompt_field = _find_field(prompt_field, "prompt_field", PROMPT_FIELDS, rows, where)
    if prompt_field is None:
        raise ValueError(
            f"`prompt_field` (not given) must be named for {where}; because none of "
            f"its fields is called {', '.join(PROMPT_FIELDS)}. Set it to one of: "
            f"{', '.join(rows[0])}."
        )
    if answer_from_solution is not None:
        _find_field(answer_from_solution, "answer_from_solution", (), rows, where)
    else:
        answer_field = _find_field(
            answer_field, "answer_field", ANSWER_FIELDS, rows, where
        )
    id_field = _find_field(id_field, "id_field", ID_FIELDS, rows, where)
    used = {prompt_field, answer_field, id_field, answer_from_solution}
    left_out = used.union(_HIDDEN_FIELDS)
    problems = []
    for number, row in enumerate(rows):
        place = f"{where}, row {number + 1}"
        if answer_from_solution is not None:
            answer = _answer_in_solution(row.get(answer_from_solution))
        else:
            answer = _read_answer(
                row.get(answer_field) if answer_field else None, place
            )
        problems.append(
            Problem(
                prompt=_read_prompt(row.get(prompt_field), prompt_field, place),
                answer=answer,
                problem_id="" if id_field is None else str(row.get(id_field, "")),
                metadata={k: v for k, v in row.items() if k not in left_out},
            )
        )
    return ListProblems(_hide_answers(problems, answer_fraction, seed))


def _with_unique_ids(problems: Iterable[Problem]) -> list[Problem]:
    unique: list[Problem] = []
    seen: set[str] = set()
    num_copies: dict[str, int] = {}
    for index, problem in enumerate(problems):
        base = problem.problem_id or str(index)
        name = base
        while name in seen:
            num_copies[base] = num_copies.get(base, 1) + 1
            name = f"{base}-{num_copies[base]}"
        seen.add(name)
        if name != problem.problem_id:
            problem = replace(problem, problem_id=name)
        unique.append(problem)
    return unique


def _find_field(
    name: str | None,
    setting: str,
    usual_names: tuple[str, ...],
    rows: list[dict[str, Any]],
    where: str,
) -> str | None:
    if name is None:
        return next((usual for usual in usual_names if usual in rows[0]), None)
    # A JSON Lines file may leave a field out of some rows.
    if not any(name in row for row in rows):
        raise ValueError(
            f"`{setting}` ({name!r}) must be a field of {where}; because that is where "
            f"it is read from. Set it to one of: {', '.join(rows[0])}."
        )
    return name


def _read_prompt(value: Any, prompt_field: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"`{prompt_field}` ({value!r:.100}) of {place} must be text that is not "
            "blank; because it is the problem. Set `prompt_field` to another field, or "
            "repair the row."
        )
    return value


def _read_answer(value: Any, place: str) -> str | None:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise ValueError(
            f"The answer ({value!r:.100}) of {place} must be text or a number; because "
            "it is compared with the responses' answers. Set `answer_field` to another "
            "field."
        )
    text = "" if value is None else str(value).strip()
    return None if text in _UNKNOWN_ANSWERS else text


def _answer_in_solution(solution: Any) -> str | None:
    if not isinstance(solution, str):
        return None
    _, mark, after = solution.rpartition("####")
    return (after.strip() if mark else last_box(solution)) or None


def _hide_answers(
    problems: list[Problem], answer_fraction: float, seed: int
) -> list[Problem]:
    known = [index for index, p in enumerate(problems) if p.answer is not None]

    def rank(index: int) -> bytes:
        text = f"{seed}:{problems[index].prompt}"
        return hashlib.blake2b(text.encode(errors="surrogatepass")).digest()

    num_kept = round(answer_fraction * len(known))
    hidden = set(sorted(known, key=rank)[num_kept:])
    return [
        replace(problem, answer=None) if index in hidden else problem
        for index, problem in enumerate(problems)
    ]
