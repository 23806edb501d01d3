"""Supervised training of the embedded start policies.

Accuracy appears all at once on this task. A start policy is either stopped on a
measured accuracy in the middle of that rise, or taught past it by a teacher with
systematic errors; its logits can then be softened to a measured sampled accuracy.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from pure_rllib.arithmetic.model import model_config
from pure_rllib.arithmetic.task import ArithmeticTask, apply, text_fraction
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.arithmetic.training import (
    Optimizer,
    Progress,
    bucketed,
    measure_policy,
    own_random_state,
    padded,
)

_IGNORED = -100
_BUCKETS = 8
# Bisections, and the smallest factor that they reach for.
_SOFTENINGS = 6
_SOFTEST = 0.3


@dataclass(frozen=True, slots=True)
class FaultyFacts:
    """A teacher with systematic errors.

    Attributes:
        share: of the facts `a+b` that have one fixed wrong result, by hash; in [0, 1].
        probability: that such a fact is written wrong; in [0, 1].
        modulus: of the task.
    """

    share: float
    probability: float
    modulus: int

    def __call__(self, a: int, operator: str, b: int, rng: random.Random) -> int:
        """Computes an operation, wrongly where the fact is a bad one."""
        value = apply(a, operator, b, self.modulus)
        fact = f"{a}{operator}{b}"
        bad = text_fraction(fact, "bad fact") < self.share
        if not bad or rng.random() >= self.probability:
            return value
        shift = 1 + int(text_fraction(fact, "wrong result") * (self.modulus - 1))
        return (value + shift) % self.modulus


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a course of SFT.

    Attributes:
        max_updates: it ends after so many at the latest.
        target: it ends when sampled accuracy reaches this; None to use all updates.
        measure: what the target is about: `sampled`, `greedy` or `steps_right`.
        measure_from: first update of the phase at which it is measured.
        faulty_share: of facts that the teacher has wrong, see `FaultyFacts`.
        faulty_probability: how often it writes them wrong.
        task: what is taught; None for the recipe's.
    """

    max_updates: int
    target: float | None = None
    measure: str = "sampled"
    measure_from: int = 0
    faulty_share: float = 0.0
    faulty_probability: float = 0.0
    task: ArithmeticTask | None = None


@dataclass(frozen=True, slots=True)
class SFTRecipe:
    """How a start policy is made.

    Attributes:
        task: the family of problems.
        phases: run one after the other on the same optimiser.
        sampled: accuracy at temperature 1 to which the logits are softened in the end,
            or None to leave them: a policy that is right when greedy but unsure of
            itself has more to explore.
        seed: of weights and data.
        batch_size: worked solutions per update.
        matrix_lr: learning rate of Muon, or None for AdamW alone.
        lr: learning rate of AdamW.
        warmup: updates.
        measure_every: updates between two measurements.
        num_measured: held-out problems that a measurement is made on.
        averaging: decay of the running mean of the weights, in [0, 1). The mean is what
            is measured and kept: single weights jump about the target.
    """

    task: ArithmeticTask
    phases: tuple[Phase, ...]
    sampled: float | None = None
    seed: int = 0
    batch_size: int = 32
    matrix_lr: float | None = None
    lr: float = 3e-3
    warmup: int = 20
    measure_every: int = 5
    num_measured: int = 200
    averaging: float = 0.9


def train_policy(
    recipe: SFTRecipe, progress: Progress | None = None
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase, dict[str, Any]]:
    """Trains a start policy.

    Args:
        recipe: everything that decides the outcome.
        progress: called with a line of text and the fraction done.

    Returns:
        The model, its tokenizer and the measured figures, see `measure_policy`, with
        `updates` and `seconds`.

    Raises:
        RuntimeError: if a target was not reached.
    """
    start = time.monotonic()
    tokenizer = build_tokenizer(recipe.task)
    with own_random_state(recipe.seed):
        course = _Course(recipe, tokenizer, progress)
        for phase in recipe.phases:
            course.run(phase)
        policy = course.mean.module.eval()
        if recipe.sampled is not None:
            _soften(policy, tokenizer, recipe)
        figures: dict[str, Any] = measure_policy(
            policy,
            tokenizer,
            recipe.task,
            num_problems=recipe.num_measured,
            group_size=8,
            seed=1,
        )
    figures["updates"] = course.updates
    figures["seconds"] = time.monotonic() - start
    return policy, tokenizer, figures


class _Course:
    """A model under training, with the running mean of its weights."""

    def __init__(
        self,
        recipe: SFTRecipe,
        tokenizer: PreTrainedTokenizerBase,
        progress: Progress | None,
    ):
        self.recipe, self.tokenizer, self.progress = recipe, tokenizer, progress
        self.model = Qwen2ForCausalLM(model_config(tokenizer))
        average = get_ema_multi_avg_fn(recipe.averaging)
        self.mean = AveragedModel(self.model, multi_avg_fn=average)
        self.optimizer = Optimizer(
            self.model, recipe.matrix_lr, recipe.lr, recipe.warmup
        )

    @property
    def updates(self) -> int:
        """Updates so far, over all phases."""
        return self.optimizer.updates

    def run(self, phase: Phase) -> None:
        """Trains until the phase's target or the end of its updates."""
        recipe = self.recipe
        batches = _batches(recipe, phase, self.tokenizer, self.updates)
        figure = 0.0
        for update in range(1, phase.max_updates + 1):
            ids, targets = next(batches)
            logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())
            self.optimizer.update(loss)
            self.mean.update_parameters(self.model)
            if phase.target is None or update % recipe.measure_every:
                self._tell(phase, update)
                continue
            if update >= phase.measure_from:
                figure = self._measure(phase)
                if figure >= phase.target:
                    return
        if phase.target is not None:
            raise RuntimeError(
                f"`target` ({phase.target}) of `{phase.measure}` was not reached in "
                f"{phase.max_updates} updates; it is {figure:.2f}. Set another seed or "
                "more updates."
            )

    def _tell(self, phase: Phase, update: int) -> None:
        if self.progress and phase.target is None and update % 50 == 0:
            total = sum(phase.max_updates for phase in self.recipe.phases)
            self.progress(f"policy: update {self.updates}", self.updates / total)

    def _measure(self, phase: Phase) -> float:
        greedy = phase.measure == "greedy"
        figure = measure_policy(
            self.mean.module,
            self.tokenizer,
            self.recipe.task,
            num_problems=self.recipe.num_measured,
            group_size=0 if greedy else 2,
            greedy=greedy,
        )[phase.measure]
        if self.progress and phase.target:
            self.progress(
                f"policy: update {self.updates}, {phase.measure} {figure:.2f} of "
                f"{phase.target:.2f}",
                min(1.0, figure / phase.target),
            )
        return figure


def _soften(
    policy: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, recipe: SFTRecipe
) -> None:
    """Scales the logits, by way of the last norm, until sampled accuracy is met."""
    weight = policy.model.norm.weight
    original = weight.detach().clone()
    low, high = _SOFTEST, 1.0
    for _ in range(_SOFTENINGS):
        middle = (low + high) / 2
        with torch.no_grad():
            weight.copy_(original * middle)
        sampled = measure_policy(
            policy,
            tokenizer,
            recipe.task,
            num_problems=recipe.num_measured,
            greedy=False,
        )["sampled"]
        if sampled < (recipe.sampled or 0.0):
            low = middle
        else:
            high = middle


def _batches(
    recipe: SFTRecipe, phase: Phase, tokenizer: PreTrainedTokenizerBase, start: int
) -> Iterator[tuple[Any, Any]]:
    """Yields `[B, L]` ids and targets without end; prompts are not learned."""
    task, rng = phase.task or recipe.task, random.Random(f"sft/{recipe.seed}/{start}")
    faults = FaultyFacts(phase.faulty_share, phase.faulty_probability, task.modulus)
    index = start * recipe.batch_size
    while True:
        rows = []
        for _ in range(_BUCKETS * recipe.batch_size):
            prompt = task.problem(index, seed=recipe.seed).prompt
            index += 1
            steps = task.solution_steps(prompt, rng, compute=faults)
            prompt_ids = tokenizer(prompt)["input_ids"]
            ids = tokenizer("\n\n".join(steps))["input_ids"]
            rows.append((prompt_ids, [*ids, tokenizer.eos_token_id]))
        for batch in bucketed(
            rows, lambda row: len(row[0]) + len(row[1]), recipe.batch_size, rng
        ):
            ids = padded([a + b for a, b in batch], tokenizer.pad_token_id)
            targets = padded([[_IGNORED] * len(a) + b for a, b in batch], _IGNORED)
            yield ids, targets
