"""Makes a start policy for labels: small, and half taught in both formats.

    python -m scripts.label_policy FOLDER

The folder gets the weights and the tokenizer that `labels_arithmetic` trains. SFT shows
both procedural tasks of `pure_rllib/Labels-v0`, with and without thinking, by a teacher
that draws the label it writes at random in a share of the responses, so that RL has
something to sharpen. What is thought is right: the signs one by one, or the steps of
the calculation.
"""

import random
from collections.abc import Iterator

from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pure_rllib.arithmetic.task import (
    STEP_SEPARATOR,
    TASK_Z,
    Chain,
)
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.arithmetic.traces import IGNORED
from pure_rllib.data.problems import Problem
from pure_rllib.envs.labels import NO_THINKING, PROCEDURAL, THINKING, LabelEnv
from scripts.embedded_models.training import make_folder, teach

UPDATES, BATCH_SIZE = 1200, 32
# How often the teacher writes a label out of a hat.
RANDOM_LABELS = 0.5


def label_tokenizer() -> PreTrainedTokenizerBase:
    """Makes the tokenizer: that of arithmetic, with a token for each fixed phrase.

    Phrases are words alone: what has a sign in it is a marker, and markers in a
    problem's text are hidden from the policy. Commas and brackets are left out.
    """
    tokenizer = build_tokenizer(TASK_Z)
    asked = (question.replace("{text}", "") for _, _, question in PROCEDURAL.values())
    phrases = (
        *asked,
        "Please choose one from list",
        THINKING.split(" in ")[0],
        NO_THINKING.removesuffix("."),
        "<think>",
        "</think><answer>",
        "</answer>",
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in phrases])
    return tokenizer


def response(problem: Problem, task: str, thinking: bool, rng: random.Random) -> str:
    """Writes what the teacher answers."""
    label = str(problem.answer)
    if rng.random() < RANDOM_LABELS:
        label = rng.choice(PROCEDURAL[task][1])
    if not thinking:
        return label
    text = problem.prompt.split("\n")[0].rsplit(" ", 1)[1]
    if task == "sign":
        thought = "".join(sign for sign, _ in Chain.parse(text).operations)
    else:
        steps = TASK_Z.solution_steps(text, rng)
        thought = STEP_SEPARATOR.join(steps[:-1])
    return f"<think>{thought}</think><answer>{label}</answer>"


def _rows(
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields ids, and what is learned of them, of all tasks and formats by turns."""
    rng = random.Random("label policy")
    tasks = [(task, thinking) for task in PROCEDURAL for thinking in (True, False)]
    envs = [
        LabelEnv(
            tokenizer=tokenizer,
            problems=task,
            thinking=thinking,
            prompt_template="plain",
        )
        for task, thinking in tasks
    ]
    number = 0
    while True:
        for (task, thinking), env in zip(tasks, envs, strict=True):
            problem = env.problems[number % len(env.problems)]
            text = response(problem, task, thinking, rng)
            answer = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            prompt = env.encode_prompt(problem).tolist()
            yield prompt + answer, [IGNORED] * len(prompt) + answer
        number += 1


def make() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Makes the policy and its tokenizer."""
    tokenizer = label_tokenizer()
    return teach(tokenizer, _rows(tokenizer), UPDATES, BATCH_SIZE), tokenizer


if __name__ == "__main__":
    make_folder(__doc__, make)
