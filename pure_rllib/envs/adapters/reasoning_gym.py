"""reasoning-gym's tasks: one prompt, one answer, a graded score."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from pure_rllib.data.problems import Problem
from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.envs.math_env import MathEnv
from pure_rllib.rewards.reasoning_gym import AnswerForm, Task, TaskVerifier
from pure_rllib.setting_types import Count, NaturalNumber, check_setting

_STEPS = "{problem}\n\nThink step by step, and put your final answer within "
TEMPLATES: dict[str, PromptTemplate] = {
    "tag": PromptTemplate(_STEPS + "<answer> </answer>.", chat=True),
    "box": PromptTemplate(_STEPS + "\\boxed{{}}.", chat=True),
    "response": PromptTemplate(),
}
"""Prompts by the form of the answer; who answers with nothing else is not told how."""


class ReasoningGymEnv(MathEnv):
    """Solves a task of the package reasoning-gym; a `MathEnv` with its scores.

    Spaces, rewards and episodes are those of `TokenEnv`. The verifiable reward is the
    task's score, in [0, 1]; a score of 1 is `correct`. See `TaskVerifier`.

    Training and held-out problems are items of one data set: `size` first ones and
    `eval_size` behind them. Questions that were there already are left out, and from
    training those that are held out, too.

    ## Arguments
    Args:
        tokenizer: folder or hub id of the policy's tokenizer, or the tokenizer.
        task: name of the task; `pure-rllib envs` lists all. "composite" mixes those in
            `config["datasets"]`, each with `name`, `weight` and `config`.
        size: items for training.
        eval_size: items held out.
        seed: of the data set.
        config: other fields of the task's config, such as its difficulty.
        answer_form: "tag", "box" or "response", see `TaskVerifier`.
        prompt_template: see `make_template`; default: by the form of the answer, see
            `TEMPLATES`.
        scorer_kwargs: further arguments of `TaskVerifier`.
        **kwargs: the other arguments of `MathEnv`, but for problems and verifier.

    Raises:
        ValueError: the package is not installed, there is no such task, its config does
            not fit, or no question is left.
    """

    def __init__(
        self,
        *,
        tokenizer: str | PreTrainedTokenizerBase,
        task: str,
        size: int = 1000,
        eval_size: int = 200,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        answer_form: AnswerForm = "tag",
        prompt_template: PromptTemplate | Mapping[str, Any] | str | None = None,
        scorer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        for name, value, rule in (
            ("size", size, Count),
            ("eval_size", eval_size, NaturalNumber),
            ("seed", seed, NaturalNumber),
            ("answer_form", answer_form, AnswerForm),
        ):
            check_setting(name, value, rule)
        chosen = Task(task, size + eval_size, seed, config or {})
        verifier = TaskVerifier(chosen.setting, answer_form, **(scorer_kwargs or {}))
        train, held_out = split(chosen.problems(), size)
        self.num_equal_questions = chosen.size - len(train) - len(held_out)
        if not train:
            raise ValueError(
                f"`size` ({size}) of {task} must leave a question that is not held "
                f"out; because all its questions are. Set `eval_size` ({eval_size}) "
                "lower, or a `config` with more different questions."
            )
        super().__init__(
            tokenizer=tokenizer,
            problems=train,
            eval_problems=held_out or None,
            verifier=verifier,
            prompt_template=prompt_template or TEMPLATES[answer_form],
            **kwargs,
        )


def split(
    problems: list[Problem], num_train: int
) -> tuple[list[Problem], list[Problem]]:
    """Parts problems by their number, and leaves out those with equal questions.

    Args:
        problems: in their order.
        num_train: so many first ones are for training.

    Returns:
        Training and held-out problems without a question in common.
    """
    held_out = {p.prompt: p for p in reversed(problems[num_train:])}
    train = {
        p.prompt: p for p in reversed(problems[:num_train]) if p.prompt not in held_out
    }
    return list(train.values())[::-1], list(held_out.values())[::-1]
