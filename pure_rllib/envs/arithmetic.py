"""Chain arithmetic: the embedded default, small enough for a laptop's CPU."""

from dataclasses import replace
from typing import Any

from pure_rllib.arithmetic.checker import exact_scorer
from pure_rllib.arithmetic.simulated_prm import SimulatedPRM
from pure_rllib.arithmetic.task import (
    TASK_M20B,
    TASK_M100,
    TASK_Y,
    TASK_Z,
    ArithmeticProblems,
    ArithmeticTask,
    text_fraction,
)
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.data.problems import Problem, ProblemSource
from pure_rllib.envs.math_env import MathEnv
from pure_rllib.rewards.base import StepScorer
from pure_rllib.rewards.make import PRMSetting
from pure_rllib.setting_types import Share, check_setting

TASKS: dict[str, tuple[ArithmeticTask, str, int]] = {
    "z": (TASK_Z, "embedded:arithmetic-policy", 80),
    "y": (TASK_Y, "embedded:arithmetic-y-policy", 96),
    "sparse": (TASK_M20B, "embedded:arithmetic-sparse-policy", 120),
    "hundred": (TASK_M100, "embedded:arithmetic-hundred-policy", 80),
}
"""By name: the task, its start policy, and its token budget."""

NEURAL_PRM = "embedded:arithmetic-prm"
PROCESS_REWARDS = ("neural", "simulated", "exact", "none")


class ArithmeticEnv(MathEnv):
    r"""Works out `3-2-2+4=?` modulo 10, one operation per step.

    Spaces, rewards and episodes are those of `TokenEnv`. A right response to that
    prompt is `3-2=1`, `1-2=9`, `9+4=3` and `\boxed{3}`, with blank lines between.

    ## Arguments
    Args:
        task: "z" (3 or 4 operations), "y" (more redundant steps), "sparse" (7 to 9
            operations modulo 20) or "hundred" (5 or 6 modulo 100, where guessing does
            not pay).
        process_rewards: "neural" (a small PRM trained for task "z"),
            "simulated" (the exact checker with consistent errors), "exact" or "none".
        prm: another PRM, or a list of PRMs, in place of the neural one.
        num_problems: training problems; drawn procedurally, none of them held out.
        num_eval_problems: held-out problems.
        problem_seed: names the sequence of problems.
        answer_fraction: share of training problems with a known answer, in [0, 1].
        max_response_tokens: token budget; default: the task's.
        **kwargs: the other arguments of `MathEnv`.

    Raises:
        ValueError: an unknown task or source of process rewards, or the neural PRM with
            a task that it was not made for.
    """

    def __init__(
        self,
        *,
        task: str = "z",
        process_rewards: str = "neural",
        prm: PRMSetting = None,
        num_problems: int = 10_000,
        num_eval_problems: int = 200,
        problem_seed: int = 0,
        answer_fraction: float = 1.0,
        max_response_tokens: int | None = None,
        **kwargs: Any,
    ):
        if task not in TASKS:
            raise ValueError(f'`task` ("{task}") must be one of {sorted(TASKS)}.')
        chosen, self.default_policy, budget = TASKS[task]
        self.step_checker = exact_scorer(chosen.modulus)
        if process_rewards not in PROCESS_REWARDS:
            raise ValueError(
                f'`process_rewards` ("{process_rewards}") must be one of '
                f"{PROCESS_REWARDS}."
            )
        if process_rewards == "neural" and prm is None:
            if task != "z":
                raise ValueError(
                    f'`process_rewards` ("neural") needs a PRM made for task "{task}", '
                    'and the embedded one is made for "z". Set `prm` to a folder, or '
                    'process_rewards to "simulated".'
                )
            prm = NEURAL_PRM
        problems: ProblemSource = ArithmeticProblems(chosen, num_problems, problem_seed)
        if answer_fraction != 1.0:
            problems = PartlyAnswered(problems, answer_fraction)
        # Without a box, the verifier would take a step such as 1-2=9 for an answer.
        if kwargs.get("verifier", "math_verify") == "math_verify":
            kwargs.setdefault("verifier_kwargs", {"boxed_only": True})
        super().__init__(
            tokenizer=build_tokenizer(chosen),
            problems=problems,
            eval_problems=ArithmeticProblems(
                chosen, num_eval_problems, 0, split="held_out"
            ),
            prm=prm,
            step_scorer=_step_scorer(task, chosen, process_rewards),
            prompt_template="plain",
            max_prompt_tokens=kwargs.pop("max_prompt_tokens", 24),
            max_response_tokens=(
                budget if max_response_tokens is None else max_response_tokens
            ),
            **kwargs,
        )


class PartlyAnswered:
    """Hides the answers of a share of the problems; which ones hangs on their texts.

    Args:
        source: problems with answers.
        answer_fraction: share of the answers that stay, in [0, 1].
    """

    def __init__(self, source: ProblemSource, answer_fraction: float):
        check_setting("answer_fraction", answer_fraction, Share)
        self.source, self.answer_fraction = source, answer_fraction
        self.num_answers = round(answer_fraction * source.num_answers)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Problem:
        problem = self.source[index]
        if text_fraction(problem.prompt, "answer") < self.answer_fraction:
            return problem
        return replace(problem, answer=None)


def _step_scorer(
    name: str, task: ArithmeticTask, process_rewards: str
) -> StepScorer | None:
    if process_rewards == "exact":
        return exact_scorer(task.modulus)
    if process_rewards == "simulated":
        if name in ("sparse", "hundred"):
            return SimulatedPRM.sparse_study(task.modulus)
        return SimulatedPRM(task.modulus, strict=False)
    return None
