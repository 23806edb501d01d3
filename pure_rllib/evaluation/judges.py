r"""Who judges the reasoning of right answers: a checker, a PRM, or a language model.

S steps. Judges differ in what they see and in how often they err, so figures of two
judges are never mixed: a metric names its judge, as `cot_pass@8[prm:NAME>0]` does.
"""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import AutoTokenizer

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.data.boxed import last_box
from pure_rllib.data.order import ticket_seed
from pure_rllib.data.problems import Problem
from pure_rllib.envs.vector import ResponseJudge
from pure_rllib.evaluation.engines import EnginePool, EngineSettings, default_gpus
from pure_rllib.evaluation.plan import NO_LIMIT, Plan, local_folder
from pure_rllib.evaluation.samples import ProblemVerdicts, Sample, place
from pure_rllib.evaluation.settings import JudgeSettings, PolicySettings
from pure_rllib.generation.base import Request, SamplingParams
from pure_rllib.hacking.flags import HackLimits, flag_group
from pure_rllib.models.ends import eos_ids, pad_id
from pure_rllib.models.loading import policy_config
from pure_rllib.rewards.base import (
    AnyVerifier,
    ProblemVerifier,
    StepScorer,
    counts_of,
)
from pure_rllib.rewards.make import make_step_scorer
from pure_rllib.rewards.prm.actors import PRMActors, PRMPool, PRMPoolSettings
from pure_rllib.rewards.prm.rows import question_ids
from pure_rllib.rewards.prm.scoring import context_of

QUESTION = r"""
Below are a mathematics problem and a solution to it. Judge the reasoning, not only the
final answer.

Problem:
{problem}

Solution:
{solution}

Go through the solution step by step and check each step. Where a step is wrong, name
the kind of error: calculation error, logic error, concept error, omission (something
that was needed is left out), or other. The reasoning is correct only if no step is
wrong and the conclusion follows.

End with \boxed{yes} if the whole reasoning is correct, or \boxed{no} if it is not.
""".strip()
"""It holds no gold answer: the judge must not compare, but follow."""

_VERDICTS = {"yes": True, "no": False}
_NO_LETTERS = re.compile(r"\\[a-z]+|[^a-z]")


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """All samples of one problem, of which the right ones are judged.

    Attributes:
        problem: what was asked.
        prompt_ids: as the policy was given it.
        samples: greedy ones first.
    """

    problem: Problem
    prompt_ids: Sequence[int]
    samples: Sequence[Sample]

    @property
    def right(self) -> list[Sample]:
        """The samples whose answer is right."""
        return [sample for sample in self.samples if sample.correct]

    def verdicts(self) -> ProblemVerdicts:
        """Returns the problem's, to be filled in."""
        return ProblemVerdicts(problem=self.samples[0].problem)


class ReasoningJudge(Protocol):
    """Anything that judges reasoning."""

    name: str

    def judge(self, tasks: Sequence[JudgeTask]) -> list[ProblemVerdicts]:
        """Judges the right samples of each problem; says nothing of `classes`."""


def are_steps_right(scores: Sequence[float], threshold: float) -> bool:
    """Whether there is a step, and the lowest score is above the threshold."""
    return len(scores) > 0 and min(scores) > threshold


class StepJudge:
    """Judges by a step scorer: reasoning is as right as its worst step.

    Args:
        scorer: an exact checker or a PRM.
        name: in metrics.
        tokenizer: the policy's.
        splitter: where steps end.
        threshold: see `are_steps_right`.
        is_exact: of a checker: texts that game judges need no rule of their own.
    """

    def __init__(
        self,
        scorer: StepScorer,
        name: str,
        tokenizer: Any,
        splitter: StepSplitter,
        *,
        threshold: float = 0.0,
        is_exact: bool = False,
    ):
        self.name, self._splitter = name, splitter
        self._scorer, self._threshold, self._is_exact = scorer, threshold, is_exact
        self._steps = ResponseJudge(tokenizer, splitter, scorer, None)

    def judge(self, tasks: Sequence[JudgeTask]) -> list[ProblemVerdicts]:
        """See `ReasoningJudge.judge`."""
        # One by one: what shares a batch must be the same in a resumed evaluation.
        return [self._judge(task) for task in tasks]

    def _judge(self, task: JudgeTask) -> ProblemVerdicts:
        right, found = task.right, task.verdicts()
        if not right:
            return found
        before = counts_of(self._scorer)["overlong"]
        judged, _ = self._steps.judge(
            [task.problem] * len(right),
            [np.asarray(task.prompt_ids, np.int64)] * len(right),
            [np.asarray(sample.token_ids, np.int64) for sample in right],
        )
        num_overlong = counts_of(self._scorer)["overlong"] - before
        longest = sorted(right, key=lambda s: len(s.token_ids), reverse=True)
        found.not_judged = [place(sample) for sample in longest[:num_overlong]]
        suspects = set() if self._is_exact else suspicious(task, self._splitter)
        for sample, one in zip(right, judged, strict=True):
            where = place(sample)
            scores = [round(float(score), 6) for score in one.step_rewards]
            is_right = (
                one.has_visible
                and are_steps_right(scores, self._threshold)
                and where not in suspects
            )
            found.step_scores[where] = scores
            found.reasoning[where] = [None if where in found.not_judged else is_right]
        return found


class LanguageModelJudge:
    """Judges by asking a language model, several times, about the whole reasoning.

    Args:
        engines: of the judge.
        tokenizer: the judge's.
        settings: see `JudgeSettings`.
        context: tokens of question and verdict together, at most.
        splitter: of the policy: where steps end.
    """

    def __init__(
        self,
        engines: EnginePool,
        tokenizer: Any,
        settings: JudgeSettings,
        context: int,
        splitter: StepSplitter,
    ):
        self.name = judge_name(settings)
        self._engines, self._tokenizer, self._settings = engines, tokenizer, settings
        self._max_question = context - settings.max_verdict_tokens
        self._params = SamplingParams(settings.max_verdict_tokens, settings.temperature)
        self._splitter = splitter

    def judge(self, tasks: Sequence[JudgeTask]) -> list[ProblemVerdicts]:
        """See `ReasoningJudge.judge`."""
        found = [task.verdicts() for task in tasks]
        blocks: list[list[Request]] = []
        asked: list[tuple[ProblemVerdicts, str]] = []
        for task, of_problem in zip(tasks, found, strict=True):
            suspects, block = suspicious(task, self._splitter), []
            for sample in task.right:
                where, ids = place(sample), self._question(task.problem, sample)
                count = self._settings.verdicts
                if where in suspects:
                    of_problem.reasoning[where] = [False] * count
                elif len(ids) > self._max_question:
                    of_problem.reasoning[where] = [None] * count
                    of_problem.not_judged.append(where)
                else:
                    of_problem.reasoning[where] = []
                    seeds = [ticket_seed(sample.seed, 0, i) for i in range(count)]
                    block += [Request(ids, self._params, seed) for seed in seeds]
                    asked += [(of_problem, where)] * count
            blocks.append(block)
        verdicts: dict[int, bool | None] = {}
        for finished in self._engines.sample([block for block in blocks if block]):
            for one in finished:
                text = self._tokenizer.decode(one.token_ids, skip_special_tokens=True)
                verdicts[one.number] = read_verdict(text)
        for number, (of_problem, where) in enumerate(asked):
            of_problem.reasoning[where].append(verdicts[number])
        return found

    def _question(self, problem: Problem, sample: Sample) -> list[int]:
        fields = {"problem": problem.prompt, "solution": sample.text}
        return question_ids(self._tokenizer, QUESTION, fields)


def read_verdict(text: str) -> bool | None:
    r"""Reads the last `\boxed{yes}` or `\boxed{no}`; None for anything else."""
    box = last_box(text)
    return None if box is None else _VERDICTS.get(_NO_LETTERS.sub("", box.lower()))


def suspicious(task: JudgeTask, splitter: StepSplitter) -> set[str]:
    """Finds the samples whose text games judges; see `hacking.flags.FLAGS`.

    Policies learn texts that a PRM or a language model likes by mistake.
    """
    found: set[str] = set()
    for decoding in ("greedy", "sampled"):
        group = [s for s in task.samples if s.decoding == decoding]
        if group:
            flags = flag_group(
                [sample.text for sample in group],
                [np.asarray(sample.token_ids, np.int64) for sample in group],
                splitter,
                HackLimits(),
            )
            pairs = zip(group, flags, strict=True)
            found |= {place(sample) for sample, flag in pairs if flag.names}
    return found


def judge_name(settings: JudgeSettings) -> str:
    """The judge as metrics name it: `checker`, `prm:NAME>0` or `lm:NAME`."""
    if settings.model is None:
        return settings.kind
    name = Path(settings.model).name.removeprefix("embedded:")
    limit = f">{settings.threshold:g}" if settings.kind == "prm" else ""
    return f"{settings.kind}:{name}{limit}"


def same_value(verifier: AnyVerifier, first: str, second: str) -> bool:
    """Whether each answer is right where the other is gold: it is not symmetric."""
    if isinstance(verifier, ProblemVerifier):
        # It knows what answers are worth, not whether they are the same.
        return first == second
    golds, texts = [first, second], [rf"\boxed{{{one}}}" for one in (second, first)]
    return all(v.outcome == "correct" for v in verifier.verify(golds, texts))


def make_judges(plan: Plan, stack: ExitStack) -> list[ReasoningJudge | None]:
    """Makes who judges each benchmark; None: nobody.

    Args:
        plan: of the evaluation.
        stack: ends a judge's actors when it is closed.
    """
    settings = plan.judge
    if settings is None:
        return [None] * len(plan.asked)
    if settings.kind == "prm":
        return [_prm_judge(settings, plan, stack)] * len(plan.asked)
    if settings.kind == "lm":
        return [_language_model_judge(settings, plan, stack)] * len(plan.asked)
    judges: list[ReasoningJudge | None] = []
    for asked in plan.asked:
        checker = asked.benchmark.step_checker
        assert checker is not None, "the plan has looked"
        judges.append(
            StepJudge(checker, "checker", plan.tokenizer, plan.splitter, is_exact=True)
        )
    return judges


def _prm_judge(settings: JudgeSettings, plan: Plan, stack: ExitStack) -> ReasoningJudge:
    """A PRM in an actor of its own."""
    num_gpus = default_gpus() if settings.num_gpus is None else settings.num_gpus
    actors_settings = PRMPoolSettings(num_gpus=num_gpus)
    scorer = make_step_scorer(settings.model, settings.prm_kwargs, None, plan.tokenizer)
    assert scorer is not None, "the settings name a model"
    actors = PRMActors(scorer, 1, actors_settings)
    stack.callback(actors.stop)
    return StepJudge(
        PRMPool(actors.actors, actors_settings),
        judge_name(settings),
        plan.tokenizer,
        plan.splitter,
        threshold=settings.threshold,
    )


def _language_model_judge(
    settings: JudgeSettings, plan: Plan, stack: ExitStack
) -> ReasoningJudge:
    """A language model on an engine of its own."""
    assert settings.model is not None, "the settings name a model"
    folder = local_folder(settings.model, "judge.model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    context = context_of(policy_config(folder)) or NO_LIMIT
    eos = sorted(eos_ids(tokenizer))
    limit = settings.generator_kwargs.get("max_model_len", context)
    names = ("generator", "dtype", "generator_kwargs", "num_gpus")
    chosen = {name: getattr(settings, name) for name in names}
    engine = EngineSettings(
        policy=PolicySettings(model=folder, **chosen),
        pad_token_id=pad_id(tokenizer, eos),
        eos_token_ids=eos,
        max_model_len=min(context, limit),
    )
    pool = EnginePool(engine, 1)
    stack.callback(pool.stop)
    return LanguageModelJudge(
        pool, tokenizer, settings, min(context, limit), plan.splitter
    )
