"""How good a PRM of chain arithmetic is, on held-out problems.

Never its step accuracy alone: a PRM that knows only where errors tend to stand has a
good one, and nothing to say about what a step claims.
"""

import random
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pure_rllib.arithmetic.checker import ERROR_KINDS, Kind
from pure_rllib.arithmetic.task import ArithmeticTask, is_correct, steps_of
from pure_rllib.arithmetic.traces import IGNORED, Trace, TraceMaker
from pure_rllib.generation.base import SamplingParams
from pure_rllib.generation.transformers_generator import TransformersGenerator

_BATCH_SIZE = 128
# Fewer errors of a kind say nothing about its AUC.
_MIN_ERRORS = 20


def area_under_curve(
    positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray
) -> float:
    """Computes the chance that a positive scores above a negative; ties count half.

    Returns:
        In [0, 1]; NaN if either is empty.
    """
    num, pairs = len(positive), len(positive) * len(negative)
    if not pairs:
        return float("nan")
    # Mann-Whitney's U: ranks among all, less those among the positives.
    ranks = rankdata(np.concatenate([positive, negative]))[:num]
    return float((ranks.sum() - num * (num + 1) / 2) / pairs)


class FirstErrorAccuracy(NamedTuple):
    """How well first errors are found, as ProcessBench (arXiv 2412.06559) counts it.

    Attributes:
        error: of responses with an error, the share whose first step with a score
            below the threshold is the first wrong one; 0.0 if there are none.
        correct: of responses without, the share in which no step has a score below it;
            0.0 if there are none.
    """

    error: float
    correct: float

    @property
    def f1(self) -> float:
        """The harmonic mean of both shares, in [0, 1]."""
        total = self.error + self.correct
        return 2 * self.error * self.correct / total if total else 0.0


def first_error_accuracy(
    scores: Sequence[np.ndarray], first_errors: Sequence[int], threshold: float = 0.0
) -> FirstErrorAccuracy:
    """Counts how often the first error is found.

    Args:
        scores: `[S]` per response, in [-1, 1].
        first_errors: index of the first wrong step per response; -1 if there is none.
        threshold: a step with a score below it is called wrong.
    """
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for given, first in zip(scores, first_errors, strict=True):
        hits[first < 0].append(_first(np.asarray(given) < threshold) == first)
    correct, error = (float(np.mean(h)) if h else 0.0 for h in hits.values())
    return FirstErrorAccuracy(error, correct)


def _first(where: np.ndarray) -> int:
    return int(where.argmax()) if where.any() else -1


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Pads rows on the right to `[B, L]` int64."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def sample_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    group_size: int = 1,
    temperature: float = 1.0,
    max_tokens: int = 96,
    seed: int = 0,
) -> list[list[str]]:
    """Samples responses as texts.

    Returns:
        For each prompt `group_size` texts, without special tokens.
    """
    was_training = model.training
    model.eval()
    generator = TransformersGenerator(
        model,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_ids=[tokenizer.eos_token_id],
    )
    groups = generator.generate(
        [tokenizer(prompt)["input_ids"] for prompt in prompts],
        group_size,
        SamplingParams(max_tokens, temperature),
        [seed * 1_000_003 + i for i in range(len(prompts))],
    )
    model.train(was_training)
    return [
        tokenizer.batch_decode(
            [response.token_ids for response in group], skip_special_tokens=True
        )
        for group in groups
    ]


@torch.no_grad()
def score_traces(prm: Any, traces: Sequence[Trace], pad: int) -> list[np.ndarray]:
    """Scores the steps of traces.

    Returns:
        `[S]` float64 in [-1, 1] per trace.
    """
    scores = []
    for i in range(0, len(traces), _BATCH_SIZE):
        batch = traces[i : i + _BATCH_SIZE]
        ids = padded([trace.ids for trace in batch], pad)
        # Right padding under a causal mask: no real token sees it.
        right = prm(input_ids=ids, use_cache=False).logits.double().softmax(-1)[..., 1]
        for row, trace in zip(right.numpy(), batch, strict=True):
            ends = [k for k, label in enumerate(trace.labels) if label != IGNORED]
            scores.append(2 * row[ends] - 1)
    return scores


def evaluate_prm(
    prms: Sequence[Any],
    policy: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: ArithmeticTask,
    *,
    num_problems: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures a PRM on held-out problems.

    Args:
        prms: token classifiers with two labels; of several the lowest score of each
            step counts.
        policy: whose samples it is measured on, beside generated traces.
        tokenizer: of both.
        task: the family of problems.
        num_problems: held-out problems, each with 4 samples and 8 traces.
        seed: of samples and traces.

    Returns:
        `auc`: per kind of error, the chance that a right step scores above an error of
        this kind (kinds with 20 errors or more); `auc_all`: the same for all errors;
        `first_error_f1` on generated traces and `first_error_f1_sampled` on samples;
        `auc_minimum`: the chance that the smallest score of a sample without a wrong
        step is above that of one with; `sampled`: the samples' accuracy. Right answers
        by luck count as wrong in `auc_minimum`: a PRM is to see through them.
    """
    problems = task.held_out(num_problems, seed=20_000)
    maker = TraceMaker(task, tokenizer.get_vocab())
    rng = random.Random(f"quality/{seed}")
    traces = [
        maker.trace(problem.prompt, maker.corrupt_steps(problem.prompt, rng, share))
        for problem in problems
        for share in (0.0, 0.0, 0.15, 0.15, 0.15, 0.45, 0.45, 0.45)
    ]
    groups = sample_texts(
        policy, tokenizer, [p.prompt for p in problems], group_size=4, seed=seed
    )
    samples, correct = [], []
    for problem, texts in zip(problems, groups, strict=True):
        for text in texts:
            if steps := steps_of(text):
                samples.append(maker.trace(problem.prompt, steps))
                correct.append(is_correct(problem, text))
    pad = tokenizer.pad_token_id
    made, sampled = _lowest(prms, traces, pad), _lowest(prms, samples, pad)
    right, wrong = _by_kind(traces, made)
    minima = np.array([scores.min() for scores in sampled], dtype=np.float64)
    sound = np.array([_first_error(trace) < 0 for trace in samples], dtype=bool)
    return {
        "auc": {
            kind: area_under_curve(right, wrong[kind])
            for kind in ERROR_KINDS
            if len(wrong[kind]) >= _MIN_ERRORS
        },
        "auc_all": area_under_curve(right, list(chain(*wrong.values()))),
        "first_error_f1": _first_error_f1(made, traces),
        "first_error_f1_sampled": _first_error_f1(sampled, samples),
        "auc_minimum": area_under_curve(minima[sound], minima[~sound]),
        "sampled": float(np.mean(correct)) if correct else 0.0,
    }


def _lowest(prms: Sequence[Any], traces: Sequence[Trace], pad: int) -> list[np.ndarray]:
    """Scores traces; of several PRMs the lowest score of each step counts."""
    each = (score_traces(prm, traces, pad) for prm in prms)
    return [np.minimum.reduce(scores) for scores in zip(*each, strict=True)]


def _first_error(trace: Trace) -> int:
    return _first(np.array([kind != "right" for kind in trace.kinds]))


def _first_error_f1(scores: Sequence[np.ndarray], traces: Sequence[Trace]) -> float:
    return first_error_accuracy(scores, [_first_error(trace) for trace in traces]).f1


def _by_kind(
    traces: Sequence[Trace], scores: Sequence[np.ndarray]
) -> tuple[list[float], dict[Kind, list[float]]]:
    """Sorts scores into those of right steps and those of each kind of error."""
    right: list[float] = []
    wrong: dict[Kind, list[float]] = {kind: [] for kind in ERROR_KINDS}
    for trace, numbers in zip(traces, scores, strict=True):
        for kind, number in zip(trace.kinds, numbers, strict=True):
            (right if kind == "right" else wrong[kind]).append(float(number))
    return right, wrong


def format_quality(figures: dict[str, Any]) -> str:
    """Prints the figures of `evaluate_prm` as a table."""
    rows = [(f"AUC {kind}", auc) for kind, auc in figures["auc"].items()]
    rows += [
        ("AUC all errors", figures["auc_all"]),
        ("first-error F1, traces", figures["first_error_f1"]),
        ("first-error F1, samples", figures["first_error_f1_sampled"]),
        ("AUC of the minimum", figures["auc_minimum"]),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value:.3f}" for name, value in rows)
