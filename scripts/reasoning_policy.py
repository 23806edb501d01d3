"""Makes a start policy for four tasks of reasoning-gym: small, and hardly taught.

    python -m scripts.reasoning_policy FOLDER

The folder gets the weights and the tokenizer that the examples `reasoning_gym` and
`reasoning_gym_sweep` train. SFT shows questions that neither of them asks, and a share
of the answers' characters is drawn at random, so that RL has something to sharpen.
"""

import random
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pure_rllib.arithmetic.traces import IGNORED
from pure_rllib.data.problems import Problem
from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.rewards.reasoning_gym import Task
from pure_rllib.testing import SEPARATORS, byte_tokenizer
from scripts.embedded_models.training import make_folder, teach

TASKS: dict[str, dict[str, Any]] = {
    "spell_backward": {"min_word_len": 3, "max_word_len": 5},
    "chain_sum": {"min_terms": 2, "max_terms": 2, "max_digits": 2},
    "gcd": {"max_value": 60},
    "letter_counting": {"min_words": 2, "max_words": 3},
}
"""Names and configs, as the examples have them."""
PHRASES = (
    "Spell this word backward",
    "example",
    "State the final answer to the following arithmetic problem",
    "Find the Greatest Common Divisor",
    "of these numbers",
    "Give only the GCD as your final answer",
    "How many times does the letter",
    "appear in the text",
)
"""What every question of a task says is a token, the rest is bytes.

Phrases are words alone: what has a sign in it is a marker, and markers in a problem's
text are hidden from the policy.
"""
NUM_ASKED = 5200
NUM_TAUGHT = 4000
UPDATES, BATCH_SIZE = 900, 64
RANDOM_CHARACTERS = 0.2


def task_items(name: str) -> list[Problem]:
    """Returns what is taught of a task: nothing that the examples ask."""
    problems = Task(name, NUM_ASKED + NUM_TAUGHT, 0, TASKS[name]).problems()
    asked = {problem.prompt for problem in problems[:NUM_ASKED]}
    return [p for p in problems[NUM_ASKED:] if p.prompt not in asked]


def response(problem: Problem, rng: random.Random) -> str:
    """Writes what the teacher answers."""
    answer = str(problem.answer)
    letters = "abcdefghijklmnopqrstuvwxyz" if answer.isalpha() else "0123456789"
    return "".join(
        rng.choice(letters) if rng.random() < RANDOM_CHARACTERS else character
        for character in answer
    )


def _rows(
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields ids, and what is learned of them, of all tasks by turns."""
    rng, template = random.Random("reasoning policy"), PromptTemplate()
    taught = [task_items(name) for name in TASKS]
    while True:
        for problems in taught:
            problem = rng.choice(problems)
            answer = tokenizer(response(problem, rng))["input_ids"]
            answer = [*answer, tokenizer.eos_token_id]
            prompt = list(template.encode(problem, tokenizer))
            yield prompt + answer, [IGNORED] * len(prompt) + answer


def make() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Makes the policy and its tokenizer."""
    tokenizer = byte_tokenizer((*SEPARATORS, *PHRASES))
    return teach(tokenizer, _rows(tokenizer), UPDATES, BATCH_SIZE), tokenizer


if __name__ == "__main__":
    make_folder(__doc__, make)
