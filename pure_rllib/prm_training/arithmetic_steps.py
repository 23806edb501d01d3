"""Labelled steps of chain arithmetic, made as those of the embedded PRM are."""

import random
from itertools import islice

from pure_rllib.arithmetic.checker import check_steps
from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.arithmetic.traces import TraceMaker, generated_steps
from pure_rllib.prm_training.solutions import LabelledSolution

ARITHMETIC_STEPS = "embedded:arithmetic-steps"
NUM_SOLUTIONS = 20_000


def arithmetic_steps(number: int = NUM_SOLUTIONS) -> list[LabelledSolution]:
    """Writes solutions, most of them with errors of every kind, the same ones always.

    Args:
        number: how many.

    Returns:
        Solutions of training problems; each step is labelled by the exact checker on
        what was written before it.
    """
    maker = TraceMaker(TASK_Z, build_tokenizer(TASK_Z).get_vocab())
    # A seed of its own: not the solutions that the embedded PRM has seen already.
    made = generated_steps(maker, random.Random(ARITHMETIC_STEPS), seed=102)
    solutions = []
    for prompt, steps in islice(made, number):
        labels = check_steps(prompt, steps, modulus=TASK_Z.modulus).labels
        solutions.append(LabelledSolution(prompt, tuple(steps), tuple(labels.tolist())))
    return solutions
