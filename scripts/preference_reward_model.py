"""Makes a small reward model from preferences, for `arithmetic_rlhf`.

    python -m scripts.preference_reward_model FOLDER

As in RLHF: the start policy writes several responses to each problem, somebody says of
two which is better, and a model with a head of one number learns to rate the better one
higher (Bradley-Terry: -log sigmoid of the difference). Here a simulated annotator
prefers a right answer to a wrong one, has no opinion on the other pairs, and errs about
one pair in twenty. The model begins as a copy of the embedded PRM, without its head: in
this size none learns from single preferences what a sum is. The folder gets a
`Qwen2ForSequenceClassification` with its tokenizer.
"""

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pure_rllib.arithmetic.prm_quality import padded, sample_texts
from pure_rllib.arithmetic.task import TASK_Z, ArithmeticProblems, is_correct
from pure_rllib.models.loading import load_policy, resolve_model
from scripts.embedded_models.training import Optimizer, descend, make_folder

POLICY, START = "embedded:arithmetic-policy", "embedded:arithmetic-prm"
NUM_PROBLEMS, GROUP_SIZE, NUM_HELD_OUT = 12_000, 6, 600
WRONG_PREFERENCES = 0.05
UPDATES, BATCH_SIZE = 450, 64

Pair = tuple[list[int], list[int]]
"""Ids of prompt and better response, and of prompt and worse response."""


def make_pairs(
    tokenizer: PreTrainedTokenizerBase, rng: random.Random
) -> list[list[Pair]]:
    """Samples responses and has them compared two by two: each problem's pairs."""
    policy, source = load_policy(POLICY), ArithmeticProblems(TASK_Z, NUM_PROBLEMS, 7)
    problems = [source[i] for i in range(NUM_PROBLEMS)]
    prompts = [problem.prompt for problem in problems]
    groups = sample_texts(policy, tokenizer, prompts, group_size=GROUP_SIZE)
    found = []
    for problem, texts in zip(problems, groups, strict=True):
        pairs = []
        for two in zip(texts[::2], texts[1::2], strict=True):
            better, worse = sorted(two, key=lambda t: not is_correct(problem, t))
            if is_correct(problem, better) == is_correct(problem, worse):
                continue
            if rng.random() < WRONG_PREFERENCES:
                better, worse = worse, better
            rows = [tokenizer(problem.prompt + t)["input_ids"] for t in (better, worse)]
            pairs.append((rows[0], rows[1]))
        found.append(pairs)
    return found


def margins(model: torch.nn.Module, pairs: Sequence[Pair], pad: int) -> Tensor:
    """`[B]`: by how much each better response is rated higher."""
    ids = padded([row for pair in pairs for row in pair], pad)
    scores = model(input_ids=ids, attention_mask=(ids != pad).long()).logits[:, 0]
    return scores[0::2] - scores[1::2]


def make() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Makes the reward model and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(POLICY))
    rng, pad = random.Random("preferences"), tokenizer.pad_token_id
    by_problem = make_pairs(tokenizer, rng)
    held_out = [pair for pairs in by_problem[:NUM_HELD_OUT] for pair in pairs]
    train = [pair for pairs in by_problem[NUM_HELD_OUT:] for pair in pairs]
    print(f"{len(train)} pairs, {len(held_out)} held out", flush=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_model(START), num_labels=1, ignore_mismatched_sizes=True
    )

    def losses() -> Iterator[Tensor]:
        while True:
            pairs = rng.sample(train, BATCH_SIZE)
            yield -logsigmoid(margins(model, pairs, pad)).mean()

    optimizer = Optimizer(model, matrix_lr=2e-3, lr=1e-3, warmup=20)
    descend(optimizer, losses(), UPDATES)
    with torch.no_grad():
        right = (margins(model, held_out, pad) > 0).float().mean()
    print(f"{right:.3f} of the held-out pairs rated right", flush=True)
    return model.eval(), tokenizer


if __name__ == "__main__":
    make_folder(__doc__, make)
