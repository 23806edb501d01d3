"""What an evaluation leaves: figures, tables, a page of its responses."""

import csv
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pure_rllib.credit.text_metrics import reflection, repetition
from pure_rllib.evaluation.figure import pass_at_k_figure
from pure_rllib.evaluation.judges import judge_name
from pure_rllib.evaluation.measure import (
    Figures,
    ProblemResult,
    average,
    measure,
    warnings_of,
)
from pure_rllib.evaluation.plan import Asked, Plan
from pure_rllib.evaluation.samples import (
    BenchmarkFiles,
    Sample,
    place,
    write_parquet,
)
from pure_rllib.reporting.records import ResponseRecord
from pure_rllib.reporting.rollouts import write_rollouts_page
from pure_rllib.reporting.tables import format_table
from pure_rllib.whole_folder import write_text

REPORT_FILE = "evaluation.json"
PROBLEMS_FILE = "problems.csv"
_GREEDY, _SAMPLED = "greedy [95%]", "avg@n [95%]"
_PAGE_PROBLEMS = 100
_PAGE_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation's figures.

    Attributes:
        folder: of its files.
        figures: what evaluation.json holds.
    """

    folder: Path
    figures: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Figures]:
        """By the benchmark's name; see `measure.measure`."""
        found: dict[str, Figures] = self.figures["metrics"]
        return found

    @property
    def warnings(self) -> list[str]:
        """What must be known before the figures are believed."""
        return list(self.figures["warnings"])

    def table(self) -> str:
        """Lays the figures out for a console."""
        rows = [_row(name, figures) for name, figures in self.metrics.items()]
        headers = list(rows[0])
        if averaged := self.figures["average"]:
            rows.append(
                {
                    "benchmark": "average",
                    _GREEDY: _mean(averaged.get("greedy"), "accuracy"),
                    _SAMPLED: _mean(averaged.get("sampled"), "avg"),
                }
            )
        return format_table(headers, [[row.get(h) for h in headers] for row in rows])


def read_report(folder: str | Path) -> Report:
    """Reads what an evaluation left.

    Raises:
        FileNotFoundError: there is no finished evaluation.
    """
    path = Path(folder) / REPORT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"`{folder}` must be the folder of a finished evaluation, and has no "
            f"{REPORT_FILE}. Finish it with `pure-rllib eval --resume {folder}`."
        )
    return Report(Path(folder), json.loads(path.read_text(encoding="utf-8")))


def write_report(
    plan: Plan,
    folder: Path,
    files: Sequence[BenchmarkFiles],
    *,
    engines: Sequence[Mapping[str, Any]],
) -> Report:
    """Computes the figures and writes all files but the samples' own.

    Args:
        plan: what was asked.
        folder: of the evaluation.
        files: of each benchmark; whole.
        engines: facts of those that sampled.
    """
    judge = None if plan.judge is None else judge_name(plan.judge)
    names = [asked.benchmark.name for asked in plan.asked]
    results = {
        asked.benchmark.name: results_of(asked, one)
        for asked, one in zip(plan.asked, files, strict=True)
    }
    metrics = {
        name: measure(results[name], judge=judge, seed=plan.sampling.seed)
        for name in names
    }
    warnings = list(plan.warnings)
    for name in names:
        warnings += warnings_of(name, metrics[name])
    figures: dict[str, Any] = {
        "metrics": metrics,
        "average": average(metrics) if len(metrics) > 1 else {},
        "warnings": warnings,
        "odd_golds": plan.odd_golds,
        "engines": list(engines),
        "settings": plan.record,
    }
    text = json.dumps(without_nan(figures), indent=1) + "\n"
    write_text(folder / REPORT_FILE, text)
    write_text(folder / PROBLEMS_FILE, _problems_csv(results, plan.judge is not None))
    write_parquet(
        {
            name: [
                (s, one.verdicts[s.problem].reasoning.get(place(s)))
                for s in one.samples.values()
            ]
            for name, one in zip(names, files, strict=True)
        },
        folder / "samples.parquet",
    )
    report = Report(folder, json.loads(text))
    pass_at_k_figure(
        {Path(plan.policy.model).name: [report.figures]}, folder / "pass_at_k.png"
    )
    _write_page(plan, results, report)
    return report


def results_of(asked: Asked, files: BenchmarkFiles) -> list[ProblemResult]:
    """Gathers the samples of each problem that has a gold answer."""
    return [
        ProblemResult(
            problem,
            [files.samples[key] for key in asked.greedy_keys(i)],
            [files.samples[key] for key in asked.sampled_keys(i)],
            files.verdicts[i],
        )
        for i, problem in enumerate(asked.benchmark.problems)
        if problem.answer is not None
    ]


def without_nan(data: Any) -> Any:
    """JSON has no word for NaN: null."""
    if isinstance(data, Mapping):
        return {str(key): without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and math.isnan(data) else data


def _problems_csv(
    results: Mapping[str, Sequence[ProblemResult]], is_judged: bool
) -> str:
    """One line per problem: n, c and, by the majority of verdicts, d."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["benchmark", "problem_id", "greedy", "n", "c", "d", "prompt"])
    for name, of_benchmark in results.items():
        for r in of_benchmark:
            writer.writerow(
                [
                    name,
                    r.problem.problem_id,
                    int(r.greedy[0].correct) if r.greedy else "",
                    len(r.sampled),
                    r.num_correct,
                    r.num_both("majority") if is_judged else "",
                    r.problem.prompt,
                ]
            )
    return text.getvalue()


def _row(name: str, figures: Figures) -> dict[str, Any]:
    """A benchmark's line of the table, by column; None where nothing was asked."""
    greedy, sampled = figures.get("greedy"), figures.get("sampled")
    texts = sampled or greedy or {}
    n = str(sampled["num_samples"]) if sampled else ""
    row = {
        "benchmark": name,
        "problems": figures["num_problems"],
        _GREEDY: _percent(greedy, "accuracy") if greedy else None,
        _SAMPLED: f"{_percent(sampled, 'avg')} n={n}" if sampled else None,
        "pass@n": _percent(sampled["pass_at_k"][n]) if sampled else None,
        "maj@n": _percent(sampled["maj_at_k"][n]) if sampled else None,
        "no answer": f"{100 * texts['no_answer_share']:.1f}%",
        "truncated": f"{100 * texts['truncated_share']:.1f}%",
        "tokens": f"{texts['mean_tokens']:.0f}",
    }
    if "cot" in figures:
        curve = figures["cot"]["cot_pass_at_k"]["majority"]
        row[f"cot_pass@n[{figures['cot']['judge']}]"] = _percent(
            list(curve.values())[-1]
        )
    return row


def _percent(row: Mapping[str, float], key: str = "mean") -> str:
    value, low, high = (100 * row[name] for name in (key, "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _mean(averaged: Mapping[str, float | None] | None, key: str) -> str | None:
    if averaged is None or (mean := averaged[key]) is None:
        return None
    # Unknown where a benchmark has one problem only.
    se = averaged["se"]
    return f"{100 * mean:.1f}" + ("" if se is None else f" (SE {100 * se:.1f})")


def _write_page(
    plan: Plan, results: Mapping[str, Sequence[ProblemResult]], report: Report
) -> None:
    """The rollouts page: hard problems first, with some responses of each kind."""
    problems = [
        (asked.benchmark.name, result, for_the_page(result))
        for asked in plan.asked
        for result in results[asked.benchmark.name]
    ]
    problems.sort(key=lambda p: sum(s.correct for s in p[2]) / len(p[2]))
    groups = [
        [
            # Those that are not shown need no texts of their tokens.
            _record(
                plan, name, result, s, shown=i < _PAGE_PROBLEMS and j < _PAGE_SAMPLES
            )
            for j, s in enumerate(samples)
        ]
        for i, (name, result, samples) in enumerate(problems)
    ]
    meta = {}
    for name, figures in report.metrics.items():
        _, *cells = [
            f"{key} {cell}" for key, cell in _row(name, figures).items() if cell
        ]
        meta[name] = ", ".join(cells)
    if report.warnings:
        meta["warnings"] = "; ".join(report.warnings)
    write_rollouts_page(
        groups,
        report.folder / "report.html",
        title=f"Evaluation of {plan.policy.model}",
        meta=meta,
        max_groups=_PAGE_PROBLEMS,
        max_responses=_PAGE_SAMPLES,
    )


def for_the_page(result: ProblemResult) -> list[Sample]:
    """All responses; the first few are some of each kind, wrong and truncated first."""

    def kind(sample: Sample) -> tuple[bool, bool, bool]:
        reasoning = result.reasoning_of(sample)
        return sample.correct, sample.terminated, reasoning == "right"

    samples = sorted([*result.greedy[:1], *result.sampled], key=kind)
    kinds = [list(alike) for _, alike in itertools.groupby(samples, kind)]
    dealt = [s for some in itertools.zip_longest(*kinds) for s in some if s is not None]
    return sorted(dealt[:_PAGE_SAMPLES], key=kind) + dealt[_PAGE_SAMPLES:]


def _record(
    plan: Plan, benchmark: str, result: ProblemResult, sample: Sample, *, shown: bool
) -> ResponseRecord:
    ids, name = list(sample.token_ids), result.problem.problem_id
    metadata: dict[str, Any] = {
        "problem": f"{benchmark} {name}",
        "decoding": f"{sample.decoding} {sample.number}",
    }
    if reasoning := result.reasoning_of(sample):
        metadata["reasoning"] = reasoning
    return ResponseRecord(
        group_id=f"{benchmark}/{name}",
        prompt=result.problem.prompt,
        answer=result.problem.answer,
        response_text=sample.text,
        response_tokens=(
            plan.tokenizer.batch_decode([[i] for i in ids]) if shown else None
        ),
        token_ids=ids,
        step_spans=plan.splitter.step_spans(np.array(ids, np.int64)),
        step_rewards=result.verdicts.step_scores.get(place(sample)),
        outcome=sample.outcome,
        extracted_answer=sample.answer,
        terminated=sample.terminated,
        repetition=repetition(sample.text),
        reflection=reflection(sample.text),
        metadata=metadata,
    )
