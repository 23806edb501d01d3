"""What SFT and PRM training share: threads, optimisers, batches, measured accuracy."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pure_rllib.arithmetic.checker import check_steps
from pure_rllib.arithmetic.task import STEP_SEPARATOR, ArithmeticTask
from pure_rllib.data.problems import Problem
from pure_rllib.generation.base import SamplingParams
from pure_rllib.generation.transformers_generator import TransformersGenerator

Item = TypeVar("Item")
Progress = Callable[[str, float], None]
_WEIGHT_DECAY = 0.0


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Seeds torch and computes on one thread inside; gives both back after.

    More threads only wait for each other in matrices this small, and change the last
    digits: one makes the models the same on every machine of a kind.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class Optimizer:
    """AdamW, or Muon on the inner matrices and AdamW on embeddings, norms and heads.

    Muon lets a PRM learn faster. Policies are taught with AdamW, as RL will go on.

    Args:
        model: whose parameters are trained.
        matrix_lr: of Muon, with its update scaled to AdamW's; None for AdamW alone.
        lr: of AdamW.
        warmup: updates over which both rates rise; >= 1.
    """

    def __init__(
        self, model: nn.Module, matrix_lr: float | None, lr: float, warmup: int
    ):
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            inner = matrix_lr is not None and parameter.ndim == 2 and ".layers." in name
            (matrices if inner else others).append(parameter)
        self.model, self.warmup, self.updates = model, warmup, 0
        adamw = torch.optim.AdamW(others, lr=lr, weight_decay=_WEIGHT_DECAY)
        self._parts: list[tuple[torch.optim.Optimizer, float]] = [(adamw, lr)]
        if matrix_lr is not None:
            muon = torch.optim.Muon(
                matrices, lr=matrix_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append((muon, matrix_lr))

    def update(self, loss: Tensor, rate: float = 1.0) -> None:
        """Takes one step down the loss, at `rate` times the warmed-up rates."""
        self.updates += 1
        rate *= min(1.0, self.updates / self.warmup)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, lr in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = lr * rate
            optimizer.step()
            optimizer.zero_grad()


def bucketed(
    items: Sequence[Item], length: Callable[[Item], int], size: int, rng: random.Random
) -> list[list[Item]]:
    """Cuts items into shuffled batches of like length."""
    ordered = sorted(items, key=length)
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    rng.shuffle(batches)
    return batches


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
    texts = [
        tokenizer.batch_decode(
            [response.token_ids for response in group], skip_special_tokens=True
        )
        for group in groups
    ]
    return texts


def steps_of(text: str) -> list[str]:
    """Splits a response's text into its steps; blank ones are not steps."""
    return [step for step in text.split(STEP_SEPARATOR) if step.strip()]


def is_correct(problem: Problem, text: str) -> bool:
    """Says whether a response ends with the boxed gold answer."""
    return text.rstrip().endswith(f"\\boxed{{{problem.answer}}}")


def measure_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: ArithmeticTask,
    *,
    num_problems: int = 200,
    group_size: int = 2,
    greedy: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """Measures a policy on held-out problems.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        task: the family of problems.
        num_problems: held-out problems.
        group_size: samples per problem at temperature 1; 0 leaves sampling out.
        greedy: False leaves the greedy responses out.
        seed: of the sampler.

    Returns:
        `greedy` and `sampled` accuracy, `steps_right`: share of sampled steps that the
        checker calls right, and `groups_without_answer`: share of problems without one
        correct response; all in [0, 1].
    """
    problems = task.held_out(num_problems, seed=10_000)
    prompts = [problem.prompt for problem in problems]
    options: dict[str, Any] = {"max_tokens": 24 * task.num_operations[1], "seed": seed}
    figures = {}
    if greedy:
        texts = sample_texts(model, tokenizer, prompts, temperature=0.0, **options)
        hits = map(is_correct, problems, (text for [text] in texts))
        figures["greedy"] = sum(hits) / num_problems
    if group_size:
        groups = sample_texts(
            model, tokenizer, prompts, group_size=group_size, **options
        )
        figures |= _sampled_figures(problems, groups, task.modulus)
    return figures


def _sampled_figures(
    problems: Sequence[Problem], groups: Sequence[Sequence[str]], modulus: int
) -> dict[str, float]:
    correct, labels = [], []
    for problem, texts in zip(problems, groups, strict=True):
        correct.append([is_correct(problem, text) for text in texts])
        for text in texts:
            check = check_steps(problem.prompt, steps_of(text), modulus=modulus)
            labels += check.labels.tolist()
    return {
        "sampled": sum(map(sum, correct)) / sum(map(len, correct)),
        "steps_right": sum(labels) / max(1, len(labels)),
        "groups_without_answer": sum(not any(row) for row in correct) / len(correct),
    }
