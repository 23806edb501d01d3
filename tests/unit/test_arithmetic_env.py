"""Arithmetic-v0: the embedded default."""

import random

import numpy as np
import pytest

from pure_rllib.arithmetic.task import TASK_Z, split_of
from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.envs.arithmetic import TASKS, ArithmeticEnv, PartlyAnswered
from pure_rllib.testing import complete, play

PROMPT = "3-2-2+4=?"
RIGHT = ["3-2=1", "1-2=9", "9+4=3", "\\boxed{3}"]


def make_env(**kwargs) -> ArithmeticEnv:
    return ArithmeticEnv(**{"process_rewards": "exact", **kwargs})


def answer(env: ArithmeticEnv, steps: list[str], sep: str = "\n\n") -> np.ndarray:
    return complete(env, env.tokenizer.encode(sep.join(steps)))


def test_a_right_solution_earns_one_per_step_and_is_verified():
    env = make_env(render_mode="ansi")
    try:
        episode = play(env, Problem(PROMPT, "3"), answer(env, RIGHT))
        assert episode.rewards[episode.step_spans[:, 1] - 1].tolist() == [1.0] * 4
        assert episode.info["verifiable_reward"] == 1.0
        assert env.render() == "\n".join(
            ["prompt  3-2-2+4=?", *(f"+1.00   {step}" for step in RIGHT)]
        )
        slip = [*RIGHT[:2], "9+4=4", "\\boxed{4}"]
        episode = play(env, Problem(PROMPT, "3"), answer(env, slip))
        # The last step boxes the value that was written: right on its own prefix.
        rewards = episode.rewards[episode.step_spans[:, 1] - 1].tolist()
        assert rewards == [1.0, 1.0, -1.0, 1.0]
        assert episode.info["verifiable_reward"] == 0.0
        # Without a box there is no answer, although the last number is the right one.
        episode = play(env, Problem(PROMPT, "3"), answer(env, RIGHT[:3]))
        assert episode.info["outcome"] == "no_answer"
    finally:
        env.close()


def test_two_single_newlines_end_a_step():
    env = make_env(verifier=None)
    newline = env.tokenizer.encode("\n")
    first, second = (env.tokenizer.encode(step) for step in RIGHT[:2])
    response = complete(env, [*first, *newline, *newline, *second])
    episode = play(env, Problem(PROMPT, "3"), response)
    assert len(episode.step_spans) == 2 and episode.rewards[-1] == 1.0


def test_training_and_held_out_problems_differ():
    env = make_env(num_eval_problems=50, verifier=None)
    assert env.eval_problems is not None and len(env.eval_problems) == 50
    assert len(env.problems) == 10_000
    assert {split_of(env.problems[i].prompt) for i in range(200)} == {"train"}
    assert {split_of(env.eval_problems[i].prompt) for i in range(50)} == {"held_out"}
    other = make_env(problem_seed=1, verifier=None)
    assert other.problems[0] != env.problems[0]
    assert other.eval_problems[0] == env.eval_problems[0]  # type: ignore[index]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_own_policy_and_budget(task):
    env = make_env(task=task, process_rewards="simulated", verifier=None)
    _, policy, budget = TASKS[task]
    assert env.default_policy == policy and env.max_response_tokens == budget
    env.reset(seed=0)
    # The longest prompts of the task must fit, too.
    for index in range(100):
        env.encode_prompt(env.problems[index])
    rendered = make_env(task=task, process_rewards="none", max_response_tokens=8)
    assert rendered.max_response_tokens == 8 and rendered.judge.step_scorer is None


def test_a_share_of_the_answers_is_hidden():
    env = make_env(answer_fraction=0.25, verifier=None)
    problems = [env.problems[i] for i in range(1000)]
    known = [p for p in problems if p.answer is not None]
    # A hash decides: 250 +- 4 standard deviations of 13.7.
    assert 195 <= len(known) <= 305
    assert env.problems.num_answers == 2500
    more = make_env(answer_fraction=0.5, verifier=None)
    also = {more.problems[i].prompt for i in range(1000) if more.problems[i].answer}
    assert {p.prompt for p in known} <= also
    none = PartlyAnswered(ListProblems([Problem("p", "1")]), 0.0)
    assert none[0].answer is None and none.num_answers == 0 and len(none) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "x"}, '`task` ."x". must be one of'),
        ({"process_rewards": "best"}, '`process_rewards` ."best".'),
        ({"process_rewards": "neural", "task": "y"}, 'made for task "y"'),
        ({"answer_fraction": 1.5}, "`answer_fraction` .1.5."),
        ({"max_response_tokens": 0}, "`max_response_tokens` .0. must be >= 1"),
        ({"prm": "no/such/folder"}, "`prm`.*`step_scorer`"),
        ({"num_problems": 0}, "`num_problems` .0."),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make_env(**settings)


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="proces_rewards"):
        make_env(proces_rewards="simulated")


def test_the_worked_solutions_of_the_task_fit_the_budget():
    env = make_env(verifier=None)
    for index in range(50):
        problem = env.problems[index]
        rng = random.Random(index)
        response = answer(env, TASK_Z.solution_steps(problem.prompt, rng))
        episode = play(env, problem, response)
        assert episode.terminated and (episode.rewards >= 0).all()
