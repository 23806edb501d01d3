"""Supervised training of the embedded start policies.

Accuracy appears all at once on this task. A start policy is taught past that rise by a
teacher with systematic errors; its logits can then be softened to a measured sampled
accuracy.
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

from pure_rllib.arithmetic.prm_quality import padded
from pure_rllib.arithmetic.task import (
    STEP_SEPARATOR,
    ArithmeticTask,
    apply,
    text_fraction,
)
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.arithmetic.traces import IGNORED
from scripts.embedded_models.training import (
    Optimizer,
    bucketed,
    measure_policy,
    model_config,
    own_random_state,
)

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
        updates: how many.
        faulty_share: of facts that the teacher has wrong, see `FaultyFacts`.
        faulty_probability: how often it writes them wrong.
        task: what is taught; None for the recipe's.
    """

    updates: int
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
        num_measured: held-out problems that a measurement is made on.
        averaging: decay of the running mean of the weights, in [0, 1). The mean is what
            is kept: single weights jump about.
        width: of the model.
    """

    task: ArithmeticTask
    phases: tuple[Phase, ...]
    sampled: float | None = None
    seed: int = 0
    batch_size: int = 32
    matrix_lr: float | None = None
    lr: float = 3e-3
    warmup: int = 20
    num_measured: int = 200
    averaging: float = 0.9
    width: int = 128


def train_policy(
    recipe: SFTRecipe,
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase, dict[str, Any]]:
    """Trains a start policy.

    Args:
        recipe: everything that decides the outcome.

    Returns:
        The model, its tokenizer and the measured figures, see `measure_policy`, with
        `updates` and `seconds`.
    """
    start = time.monotonic()
    tokenizer = build_tokenizer(recipe.task)
    with own_random_state(recipe.seed):
        policy = _taught(recipe, tokenizer)
        if recipe.sampled is not None:
            _soften(policy, tokenizer, recipe, recipe.sampled)
        figures: dict[str, Any] = measure_policy(
            policy,
            tokenizer,
            recipe.task,
            num_problems=recipe.num_measured,
            group_size=8,
            seed=1,
        )
    figures["updates"] = sum(phase.updates for phase in recipe.phases)
    figures["seconds"] = time.monotonic() - start
    return policy, tokenizer, figures


def _taught(recipe: SFTRecipe, tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """Runs all phases; returns the running mean of the weights."""
    model = Qwen2ForCausalLM(model_config(tokenizer, width=recipe.width))
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging))
    optimizer = Optimizer(model, recipe.matrix_lr, recipe.lr, recipe.warmup)
    for phase in recipe.phases:
        batches = _batches(recipe, phase, tokenizer, optimizer.updates)
        for _ in range(phase.updates):
            ids, targets = next(batches)
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())
            optimizer.update(loss)
            mean.update_parameters(model)
            if optimizer.updates % 50 == 0:
                print(f"policy: update {optimizer.updates}", flush=True)
    return mean.module.eval()


def _soften(
    policy: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    recipe: SFTRecipe,
    target: float,
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
        if sampled < target:
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
            ids = tokenizer(STEP_SEPARATOR.join(steps))["input_ids"]
            rows.append((prompt_ids, [*ids, tokenizer.eos_token_id]))
        for batch in bucketed(
            rows, lambda row: len(row[0]) + len(row[1]), recipe.batch_size, rng
        ):
            ids = padded([a + b for a, b in batch], tokenizer.pad_token_id)
            targets = padded([[IGNORED] * len(a) + b for a, b in batch], IGNORED)
            yield ids, targets
