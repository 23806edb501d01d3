"""Samples and verdicts on disk: whole lines, written as they come, in any order.

A process may be killed at any moment. What is on the disk then is read again, a torn
last line is dropped, and the rest is asked for again.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pure_rllib.rewards.base import Outcome
from pure_rllib.whole_folder import write_text

Decoding = Literal["greedy", "sampled"]


class SampleKey(NamedTuple):
    """Names a sample within its benchmark.

    Attributes:
        problem: its index.
        decoding: "greedy" or "sampled".
        number: of the sample, from 0.
    """

    problem: int
    decoding: Decoding
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One response, verified.

    Attributes:
        problem: index of the problem.
        problem_id: its name.
        decoding: "greedy" or "sampled".
        number: of the sample, from 0.
        seed: what its random numbers were made from.
        token_ids: T ids, EOS included when it was sampled.
        terminated: False if the token budget ran out.
        text: without special tokens.
        answer: that the verifier found; None for none.
        outcome: the verifier's; None without a gold answer.
    """

    problem: int
    problem_id: str
    decoding: Decoding
    number: int
    seed: int
    token_ids: Sequence[int]
    terminated: bool
    text: str
    answer: str | None
    outcome: Outcome | None

    @property
    def key(self) -> SampleKey:
        """Its name within the benchmark."""
        return SampleKey(self.problem, self.decoding, self.number)

    @property
    def correct(self) -> bool:
        """Whether its answer is right."""
        return self.outcome == "correct"


@dataclass(slots=True, kw_only=True)
class ProblemVerdicts:
    """What needs all samples of a problem.

    Attributes:
        problem: index of the problem.
        classes: of the sampled answers, see `estimators.vote_classes`.
        reasoning: by the sample's place (greedy first), the judge's verdicts on a right
            answer's reasoning; None, as verdict: unreadable.
        not_judged: places whose reasoning was too long for the judge.
        step_scores: by place, what a judge of steps gave each step.
    """

    problem: int
    classes: list[int | None] = field(default_factory=list)
    reasoning: dict[str, list[bool | None]] = field(default_factory=dict)
    not_judged: list[str] = field(default_factory=list)
    step_scores: dict[str, list[float]] = field(default_factory=dict)


def place(sample: Sample) -> str:
    """Names a sample within its problem, as `ProblemVerdicts` does."""
    return f"{sample.decoding}-{sample.number}"


class LineFile:
    """A file of JSON lines that survives its writer.

    Args:
        path: made with its folder; what it holds is kept, but for a torn last line.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole, newline, _ = data.rpartition(b"\n")
        self.rows: list[dict[str, Any]] = [json.loads(r) for r in whole.splitlines()]
        self._file = path.open("ab")
        self._file.truncate(len(whole + newline))

    def append(self, rows: Iterable[Any]) -> None:
        """Writes dataclasses as lines; they are on the disk on return."""
        lines = [json.dumps(asdict(row)) + "\n" for row in rows]
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, rows: Iterable[Any]) -> None:
        """Writes all rows in the order given, in place of what is there."""
        self._file.close()
        write_text(self.path, "".join(json.dumps(asdict(row)) + "\n" for row in rows))


class BenchmarkFiles:
    """A benchmark's samples and verdicts, read at the start and added to.

    Args:
        folder: of the evaluation.
        name: of the benchmark.
    """

    def __init__(self, folder: Path, name: str):
        self._sample_file = LineFile(folder / "samples" / f"{name}.jsonl")
        self._verdict_file = LineFile(folder / "samples" / f"{name}.verdicts.jsonl")
        found = [Sample(**row) for row in self._sample_file.rows]
        self.samples = {sample.key: sample for sample in found}
        self.verdicts = {
            row["problem"]: ProblemVerdicts(**row) for row in self._verdict_file.rows
        }

    def add_samples(self, samples: Sequence[Sample]) -> None:
        """Writes new samples."""
        self._sample_file.append(samples)
        self.samples.update({sample.key: sample for sample in samples})

    def add_verdicts(self, verdicts: Sequence[ProblemVerdicts]) -> None:
        """Writes new verdicts."""
        self._verdict_file.append(verdicts)
        self.verdicts.update({one.problem: one for one in verdicts})

    def finish(self) -> None:
        """Puts the lines in order: the same files, in whatever order they came."""
        self.samples = dict(sorted(self.samples.items()))
        self.verdicts = dict(sorted(self.verdicts.items()))
        self._sample_file.finish(self.samples.values())
        self._verdict_file.finish(self.verdicts.values())


def write_parquet(
    by_benchmark: dict[str, list[tuple[Sample, list[bool | None] | None]]], path: Path
) -> Path:
    """Writes all samples as one table, whole or not at all.

    Args:
        by_benchmark: name -> samples, each with the judge's verdicts or None.
        path: of the file.
    """
    import pyarrow
    import pyarrow.parquet

    text, number = pyarrow.string(), pyarrow.int64()
    columns = {
        "benchmark": text,
        "problem_id": text,
        "decoding": text,
        "sample": number,
        "seed": number,
        "text": text,
        "tokens": number,
        "token_ids": pyarrow.list_(pyarrow.int32()),
        "finish": text,
        "answer": text,
        "outcome": text,
        "verdicts": pyarrow.list_(pyarrow.bool_()),
    }
    rows = [
        asdict(sample)
        | {
            "benchmark": name,
            "sample": sample.number,
            "tokens": len(sample.token_ids),
            "finish": "stop" if sample.terminated else "length",
            "verdicts": verdicts,
        }
        for name, samples in by_benchmark.items()
        for sample, verdicts in samples
    ]
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(columns.items()))
    pyarrow.parquet.write_table(table, partial)
    os.replace(partial, path)
    return path
