from dataclasses import replace

import numpy as np

from pure_rllib.arithmetic.simulated_prm import SimulatedPRM
from pure_rllib.arithmetic.task import TASK_Y, apply
from pure_rllib.rewards.base import StepScorer

PROMPTS = [TASK_Y.problem(i).prompt for i in range(400)]


def first_step_scores(prm, *, right):
    scores: dict[str, set[float]] = {}
    for prompt in PROMPTS:
        a, operator, b = int(prompt[0]), prompt[1], int(prompt[2])
        c = apply(a, operator, b, 10) if right else (apply(a, operator, b, 10) + 1) % 10
        step = f"{a}{operator}{b}={c}"
        scores.setdefault(step, set()).add(float(prm.score_steps(prompt, [step])[0]))
    return scores


def test_whether_a_step_is_believed_hangs_on_its_text_alone():
    for right in (True, False):
        scores = first_step_scores(SimulatedPRM(), right=right)
        assert len(scores) == 50  # 5 x 2 x 5 first operations
        assert all(len(different) == 1 for different in scores.values())


def test_the_stated_shares_are_misjudged():
    wrong, right = [], []
    for seed in range(40):
        prm = SimulatedPRM(seed=seed)
        wrong += [max(s) > 0 for s in first_step_scores(prm, right=False).values()]
        right += [max(s) < 0 for s in first_step_scores(prm, right=True).values()]
    # 2000 draws each: standard errors .006 and .004.
    assert abs(np.mean(wrong) - 0.08) < 0.025
    assert abs(np.mean(right) - 0.04) < 0.02


def test_scores_lie_in_the_stated_ranges():
    prm = SimulatedPRM(believes_wrong=0.0, disbelieves_right=0.0)
    right = [max(s) for s in first_step_scores(prm, right=True).values()]
    wrong = [max(s) for s in first_step_scores(prm, right=False).values()]
    assert 0.6 <= min(right) < max(right) <= 0.98
    assert -0.95 <= min(wrong) < max(wrong) <= -0.5


def test_everything_after_the_first_doubted_step_is_doubted():
    steps = ["3-2=2", "2+4=6", "\\boxed{6}"]
    prm = SimulatedPRM(believes_wrong=0.0, disbelieves_right=0.0)
    strict = prm.score_steps("3-2+4=?", steps)
    local = replace(prm, strict=False).score_steps("3-2+4=?", steps)
    assert (strict > 0).tolist() == [False, False, False]
    assert (local > 0).tolist() == [False, True, True]


def test_repeated_plans_are_accepted():
    prm = SimulatedPRM(disbelieves_right=0.0)
    assert (prm.score_steps("3-2+4=?", ["now 3-2"] * 10) > 0).all()
    assert isinstance(prm, StepScorer)


def test_early_boxes_and_gibberish_are_never_believed():
    for seed in range(50):
        prm = SimulatedPRM(believes_wrong=1.0, seed=seed)
        assert (prm.score_steps("3-2+4=?", ["3-", "\\boxed{5}"]) < 0).all()
    sparse = SimulatedPRM.sparse_study(modulus=10)
    scores = sparse.score_steps("3-2+4=?", ["3-", "\\boxed{5}", "now 3-2"])
    assert np.allclose(scores, -0.98)
