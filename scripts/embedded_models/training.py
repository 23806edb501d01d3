"""What SFT and PRM training share: shape, threads, optimisers, batches, accuracy."""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pure_rllib.arithmetic.checker import check_steps
from pure_rllib.arithmetic.prm_quality import padded, sample_texts
from pure_rllib.arithmetic.task import ArithmeticTask, is_correct, steps_of
from pure_rllib.arithmetic.traces import IGNORED
from pure_rllib.data.problems import Problem

Item = TypeVar("Item")


def model_config(
    tokenizer: PreTrainedTokenizerBase, *, num_layers: int = 2, width: int = 128
) -> Qwen2Config:
    """Makes the config of a policy or PRM: 4 heads on 1 key-value head.

    With two layers, width 128 and 22 tokens the causal LM has 0.36 million parameters.

    Args:
        tokenizer: names the vocabulary, the pad and the EOS token.
        num_layers: of the transformer.
        width: of its residual stream; a multiple of 8.
    """
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        use_cache=True,
        attention_dropout=0.0,
        num_labels=2,
    )


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
        adamw = torch.optim.AdamW(others, lr=lr, weight_decay=0.0)
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


def descend(optimizer: Optimizer, losses: Iterator[Tensor], updates: int) -> None:
    """Takes so many steps down the losses, and prints every hundredth."""
    for update, loss in enumerate(islice(losses, updates), 1):
        # Falling to nothing, so that single weights do not jump about in the end.
        optimizer.update(loss, 1.0 - update / updates)
        if update % 100 == 0:
            print(f"update {update}: loss {loss.item():.3f}", flush=True)


def teach(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterator[tuple[list[int], list[int]]],
    updates: int,
    batch_size: int,
) -> Qwen2ForCausalLM:
    """Teaches a policy of two layers by SFT.

    Args:
        tokenizer: of the policy.
        rows: endless ids, and the same with `IGNORED` where nothing is learned.
        updates: of the weights.
        batch_size: rows in each.
    """
    model = Qwen2ForCausalLM(model_config(tokenizer))

    def losses() -> Iterator[Tensor]:
        while True:
            batch = list(islice(rows, batch_size))
            ids = padded([ids for ids, _ in batch], tokenizer.pad_token_id)
            targets = padded([targets for _, targets in batch], IGNORED)
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            yield cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())

    optimizer = Optimizer(model, matrix_lr=4e-3, lr=3e-3, warmup=20)
    descend(optimizer, losses(), updates)
    return model.eval()


def make_folder(
    usage: str | None,
    make: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
) -> None:
    """Makes a model and its tokenizer in the folder that the command line names.

    Args:
        usage: what is said where it names none.
        make: makes both; its random state is the same on every machine.
    """
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(usage)
    with own_random_state(0):
        made = make()
    for part in made:
        part.save_pretrained(sys.argv[1])


def bucketed(
    items: Sequence[Item], length: Callable[[Item], int], size: int, rng: random.Random
) -> list[list[Item]]:
    """Cuts items into shuffled batches of like length."""
    ordered = sorted(items, key=length)
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    rng.shuffle(batches)
    return batches


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
        group_size: samples per problem at temperature 1.
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
    groups = sample_texts(model, tokenizer, prompts, group_size=group_size, **options)
    return figures | _sampled_figures(problems, groups, task.modulus)


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
