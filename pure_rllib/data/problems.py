"""Problems and where they come from."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pure_rllib.data.files import read_rows
from pure_rllib.data.rows import (
    ANSWER_FIELDS,
    ID_FIELDS,
    PROMPT_FIELDS,
    Row,
    answer_in_solution,
    fields_of,
    find_field,
    read_answer,
    read_prompt,
    value_of,
)
from pure_rllib.setting_types import Count, Share, check_setting

# PURE's training file holds the answers that it hides from training under this name.
_HIDDEN_FIELDS = ("ref_answer",)


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        prompt: its text, before any prompt template.
        answer: the gold answer, or None where it is unknown.
        problem_id: names it in logs; unique in its source.
        metadata: whatever else the source knows (level, subject, ...).
        history: messages before the problem, each with `role` and `content`, where it
            is the last one of a conversation; only a chat template can show them.
    """

    prompt: str
    answer: str | None = None
    problem_id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()


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
                "nothing to ask. Set another source."
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
    prompt_field: str | Sequence[str] | None = None,
    answer_field: str | Sequence[str] | None = None,
    id_field: str | None = None,
    answer_from_solution: str | None = None,
    split: str = "train",
    subset: str | None = None,
    answer_fraction: float = 1.0,
    limit: int | None = None,
    seed: int = 0,
) -> ListProblems:
    r"""Loads problems from a file, a folder or the Hugging Face hub.

    A field inside another is named by its path, as `reward_model.ground_truth`; fields
    that are not named are looked for in all rows. A problem is text, or messages that
    end with the user's: verl's, TRL's and OpenAI's rows. An answer that is missing,
    null, "", "null" or NaN is unknown. All fields that are not named here go to the
    problem's metadata, except answers that the source itself hides (`ref_answer`,
    unless it is the `answer_field`).

    Args:
        source: a `.json` (list of objects, or one in each line), `.jsonl`, `.csv` (with
            a header) or `.parquet` file; a folder that `datasets` wrote or can read; or
            the id of a data set on the hub. Classes of `datasets` have their names.
        prompt_field: holds the problem; of several the first that has values counts; by
            default of `question`, `problem`, `prompt`, `messages`.
        answer_field: holds the gold answer; likewise; by default of `answer`,
            `final_answer`, `gold`, `ground_truth`, `reward_model.ground_truth`; without
            any, all answers are unknown.
        id_field: names the problem; by default the first that has values of
            `problem_id`, `unique_id`, `id`, `idx`, else the row's number.
        answer_from_solution: the field of a worked solution whose last box (MATH) is
            the answer; without a box, what follows "####" in its last line (GSM8K).
        split: of a folder or a data set on the hub.
        subset: of a data set on the hub ("main" of "openai/gsm8k").
        answer_fraction: in [0, 1], the share of the known answers that are kept. Which
            ones depends on the problems' texts and `seed`, not on their order; those of
            a smaller share are among those of a larger one.
        limit: take only so many first problems, >= 1.
        seed: chooses the answers that are kept.

    Raises:
        FileNotFoundError: no such file, folder or data set.
        ValueError: wrong field, broken line, empty data set, setting out of range, or a
            row whose problem or answer cannot be read.
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
    asked: tuple[tuple[str, str | Sequence[str] | None, Sequence[str]], ...] = (
        ("prompt_field", prompt_field, PROMPT_FIELDS),
        ("answer_field", answer_field, ANSWER_FIELDS),
        ("id_field", id_field, ID_FIELDS),
        ("answer_from_solution", answer_from_solution, ()),
    )
    prompt, answer, name, solution = (
        _field(setting, field, usual, rows, where) for setting, field, usual in asked
    )
    if prompt is None:
        raise ValueError(
            f"`prompt_field` (not given) must be named for {where}; because none of "
            f"its fields is called {', '.join(PROMPT_FIELDS)}. Set it to one of: "
            f"{fields_of(rows)}."
        )
    if solution is not None:
        answer = None
    used = [f for f in (prompt, answer, name, solution) if f is not None]
    left_out = {*used, *(f.split(".")[0] for f in used), *_HIDDEN_FIELDS}
    problems = []
    for number, row in enumerate(rows, start=1):
        place = f"{where}, row {number}"
        text, history = read_prompt(value_of(row, prompt), prompt, place)
        if solution is not None:
            gold = answer_in_solution(value_of(row, solution), solution, place)
        else:
            gold = read_answer(value_of(row, answer), place) if answer else None
            if gold is None and answer_field is None:
                _check_no_other_answer(row, answer, place)
        problem_id = value_of(row, name) if name else None
        problems.append(
            Problem(
                prompt=text,
                answer=gold,
                problem_id="" if problem_id is None else str(problem_id),
                metadata={k: v for k, v in row.items() if k not in left_out},
                history=history,
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


def _field(
    setting: str,
    field: str | Sequence[str] | None,
    usual: Sequence[str],
    rows: Sequence[Row],
    where: str,
) -> str | None:
    """Returns the field that a setting names, or else the usual one that is there."""
    named = (field,) if isinstance(field, str) else field
    found = find_field(rows, usual if named is None else named)
    if field is not None and found is None:
        raise ValueError(
            f"`{setting}` ({field!r}) must be a field of {where}; because it is read "
            f"from there. Set it to one of: {fields_of(rows)}."
        )
    return found


def _check_no_other_answer(row: Row, answer: str | None, place: str) -> None:
    """Refuses a row that has its answer elsewhere than the other rows."""
    other = find_field([row], ANSWER_FIELDS)
    if other is not None and other != answer and value_of(row, other) is not None:
        raise ValueError(
            f"`answer_field` (not given) must be named for {place}; because this row "
            f"has `{other}` and no `{answer}`, which others have. Set it to the field "
            "that counts, or give all rows the same one."
        )


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
