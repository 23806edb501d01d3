"""Labels: choose the class of a text, with or without thinking before the answer."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from pure_rllib.arithmetic.task import TASK_Z, ArithmeticProblems, Split
from pure_rllib.data.problems import (
    ListProblems,
    Problem,
    ProblemSource,
    load_problems,
)
from pure_rllib.data.rows import ANSWER_FIELDS, PROMPT_FIELDS, read_answer
from pure_rllib.envs.math_env import MathEnv
from pure_rllib.rewards.labels import LabelVerifier
from pure_rllib.setting_types import Count, check_setting

THINKING = (
    "Please output the thinking process in <think> </think> and final answer in "
    "<answer> </answer> tags."
)
NO_THINKING = "Please directly output the answer."

# Where data sets of labelled texts have them, before the fields of problems.
_FIELDS = {
    "prompt_field": ("text", "sentence", *PROMPT_FIELDS),
    "answer_field": ("label", *ANSWER_FIELDS),
}

_SHARE_SHOWN, _LEAST_SHOWN, _MOST_SHOWN = 0.4, 30, 100


def num_choices(num_classes: int) -> int:
    """Returns how many classes a prompt shows: all, or 30 to 100 of many."""
    share = int(_SHARE_SHOWN * num_classes)
    return num_classes if share < _LEAST_SHOWN else min(share, _MOST_SHOWN)


def class_names(given: Any, name: str) -> tuple[str, ...]:
    """Returns classes as labels are read from files, each once.

    Args:
        given: a list of texts or numbers.
        name: of the setting, for messages.

    Raises:
        ValueError: it is no list of such.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ValueError(
            f"{name} ({given!r:.200}) must be a list of labels, because one of them is "
            'to be chosen. Set `env_config={"classes": ["a", "b"]}`.'
        )
    names = (read_answer(one, name) for one in given)
    return tuple(dict.fromkeys(one for one in names if one is not None))


def choice_text(
    label: str, classes: Sequence[str], num_shown: int, rng: random.Random
) -> str:
    """Writes the sentence with the choices, the label among them.

    Args:
        label: the right one.
        classes: all of them.
        num_shown: see `num_choices`.
        rng: draws which are shown, and in what order.
    """
    shuffled = list(classes)
    rng.shuffle(shuffled)
    shown = shuffled[:num_shown]
    if label not in shown:
        shown[-1] = label
    rng.shuffle(shown)
    return f"Please choose one from list [ {', '.join(shown)}]."


class LabelProblems:
    """Problems whose answers are labels, with the choices and an instruction.

    Args:
        source: texts, each with its label as the answer.
        classes: all labels. Those of a problem's metadata under `classes` win.
        question: text with `{text}`: what is asked of a text.
        thinking: which instruction stands at the end.
        seed: with a problem's number it fixes the choices and their order.
    """

    def __init__(
        self,
        source: ProblemSource,
        classes: Sequence[str],
        *,
        question: str = "{text}",
        thinking: bool = True,
        seed: int = 0,
    ):
        self.source, self.seed = source, seed
        self.classes = class_names(classes, "`classes`")
        self.question = question
        self.instruction = THINKING if thinking else NO_THINKING
        self.num_answers = source.num_answers

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Problem:
        problem = self.source[index]
        classes, label = self.classes, problem.answer
        own = problem.metadata.get("classes")
        if own is not None:
            classes = class_names(own, f"`classes` of problem `{problem.problem_id}`")
        if label not in classes or len(classes) < 2:
            raise ValueError(
                f"`classes` ({list(classes)!r:.200}) must hold the label {label!r} of "
                f"problem `{problem.problem_id}` and others, because one of them is to "
                'be chosen. Set `env_config={"classes": [...]}` to all labels, those '
                "of held-out problems too."
            )
        rng = random.Random(f"{self.seed} {index}")
        choices = choice_text(label, classes, num_choices(len(classes)), rng)
        asked = self.question.replace("{text}", problem.prompt)
        prompt = f"{asked}\n{choices}\n {self.instruction}"
        return replace(problem, prompt=prompt)


def _commonest_sign(prompt: str, _: str) -> str:
    """The sign of a chain that occurs most; of as many of both, the first."""
    return Counter(sign for sign in prompt if sign in "+-").most_common(1)[0][0]


PROCEDURAL: dict[str, tuple[Callable[[str, str], str], tuple[str, ...], str]] = {
    "sign": (_commonest_sign, ("+", "-"), "Which sign occurs most in {text}"),
    "value": (
        lambda _, answer: answer,
        tuple(str(digit) for digit in range(10)),
        "What is the last digit of {text}",
    ),
}
"""Tasks on chains of arithmetic: label of prompt and answer, classes, question.

The first can be seen, the second has to be worked out.
"""


class _Procedural:
    """Chains of arithmetic whose answers are labels."""

    def __init__(self, task: str, num_problems: int, split: Split):
        self.label = PROCEDURAL[task][0]
        self.source = ArithmeticProblems(TASK_Z, num_problems, 0, split=split)
        self.num_answers = num_problems

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Problem:
        problem = self.source[index]
        label = self.label(problem.prompt, str(problem.answer))
        return replace(problem, answer=label)


class LabelEnv(MathEnv):
    """Chooses the class of a text; a `MathEnv` with prompts and rewards of CLS-RL.

    Spaces, rewards and episodes are those of `TokenEnv`. Texts only: there is no path
    for images. Source: CLS-RL and No-Thinking-CLS-RL (arXiv 2503.16188).

    ## Arguments
    Args:
        tokenizer: folder or hub id of the policy's tokenizer, or the tokenizer.
        problems: file, folder or hub id with a text and its label in each row, by
            default `text` and `label`, or a dict of `load_problems`' arguments
            (`prompt_field`, `answer_field`, ...), a list of `Problem`s, or a problem
            source; or "sign" or "value" for a procedural task.
        eval_problems: the same for held-out problems; None: of a procedural task 200,
            else none.
        classes: all labels; None: those that occur, and of a row with a field
            `classes` that field's.
        question: text with `{text}`: what is asked of a text; None: the text alone, or
            the procedural task's own question.
        thinking: ask for thinking and an answer in tags, and reward label and format;
            False: ask for the label alone, and reward nothing else.
        published_rewards: find answers as the published code does; see
            `LabelVerifier`.
        label_seed: fixes which choices a prompt shows, and their order.
        num_problems: training problems of a procedural task.
        **kwargs: the other arguments of `MathEnv`, but for its verifier.

    Raises:
        ValueError: a row has no label, or one that is not among the classes.
    """

    def __init__(
        self,
        *,
        tokenizer: str | PreTrainedTokenizerBase,
        problems: str | Mapping[str, Any] | list[Problem] | ProblemSource = "sign",
        eval_problems: str
        | Mapping[str, Any]
        | list[Problem]
        | ProblemSource
        | None = None,
        classes: Sequence[str] | None = None,
        question: str | None = None,
        thinking: bool = True,
        published_rewards: bool = False,
        label_seed: int = 0,
        num_problems: int = 10_000,
        **kwargs: Any,
    ):
        check_setting("num_problems", num_problems, Count)
        check_setting("thinking", thinking, bool)
        check_setting("published_rewards", published_rewards, bool)
        if question is not None and "{text}" not in question:
            raise ValueError(
                f'`question` ("{question}") must hold {{text}}, because the text to '
                'classify stands there. Set it to "What is this about? {text}".'
            )
        train: ProblemSource
        held_out: ProblemSource | None
        if isinstance(problems, str) and problems in PROCEDURAL:
            train = _Procedural(problems, num_problems, "train")
            held_out = _Procedural(problems, 200, "held_out")
            _, known, asked = PROCEDURAL[problems]
            classes, question = classes or known, question or asked
        else:
            train, held_out = _loaded(problems), None
        if eval_problems is not None:
            held_out = _loaded(eval_problems)
        if classes is None:
            classes = _labels_of(train)

        def with_choices(source: ProblemSource) -> list[Problem] | ProblemSource:
            made = LabelProblems(
                source,
                classes,
                question=question or "{text}",
                thinking=thinking,
                seed=label_seed,
            )
            # A wrong label is found now, where that is possible, and prompts that are
            # too long are left out.
            if not isinstance(source, ListProblems):
                return made
            return [made[index] for index in range(len(made))]

        super().__init__(
            tokenizer=tokenizer,
            problems=with_choices(train),
            eval_problems=None if held_out is None else with_choices(held_out),
            verifier=LabelVerifier(thinking=thinking, published=published_rewards),
            prompt_template=kwargs.pop("prompt_template", {"chat": True}),
            **kwargs,
        )


def _loaded(
    source: str | Mapping[str, Any] | list[Problem] | ProblemSource,
) -> ProblemSource:
    if isinstance(source, list):
        return ListProblems(source)
    if isinstance(source, str):
        source = {"source": source}
    if isinstance(source, Mapping):
        return load_problems(**{**_FIELDS, **source})
    return source


def _labels_of(source: ProblemSource) -> list[str]:
    """The labels that occur, sorted."""
    problems = source if isinstance(source, ListProblems) else ()
    labels = {problem.answer for problem in problems if problem.answer is not None}
    if not labels:
        raise ValueError(
            "`classes` (None) must list all labels, because the problems name none "
            'that could be collected. Set `env_config={"classes": [...]}`, or name '
            "the right `answer_field`."
        )
    return sorted(labels)
