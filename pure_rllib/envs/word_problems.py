"""Sums in words: a task for real models whose steps can be checked exactly."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from pure_rllib.arithmetic.task import ArithmeticProblems
from pure_rllib.arithmetic.word_problems import (
    TruthChecker,
    WayChecker,
    WordTask,
    word_scorer,
)
from pure_rllib.envs.math_env import MathEnv

_SCORERS = {"way": WayChecker, "truth": TruthChecker, "none": None}


class WordProblemEnv(MathEnv):
    """Works out sums in words, step by step.

    Spaces, rewards and episodes are those of `TokenEnv`. A prompt is `Tom has 12
    apples, buys 5 more and gives away 3. How many apples does he have?`, the right
    response `12 + 5 = 17`, `17 - 3 = 14` and `The answer is 14.`, with blank lines
    between.

    ## Arguments
    Args:
        tokenizer: folder or hub id of the policy's tokenizer, or the tokenizer.
        num_steps: operations that a problem takes: 1 to 3, with products in 1 and 3.
        process_rewards: "way" (right steps lead to the answer), "truth" (right steps
            are true; to see what a policy makes of that) or "none".
        num_problems: training problems; drawn procedurally, none of them held out.
        num_eval_problems: held-out problems.
        problem_seed: names the sequence of problems.
        **kwargs: the other arguments of `MathEnv`.

    Raises:
        ValueError: an unknown source of process rewards or number of steps.
    """

    def __init__(
        self,
        *,
        tokenizer: str | PreTrainedTokenizerBase,
        num_steps: int = 2,
        process_rewards: str = "way",
        num_problems: int = 10_000,
        num_eval_problems: int = 200,
        problem_seed: int = 0,
        **kwargs: Any,
    ):
        if process_rewards not in _SCORERS:
            raise ValueError(
                f'`process_rewards` ("{process_rewards}") must be one of '
                f"{tuple(_SCORERS)}."
            )
        task = WordTask(num_steps)

        checker = _SCORERS[process_rewards]
        self.step_checker = word_scorer(WayChecker)
        kwargs.setdefault("prompt_template", {"chat": True})
        kwargs.setdefault("max_prompt_tokens", 512)
        kwargs.setdefault("max_response_tokens", 64)
        super().__init__(
            tokenizer=tokenizer,
            problems=ArithmeticProblems(task, num_problems, problem_seed),
            eval_problems=ArithmeticProblems(task, num_eval_problems, split="held_out"),
            step_scorer=word_scorer(checker) if checker else None,
            **kwargs,
        )
