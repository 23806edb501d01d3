"""Reading rows from JSON, CSV and Parquet files, `datasets` folders and the hub."""

import csv
import io
import itertools
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pure_rllib.models.hub import go_offline_without_hub

if TYPE_CHECKING:
    from datasets import Features

FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read_rows(
    source: str, *, split: str, subset: str | None, limit: int | None
) -> list[dict[str, Any]]:
    """Reads the rows of a data set as dicts.

    Args:
        source: a file, a folder, or the id of a data set on the Hugging Face hub.
        split: of a folder or a data set on the hub; "train" for a file.
        subset: of a data set on the hub, else None.
        limit: read only so many first rows.

    Returns:
        At least one row.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source is broken or empty, or a setting does not apply to it.
    """
    path = Path(source).expanduser()
    is_hub_id = not path.exists() and path.suffix not in FILE_SUFFIXES
    if is_hub_id and not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(_not_found(source))
    if subset is not None and not is_hub_id:
        raise ValueError(
            f"`subset` ({subset!r}) must be left out for {source}; because only data "
            "sets on the hub have subsets. Set subset=None."
        )
    if path.is_dir():
        rows = _read_folder(path, split)
    elif is_hub_id:
        rows = _read_hub(source, split, subset)
    else:
        if split != "train":
            raise ValueError(
                f"`split` ({split!r}) must be left out for {source}; because one file "
                "has no splits. Name the file of that split instead."
            )
        rows = _read_file(path)
    taken = [dict(row) for row in itertools.islice(rows, limit)]
    if not taken:
        raise ValueError(
            f"The data set {source} (0 rows) must hold at least one row; because there "
            "is nothing to ask. Set another source."
        )
    return taken


def _not_found(source: str) -> str:
    return (
        f"The source of problems ({source!r}) must exist; because nothing can be read "
        f"from it. Set it to a {', '.join(FILE_SUFFIXES)} file, a folder, or the id of "
        "a data set on the Hugging Face hub."
    )


def _read_file(path: Path) -> Iterable[Mapping[str, Any]]:
    if not path.exists():
        raise FileNotFoundError(_not_found(str(path)))
    if path.suffix == ".jsonl":
        return _read_json_lines(path)
    if path.suffix == ".json":
        return _read_json(path)
    if path.suffix == ".csv":
        return _read_csv(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise ValueError(
        f"The file {path} (suffix {path.suffix!r}) must end in "
        f"{', '.join(FILE_SUFFIXES)}; because other formats cannot be read. Convert it."
    )


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {first_line + error.lineno - 1}: broken JSON, {error.msg}. "
            "Repair or remove it."
        ) from error


def _as_row(value: Any, path: Path, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(
            f"{path}, {place}: ({value!r:.60}) must be an object with named fields; "
            'because each problem is one. Write {"question": ..., "answer": ...}.'
        )
    return value


def _read_json_lines(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and line.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
                yield from _read_json(path)  # one list, in a file of another name
                return
            if line.strip():
                text = _decode(line, path, number).rstrip()
                yield _as_row(_parse(text, path, number), path, f"line {number}")


def _read_json(path: Path) -> Iterable[Mapping[str, Any]]:
    text = _decode(path.read_bytes(), path, 1)
    first, _, rest = text.lstrip().partition("\n")
    if first.startswith("{") and rest.lstrip().startswith("{"):
        # `datasets` writes JSON Lines into a file of any name.
        return _read_json_lines(path)
    values = _parse(text, path, 1)
    if not isinstance(values, list):
        raise ValueError(
            f"{path} ({type(values).__name__}) must hold one JSON list of objects; "
            "because each is one problem. Use .jsonl for one object per line."
        )
    return [
        _as_row(value, path, f"item {number}")
        for number, value in enumerate(values, start=1)
    ]


def _decode(data: bytes, path: Path, first_line: int) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise ValueError(f"{path}, line {line}: not UTF-8. Convert it.") from error


def _read_csv(path: Path) -> Iterable[Mapping[str, Any]]:
    """Rows under a header; every value is text, so that "007" stays what it is."""
    text = _decode(path.read_bytes(), path, 1)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise csv.Error(f"not {len(reader.fieldnames or ())} fields")
            yield row
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: broken CSV, {error}. Repair or remove it."
        ) from error


def _read_parquet(path: Path) -> Iterable[Mapping[str, Any]]:
    # Imported here, like `datasets` below: they are slow to import and seldom needed.
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    if b"huggingface" not in (table.schema.metadata or {}):
        return table.to_pylist()
    import datasets

    features = datasets.Features.from_arrow_schema(table.schema)
    return _with_class_names(table.to_pylist(), features)


def _read_folder(path: Path, split: str) -> Iterable[Mapping[str, Any]]:
    import datasets

    saved = any((path / name).exists() for name in ("state.json", "dataset_dict.json"))
    if not saved:
        data = datasets.load_dataset(str(path), split=split)
        return _with_class_names(data, data.features)
    data = datasets.load_from_disk(str(path))
    if not isinstance(data, datasets.DatasetDict):
        return _with_class_names(data, data.features)
    if split not in data:
        raise ValueError(
            f"`split` ({split!r}) must be a split of {path}; because that is what is "
            f"read. Set it to one of: {', '.join(data)}."
        )
    return _with_class_names(data[split], data[split].features)


def _read_hub(
    source: str, split: str, subset: str | None
) -> Iterable[Mapping[str, Any]]:
    go_offline_without_hub()
    import datasets

    try:
        data = datasets.load_dataset(source, subset, split=split)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{_not_found(source)} The hub says: {error}"
        ) from error
    return _with_class_names(data, data.features)


def _with_class_names(
    rows: Iterable[Mapping[str, Any]], features: "Features"
) -> Iterable[Mapping[str, Any]]:
    """Puts names in the place of the numbers that `datasets` keeps of classes."""
    import datasets

    names = {
        field: feature.names
        for field, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }

    def name_of(field: str, number: int | None) -> str | None:
        # -1 is written where a test split hides the class.
        return None if number is None or number < 0 else names[field][number]

    return (
        {**row, **{field: name_of(field, row[field]) for field in names}}
        for row in rows
    )
