"""Sums in words: a task for real models whose steps can be checked exactly."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from pure_rllib.arithmetic.task import ArithmeticProblems, Split
from pure_rllib.arithmetic.word_problems import (
    TruthChecker,
    WayChecker,
    WordTask,
    word_scorer,
)
from pure_rllib.data.problems import Problem
from pure_rllib.envs.math_env import MathEnv

_SCORERS = {"way": WayChecker, "truth": TruthChecker, "none": None}


class WordProblems(ArithmeticProblems):
    """Sums in words behind solved examples, as messages of a conversation.

    Args:
        task: the family of problems.
        num_examples: solved ones before each, the same for all; >= 0.
        **kwargs: the other arguments of `ArithmeticProblems`.
    """

    def __init__(self, task: WordTask, num_examples: int, **kwargs: Any):
        super().__init__(task, **kwargs)
        self.history = tuple(
            {"role": role, "content": content}
            for example in task.examples(num_examples)
            for role, content in zip(("user", "assistant"), example, strict=True)
        )

    def __getitem__(self, index: int) -> Problem:
        return replace(super().__getitem__(index), history=self.history)


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
        num_examples: solved ones before each problem, in turns of the chat template;
            >= 0.
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
        num_examples: int = 0,
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

        def problems(count: int, seed: int, split: Split) -> WordProblems:
            return WordProblems(
                task, num_examples, num_problems=count, seed=seed, split=split
            )

        checker = _SCORERS[process_rewards]
        self.step_checker = word_scorer(WayChecker)
        kwargs.setdefault("prompt_template", {"chat": True})
        kwargs.setdefault("max_prompt_tokens", 512)
        kwargs.setdefault("max_response_tokens", 64)
        super().__init__(
            tokenizer=tokenizer,
            problems=problems(num_problems, problem_seed, "train"),
            eval_problems=problems(num_eval_problems, 0, "held_out"),
            step_scorer=word_scorer(checker) if checker else None,
            **kwargs,
        )
