"""Many finished responses at once earn what one token at a time earns."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.envs.math_env import MathEnv
from pure_rllib.envs.vector import ResponseJudge
from pure_rllib.rewards.base import FunctionScorer, FunctionVerifier, Verdict
from pure_rllib.testing import (
    HashScorer,
    byte_tokenizer,
    check_same_rewards,
    complete,
    play,
    random_responses,
    tiny_model_config,
)

PROBLEM = Problem("one and one?", "2")
TOKENIZER = byte_tokenizer()
PRM_TOLERANCE = 1e-5
MAX_RESPONSE_TOKENS = 10

# What responses are made of, so that ends, blank steps and separators meet often.
PIECES = ("a", " b", "2", ".\n\n", "\n\n", "}\n\n", "\n", " ", "\n\n\n", "é", "<|E|>")


def make_env(tokenizer, **kwargs) -> MathEnv:
    return MathEnv(
        tokenizer=tokenizer,
        problems=ListProblems([PROBLEM]),
        verifier=FunctionVerifier(lambda gold, text: gold in text),
        prompt_template="plain",
        max_prompt_tokens=16,
        max_response_tokens=MAX_RESPONSE_TOKENS,
        **kwargs,
    )


def pieces_to_ids(env: MathEnv, pieces: list[str]) -> np.ndarray:
    eos = min(env.eos_token_ids)
    rows = [[eos] if p == "<|E|>" else env.tokenizer.encode(p) for p in pieces]
    return complete(env, [token for row in rows for token in row])


@pytest.fixture(scope="module")
def small_envs() -> dict[str, MathEnv]:
    prm = tiny_model_config(len(TOKENIZER))
    # A context of 18 cuts off what comes after about six tokens of the response.
    short_prm = {**prm, "max_position_embeddings": 18}
    return {
        "function": make_env(TOKENIZER, step_scorer=HashScorer()),
        "prm": make_env(TOKENIZER, prm=prm),
        "short prm": make_env(TOKENIZER, prm=short_prm),
    }


@pytest.fixture(scope="module")
def qwen_envs(qwen_folder: Path) -> dict[str, MathEnv]:
    tokenizer = AutoTokenizer.from_pretrained(qwen_folder)
    prm = tiny_model_config(len(tokenizer))
    return {
        "function": make_env(tokenizer, step_scorer=HashScorer()),
        "prm": make_env(tokenizer, prm=prm),
    }


responses_of_pieces = st.lists(
    st.lists(st.sampled_from(PIECES), max_size=MAX_RESPONSE_TOKENS + 2),
    min_size=1,
    max_size=4,
)


def check_both_paths(envs: dict[str, MathEnv], responses_of: Callable) -> None:
    for name, env in envs.items():
        tolerance = 0.0 if name == "function" else PRM_TOLERANCE
        check_same_rewards(env, PROBLEM, responses_of(env), tolerance=tolerance)


@settings(max_examples=40, derandomize=True)
@given(responses_of_pieces)
def test_both_paths_earn_the_same(small_envs, pieces):
    check_both_paths(small_envs, lambda env: [pieces_to_ids(env, p) for p in pieces])


@settings(max_examples=20, derandomize=True)
@given(responses_of_pieces)
def test_both_paths_earn_the_same_with_the_real_tokenizer(qwen_envs, pieces):
    check_both_paths(qwen_envs, lambda env: [pieces_to_ids(env, p) for p in pieces])


def test_both_paths_earn_the_same_on_any_ids(small_envs, qwen_envs):
    rng = np.random.default_rng(0)
    for envs in (small_envs, qwen_envs):
        check_both_paths(envs, lambda env: random_responses(env, rng, 12))


def test_a_blank_line_of_qwen_is_one_token_or_two(qwen_envs):
    env = qwen_envs["function"]
    encode = env.tokenizer.encode
    newline = encode("\n")
    assert len(newline) == 1 and len(encode("\n\n")) == 1
    # Nobody writes "a." and two single newlines; a policy may sample them.
    apart = complete(env, [*encode("a."), *newline, *newline, *encode("b")])
    joined = complete(env, encode("a.\n\nb"))
    assert play(env, PROBLEM, apart).step_spans.tolist() == [[0, 4], [4, 6]]
    assert play(env, PROBLEM, joined).step_spans.tolist() == [[0, 2], [2, 4]]


def test_a_real_prm_tells_steps_apart(small_envs):
    """The tolerance above would say nothing if all scores were alike."""
    env = small_envs["prm"]
    response = pieces_to_ids(env, ["a", "\n\n", "2", " b", ".\n\n", "é"])
    rewards = play(env, PROBLEM, response).rewards
    steps = rewards[rewards != 0.0]
    assert len(steps) == 3
    gaps = np.abs(steps[:, None] - steps[None])[~np.eye(3, dtype=bool)]
    assert gaps.min() > 100 * PRM_TOLERANCE


def make_judge(**kwargs) -> ResponseJudge:
    parts = {
        "tokenizer": TOKENIZER,
        "splitter": StepSplitter.from_tokenizer(TOKENIZER),
        "step_scorer": None,
        "verifier": None,
        **kwargs,
    }
    return ResponseJudge(**parts)


def encode(text: str) -> np.ndarray:
    return np.array([*TOKENIZER.encode(text), TOKENIZER.eos_token_id])


def test_blank_responses_never_reach_the_scorer():
    scorer = HashScorer()
    texts = ["a\n\nb", "", "\n\n \n\n", "c"]
    judged, _ = make_judge(step_scorer=scorer).judge(
        [PROBLEM] * 4, [encode("p")] * 4, [encode(text) for text in texts]
    )
    assert scorer.num_scored == 2
    assert [j.has_visible for j in judged] == [True, False, False, True]
    for blank in judged[1:3]:
        assert blank.step_rewards.tolist() == [-1.0]
    assert [j.text for j in judged] == texts


def test_scoring_can_be_left_out():
    scorer = HashScorer()
    judge = make_judge(
        step_scorer=scorer, verifier=FunctionVerifier(lambda gold, text: True)
    )
    responses = [encode("a\n\nb"), encode("\n\n")]
    arguments = ([PROBLEM] * 2, [encode("p")] * 2, responses)
    (first, blank), _ = judge.judge(*arguments, score=False)
    assert first.step_rewards.tolist() == [0.0, 0.0] and scorer.num_scored == 0
    assert blank.step_rewards.tolist() == [0.0] and first.verifiable_reward == 1.0
    (first, _), _ = judge.judge(*arguments)
    assert first.step_rewards.all() and scorer.num_scored == 1


def test_every_response_is_judged_with_its_own_problem():
    asked = []

    def score(prompt: str, step_texts: tuple[str, ...]) -> list[float]:
        asked.append((prompt, step_texts))
        return [0.5] * len(step_texts)

    problems = [Problem("p", "2"), Problem("q"), Problem("r", "3")]
    judged, times = make_judge(
        step_scorer=FunctionScorer(score),
        verifier=FunctionVerifier(lambda gold, text: gold in text),
    ).judge(problems, [encode("p")] * 3, [encode("2\n\n3")] * 3)
    assert [prompt for prompt, _ in asked] == ["p", "q", "r"]
    assert {texts for _, texts in asked} == {("2", "3")}
    # The second has no gold answer, so there is nothing to verify.
    assert [j.verdict for j in judged] == [Verdict("correct"), None, Verdict("correct")]
    assert [j.verifiable_reward for j in judged] == [1.0, None, 1.0]
    assert times.score_s >= 0.0 and times.verify_s >= 0.0


def test_token_rewards_stand_on_last_tokens():
    judge = make_judge(step_scorer=FunctionScorer(lambda _, texts: [0.5] * len(texts)))
    response = encode("a.\n\nbc\n\n")
    (judged,), _ = judge.judge([PROBLEM], [encode("p")], [response])
    # a .\n\n b c \n\n EOS
    assert judged.token_rewards(6).tolist() == [0.0, 0.5, 0.0, 0.0, 0.5, 0.0]


def test_nothing_to_judge():
    assert make_judge(step_scorer=HashScorer()).judge([], [], [])[0] == []
    assert make_judge().step_texts(encode("a"), np.zeros((0, 2), np.int64)) == ()


class BadScorer:
    """Returns what it was given."""

    def __init__(self, scores: list[float]):
        self.scores = scores

    def score(self, requests):
        return [np.array(self.scores, np.float32) for _ in requests]


@pytest.mark.parametrize("scores", [[0.5], [0.5, float("nan")], [0.1, 0.2, 0.3]])
def test_a_scorer_that_does_not_score_every_step_is_refused(scores):
    judge = make_judge(step_scorer=BadScorer(scores))
    with pytest.raises(ValueError, match="one finite number per step"):
        judge.judge([PROBLEM], [encode("p")], [encode("a\n\nb")])
