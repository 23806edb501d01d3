"""Scores benchmarks with a process reward model and reports its figures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json
from transformers import Qwen2ForCausalLM

from pure_rllib.arithmetic.prm_quality import evaluate_prm, format_quality
from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.data.prompts import PromptTemplate, make_template
from pure_rllib.models.loading import resolve_model
from pure_rllib.prm_training.benchmarks import BenchmarkItem
from pure_rllib.prm_training.quality import (
    prmbench_figures,
    processbench_figures,
    step_figures,
)
from pure_rllib.prm_training.solutions import LabelledSolution, scoring_requests
from pure_rllib.reporting.progress import ProgressBar
from pure_rllib.reporting.tables import format_table
from pure_rllib.rewards.base import StepScorer
from pure_rllib.rewards.prm.model import ProcessRewardModel
from pure_rllib.rewards.prm.rows import differing_tokens

_SCORED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Measured:
    """A PRM's figures and the scores they come from.

    Attributes:
        figures: by benchmark; fits JSON.
        predictions: one row per solution: `set`, `subset`, `id`, `scores`, and
            `first_error`, `errors` or `labels`.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)


def measure(
    scorer: StepScorer,
    tokenizer: Any,
    *,
    template: PromptTemplate,
    processbench: Sequence[BenchmarkItem] = (),
    prmbench: Sequence[BenchmarkItem] = (),
    steps: Sequence[LabelledSolution] = (),
    threshold_subset: str | None = None,
    threshold: float | None = None,
) -> Measured:
    """Scores all solutions and computes the figures of each part that is not empty.

    Args:
        scorer: the PRM.
        tokenizer: of policy and PRM.
        template: makes the policy's prompt of a problem.
        processbench: solutions with their first error.
        prmbench: solutions with all errors.
        steps: solutions with labels.
        threshold_subset: see `processbench_figures`.
        threshold: see `processbench_figures`; PRMBench uses it too, 0.0 if None.
    """
    measured = Measured()

    def score(
        name: str, solutions: Sequence[Any], truths: Sequence[Mapping[str, Any]]
    ) -> list[np.ndarray]:
        requests = scoring_requests(solutions, tokenizer, template)
        scores: list[np.ndarray] = []
        with ProgressBar(len(requests), unit=f"solutions of {name}") as progress:
            for start in range(0, len(requests), _SCORED_AT_ONCE):
                scores += scorer.score(requests[start : start + _SCORED_AT_ONCE])
                progress.show(len(scores))
        for n, (given, truth) in enumerate(zip(scores, truths, strict=True)):
            row = {"set": name, "subset": "", "id": str(n)}
            if isinstance(item := solutions[n], BenchmarkItem):
                row |= {"subset": item.subset, "id": item.id}
            measured.predictions.append(row | {"scores": given.tolist(), **truth})
        return scores

    if processbench:
        truths = [{"first_error": item.first_error} for item in processbench]
        measured.figures["processbench"] = processbench_figures(
            processbench,
            score("processbench", processbench, truths),
            threshold_subset=threshold_subset,
            threshold=threshold,
        )
    if prmbench:
        scores = score("prmbench", prmbench, [{"errors": i.errors} for i in prmbench])
        found = prmbench_figures(prmbench, scores, threshold or 0.0)
        measured.figures["prmbench"] = found
    if steps:
        labels = [solution.labels for solution in steps]
        scores = score("steps", steps, [{"labels": row} for row in labels])
        measured.figures["steps"] = step_figures(scores, labels)
    return measured


def write(measured: Measured, folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes `prm_eval.json`, `predictions.jsonl` and the figure `prm_eval.png`."""
    from pure_rllib.prm_training.quality_figure import draw_quality

    folder.mkdir(parents=True, exist_ok=True)
    report = {"settings": dict(settings), **measured.figures}
    _write_json(folder / "prm_eval.json", report)
    lines = [json.dumps(row) + "\n" for row in measured.predictions]
    (folder / "predictions.jsonl").write_text("".join(lines))
    draw_quality(measured.figures, folder / "prm_eval.png")


def _write_json(path: Path, figures: Any) -> None:
    """Writes null, which JSON has, in place of NaN."""
    path.write_bytes(to_json(figures, indent=1, inf_nan_mode="null") + b"\n")


def summary(figures: Mapping[str, Any]) -> str:
    """Lays out what `measure` computed."""
    tables = []
    if "processbench" in figures:
        bench = figures["processbench"]
        rows = [
            [name, f["num_error"], f["num_correct"]]
            + [f"{f[key]:.3f}" for key in ("error_accuracy", "correct_accuracy", "f1")]
            + [f"{f['threshold']:.3f}", f["threshold_from"] or "fixed"]
            for name, f in bench["subsets"].items()
        ]
        headers = ["ProcessBench", "errors", "correct", "error acc.", "correct acc."]
        headers += ["F1", "threshold", "chosen on"]
        tables.append(format_table(headers, rows))
        tables[-1] += f"\naverage F1  {bench['average_f1']:.3f}"
    if "prmbench" in figures:
        bench = figures["prmbench"]
        parts = [*bench["subsets"].items(), ("overall", bench["overall"])]
        keys = ("prm_score", "f1", "negative_f1", "accuracy")
        rows = [
            [name, f["num_steps"], *(f"{f[key]:.3f}" for key in keys)]
            for name, f in parts
        ]
        headers = ["PRMBench", "steps", "PRM-Score", "F1", "negative F1", "accuracy"]
        tables.append(format_table(headers, rows))
    if "steps" in figures:
        tables.append(_steps_summary(figures["steps"]))
    if "arithmetic" in figures:
        tables.append("chain arithmetic\n" + format_quality(figures["arithmetic"]))
    return "\n\n".join(tables)


def _steps_summary(figures: Mapping[str, Any]) -> str:
    return (
        f"steps: {figures['num_steps']}, right {figures['share_right']:.3f} | accuracy "
        f"{figures['accuracy']:.3f} | balanced {figures['balanced_accuracy']:.3f} | "
        f"AUC {figures['auc']:.3f} | first-error F1 {figures['first_error_f1']:.3f} | "
        f"AUC of the minimum {figures['auc_minimum']:.3f} | "
        f"Brier {figures['brier']:.3f} | calibration error "
        f"{figures['calibration']['error']:.3f}"
    )


def measure_on_arithmetic(prms: Sequence[ProcessRewardModel]) -> dict[str, Any]:
    """Measures PRMs of chain arithmetic on held-out problems, by kind of error.

    See `pure_rllib.arithmetic.prm_quality.evaluate_prm`, which asks the embedded policy
    for samples.

    Args:
        prms: of several the lowest score of each step counts.

    Raises:
        ValueError: a PRM does not read the task's tokens.
    """
    tokenizer = build_tokenizer(TASK_Z)
    for prm in prms:
        difference = differing_tokens(tokenizer, prm.tokenizer)
        if difference or prm.format.name != "newline":
            raise ValueError(
                "`--arithmetic` needs a PRM with the tokenizer of chain arithmetic and "
                f"`prm_format` newline; it has {prm.format.name}, {difference}. Leave "
                "it out and give labelled steps."
            )
    folder = resolve_model("embedded:arithmetic-policy")
    policy = Qwen2ForCausalLM.from_pretrained(folder).eval()
    return evaluate_prm([prm.model for prm in prms], policy, tokenizer, TASK_Z)


def measure_held_out(
    folder: Path, solutions: Sequence[LabelledSolution], template: str
) -> str:
    """Measures a PRM on the problems that its training left out.

    Writes `held_out.json` into its folder.

    Returns:
        A line of text.
    """
    prm = ProcessRewardModel.from_pretrained(str(folder))
    made = make_template(template)
    measured = measure(prm, prm.tokenizer, template=made, steps=solutions)
    _write_json(folder / "held_out.json", measured.figures["steps"])
    return "held-out " + _steps_summary(measured.figures["steps"])
