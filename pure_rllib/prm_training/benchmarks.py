"""Benchmarks of process reward models, read from their published files. S steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pure_rllib.data.files import FILE_SUFFIXES, read_rows


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """One solution of a benchmark.

    Attributes:
        id: its name in the benchmark.
        subset: the part of the benchmark that it belongs to.
        prompt: the problem's text.
        steps: S texts.
        errors: indices of wrong steps, from 0, rising. Only the first is known in
            ProcessBench.
    """

    id: str
    subset: str
    prompt: str
    steps: tuple[str, ...]
    errors: tuple[int, ...]

    @property
    def first_error(self) -> int:
        """Index of the first wrong step; -1 if there is none."""
        return self.errors[0] if self.errors else -1


def read_processbench(source: str) -> list[BenchmarkItem]:
    """Reads ProcessBench (arXiv 2412.06559): a folder with a file per subset, or one.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a row has not the benchmark's form.
    """
    path = Path(source).expanduser()
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in FILE_SUFFIXES)
        if not files:
            raise FileNotFoundError(
                f"`--processbench` ({source}) must hold the benchmark's files, such as "
                "gsm8k.json and math.json; there are none."
            )
    items = []
    for file in files:
        for number, row in enumerate(_rows(file, "--processbench")):
            steps: Any = row.get("steps")
            label = row.get("label")
            if (
                not _are_texts(row.get("problem"), steps)
                or not isinstance(label, int)
                or not -1 <= label < len(steps)
            ):
                wanted = "problem, steps and label (-1 or a step's index)"
                raise _wrong(file, number, wanted)
            errors = () if label < 0 else (label,)
            name = str(row.get("id", number))
            items.append(
                BenchmarkItem(name, file.stem, row["problem"], tuple(steps), errors)
            )
    return items


def _rows(file: Path, option: str) -> Sequence[Mapping[str, Any]]:
    if not file.is_file():
        raise FileNotFoundError(
            f"`{option}` ({file}) must exist; there is no such file. Set the path of "
            "what the benchmark's authors publish."
        )
    return read_rows(str(file), split="train", subset=None, limit=None)


def read_prmbench(source: str) -> list[BenchmarkItem]:
    """Reads PRMBench (arXiv 2501.03124); its error classes are the subsets.

    The problem is `modified_question`, the steps are `modified_process`. A few rows
    name error steps beyond their last step: these are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row has not the benchmark's form.
    """
    path = Path(source).expanduser()
    items = []
    for number, row in enumerate(_rows(path, "--prmbench")):
        steps: Any = row.get("modified_process")
        errors = row.get("error_steps")
        if (
            not _are_texts(row.get("modified_question"), steps)
            or not isinstance(errors, list)
            or not all(isinstance(e, int) and e >= 1 for e in errors)
        ):
            wanted = "modified_question, modified_process and error_steps "
            raise _wrong(path, number, f"{wanted}(counted from 1)")
        items.append(
            BenchmarkItem(
                str(row.get("idx", number)),
                str(row.get("classification", "all")),
                row["modified_question"],
                tuple(steps),
                tuple(sorted({e - 1 for e in errors if e <= len(steps)})),
            )
        )
    return items


def _are_texts(problem: Any, steps: Any) -> bool:
    is_list = isinstance(steps, list) and len(steps) > 0
    return is_list and all(isinstance(text, str) for text in [problem, *steps])


def _wrong(file: Path, number: int, wanted: str) -> ValueError:
    return ValueError(
        f"Row {number} of {file} must have {wanted}, because that is the benchmark's "
        "form. Set the file that its authors publish."
    )
