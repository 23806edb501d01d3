"""What the judges count reaches the metrics under its name."""

import numpy as np

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.envs.vector import ResponseJudge
from pure_rllib.reporting.metrics import METRICS
from pure_rllib.rewards.base import FunctionVerifier, counts_of
from pure_rllib.rewards.prm.generative import GenerativePRM
from pure_rllib.rewards.verifier.hybrid import HybridVerifier
from pure_rllib.rollouts.runner_sample import JUDGE_COUNTS, judge_counts
from pure_rllib.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()


class CountingJudge:
    """Finds every step good, and counts like `VoteJudge`."""

    def __init__(self) -> None:
        self.max_prompt_tokens: int | None = None
        self.counts = {"verdicts": 0, "unclear_verdicts": 2, "ties": 1}

    def judge(self, prompts):
        self.counts["verdicts"] += 3 * len(prompts)
        return np.ones(len(prompts), np.float32)


def response_judge(step_scorer=None, verifier=None) -> ResponseJudge:
    splitter = StepSplitter.from_tokenizer(TOKENIZER)
    return ResponseJudge(TOKENIZER, splitter, step_scorer, verifier)


def test_every_count_is_a_metric() -> None:
    assert set(JUDGE_COUNTS) <= METRICS.keys()


def test_counts_of_both_judges() -> None:
    opinions = {"two": True, "three": False, "perhaps": None}
    verifier = HybridVerifier(
        FunctionVerifier(lambda gold, text: f"{{{gold}}}" in text),
        lambda gold, answer: opinions[answer],
    )
    asked = CountingJudge()
    prm = GenerativePRM(asked, TOKENIZER)
    judge = response_judge(prm, verifier)
    before = judge_counts(judge)
    assert +before == {"prm/unclear_verdicts": 2, "prm/ties": 1}
    answers = ["2", "two", "three", "three", "perhaps", "{", "", "the answer"]
    verifier.verify(["2"] * len(answers), [f"\\boxed{{{a}}}" for a in answers])
    asked.judge([[1], [2]])
    prm.num_overlong = 4
    assert judge_counts(judge) - before == {
        "prm/overlong": 4,
        "prm/verdicts": 6,
        "verifier/opinion_accepted": 1,
        "verifier/opinion_rejected": 2,
        "verifier/opinion_undecided": 1,
        "verifier/opinion_guarded": 3,
    }


def test_judges_that_count_nothing_or_something_else() -> None:
    class Scorer:
        num_overlong = 3

    class Odd:
        def __init__(self):
            self.counts = {"guesses": 7}

        def verify(self, golds, responses):
            return []

    assert judge_counts(response_judge()).total() == 0
    found = judge_counts(response_judge(Scorer(), Odd()))
    assert +found == {"prm/overlong": 3}
    # `str.count` is no count of ours.
    assert counts_of("text").total() == 0
