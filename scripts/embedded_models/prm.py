"""Training of the embedded neural PRM.

B traces, L tokens, S steps. The PRM is a token classifier of the policy's shape with
one more layer. A step's score, p(right) - p(wrong), is read at a newline after it.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from pure_rllib.arithmetic.prm_quality import evaluate_prm, padded, sample_texts
from pure_rllib.arithmetic.task import STEP_SEPARATOR, ArithmeticTask, steps_of
from pure_rllib.arithmetic.tokenizer import PRM_SEPARATOR
from pure_rllib.arithmetic.traces import IGNORED, TraceMaker, generated_steps
from scripts.embedded_models.teacher import teacher_ids
from scripts.embedded_models.training import (
    Optimizer,
    bucketed,
    model_config,
    own_random_state,
)

_BUCKETS = 16
# Ids, labels and the teacher's targets of one trace; L of each.
Example = tuple[list[int], list[int], list[int]]


@dataclass(frozen=True, slots=True)
class PRMRecipe:
    """How a PRM is made.

    Attributes:
        task: the family of problems.
        seed: of the fresh layer and the data.
        updates: how many; the rate falls to 0 over the last `decay` of them.
        batch_size: traces per update.
        matrix_lr: learning rate of Muon.
        lr: learning rate of AdamW.
        warmup: updates.
        decay: share of the updates over which the rates fall; in (0, 1].
        teacher_weight: of the teacher's loss beside that of the labels.
        corrupt_share: see `generated_steps`, as the next two.
        repeated_share: of the generated traces.
        clean_share: of the generated traces.
        sampled_share: of all traces that the policy sampled.
        num_sampled_problems: problems that the policy was sampled on.
        num_layers: of the PRM; the policy's come first, the others are fresh.
        num_measured: held-out problems that its quality is measured on.
    """

    task: ArithmeticTask
    seed: int = 0
    updates: int = 1400
    batch_size: int = 32
    matrix_lr: float = 1.5e-3
    lr: float = 1.5e-3
    warmup: int = 20
    decay: float = 0.6
    teacher_weight: float = 0.5
    corrupt_share: float = 0.45
    repeated_share: float = 0.3
    clean_share: float = 0.3
    sampled_share: float = 0.4
    num_sampled_problems: int = 1500
    num_layers: int = 3
    num_measured: int = 200


class TaughtPRM(nn.Module):
    """A PRM with a second head that says what a right step would have said.

    The second head sits where the policy's own head sat. Without it the look-up of
    running value and operands dies on traces that are not the policy's, and the PRM
    learns what steps look like instead of what they claim. It is thrown away after
    training.

    Args:
        policy: the language model whose layers the PRM starts from.
        tokenizer: of both.
        num_layers: of the PRM; more than the policy has.
    """

    def __init__(
        self,
        policy: Qwen2ForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        num_layers: int,
    ):
        super().__init__()
        config = model_config(tokenizer, num_layers=num_layers)
        config.classifier_dropout = 0.0
        self.classifier = Qwen2ForTokenClassification(config)
        self.depth = policy.config.num_hidden_layers
        weights = dict(policy.model.state_dict())
        self.classifier.model.load_state_dict(weights, strict=False)
        embedding = self.classifier.model.embed_tokens.weight
        vocabulary = tokenizer.get_vocab()
        with torch.no_grad():
            # The policy has never seen the newline: it stands where a blank line stood.
            embedding[vocabulary[PRM_SEPARATOR]] = embedding[vocabulary[STEP_SEPARATOR]]
        self.teacher_norm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.teacher_norm.load_state_dict(policy.model.norm.state_dict())

    def forward(
        self, ids: Tensor, labels: Tensor, teacher: Tensor
    ) -> tuple[Tensor, ...]:
        """Computes both losses.

        Args:
            ids: `[B, L]` token ids.
            labels: `[B, L]` 1, 0 or `IGNORED`.
            teacher: `[B, L]` wanted next ids or `IGNORED`.

        Returns:
            The label loss and the teacher loss, each a mean over its places.
        """
        out = self.classifier.model(ids, output_hidden_states=True, use_cache=False)
        places = labels != IGNORED
        logits = self.classifier.score(out.last_hidden_state[places])
        label_loss = cross_entropy(logits, labels[places])
        places = teacher != IGNORED
        hidden = self.teacher_norm(out.hidden_states[self.depth][places])
        embedding = self.classifier.model.embed_tokens.weight
        teacher_loss = cross_entropy(linear(hidden, embedding), teacher[places])
        return label_loss, teacher_loss


def train_prm(
    recipe: PRMRecipe,
    policy: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Qwen2ForTokenClassification, dict[str, Any]]:
    """Trains a PRM on labelled traces.

    Args:
        recipe: everything that decides the outcome, but for the policy.
        policy: what the PRM starts from, and whose samples are part of its traces.
        tokenizer: of both.

    Returns:
        The PRM and its quality on held-out problems, see `evaluate_prm`, with
        `updates` and `seconds`.
    """
    start = time.monotonic()
    with own_random_state(recipe.seed):
        maker = TraceMaker(recipe.task, tokenizer.get_vocab())
        sampled = _sampled_examples(recipe, policy, tokenizer, maker)
        taught = TaughtPRM(policy, tokenizer, recipe.num_layers).train()
        optimizer = Optimizer(taught, recipe.matrix_lr, recipe.lr, recipe.warmup)
        batches = _batches(recipe, maker, sampled, tokenizer.pad_token_id)
        means = [0.0, 0.0]
        for update in range(1, recipe.updates + 1):
            losses = taught(*next(batches))
            optimizer.update(
                losses[0] + recipe.teacher_weight * losses[1],
                min(1.0, (1 - (update - 1) / recipe.updates) / recipe.decay),
            )
            means = [
                mean + (loss.item() - mean) / 20
                for mean, loss in zip(means, losses, strict=True)
            ]
            if update % 50 == 0:
                text = f"PRM: update {update}, label loss {means[0]:.3f}"
                print(f"{text}, teacher loss {means[1]:.3f}", flush=True)
        prm = taught.classifier.eval()
        figures = evaluate_prm(
            [prm], policy, tokenizer, recipe.task, num_problems=recipe.num_measured
        )
    seconds = time.monotonic() - start
    return prm, {**figures, "updates": recipe.updates, "seconds": seconds}


def _example(maker: TraceMaker, prompt: str, steps: Sequence[str]) -> Example:
    trace = maker.trace(prompt, steps)
    return trace.ids, trace.labels, teacher_ids(maker, prompt, steps)


def _sampled_examples(
    recipe: PRMRecipe,
    policy: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    maker: TraceMaker,
) -> list[Example]:
    """Samples the policy, half of it hotter than it will be: more kinds of errors."""
    examples = []
    for half, temperature in enumerate((1.0, 1.4)):
        first = half * recipe.num_sampled_problems
        prompts = [
            recipe.task.problem(first + i, seed=recipe.seed + 1).prompt
            for i in range(recipe.num_sampled_problems)
        ]
        groups = sample_texts(
            policy,
            tokenizer,
            prompts,
            group_size=2,
            temperature=temperature,
            seed=recipe.seed + 1 + half,
        )
        for prompt, texts in zip(prompts, groups, strict=True):
            lists = [steps_of(text) for text in texts]
            examples += [_example(maker, prompt, steps) for steps in lists if steps]
    return examples


def _batches(
    recipe: PRMRecipe, maker: TraceMaker, sampled: list[Example], pad: int
) -> Iterator[tuple[Tensor, ...]]:
    """Yields `[B, L]` ids, labels and teacher's targets without end."""
    rng = random.Random(f"prm/{recipe.seed}")
    generated = generated_steps(
        maker,
        rng,
        seed=recipe.seed + 2,
        corrupt_share=recipe.corrupt_share,
        repeated_share=recipe.repeated_share,
        clean_share=recipe.clean_share,
    )
    while True:
        examples = []
        for _ in range(_BUCKETS * recipe.batch_size):
            if rng.random() < recipe.sampled_share:
                examples.append(rng.choice(sampled))
            else:
                examples.append(_example(maker, *next(generated)))
        for batch in bucketed(
            examples, lambda example: len(example[0]), recipe.batch_size, rng
        ):
            ids, labels, teacher = zip(*batch, strict=True)
            yield padded(ids, pad), padded(labels, IGNORED), padded(teacher, IGNORED)
