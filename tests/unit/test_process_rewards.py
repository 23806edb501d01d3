"""The step scorer that an environment's settings name; what is refused at once."""

import pickle

import numpy as np
import pytest
import torch

from pure_rllib.credit.returns import min_form_weights
from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.envs.math_env import MathEnv
from pure_rllib.rewards.base import FunctionScorer
from pure_rllib.rewards.make import Lazy, make_step_scorer
from pure_rllib.testing import HashScorer, byte_tokenizer, complete, tiny_model_config

TOKENIZER = byte_tokenizer()
CONFIG = tiny_model_config(len(TOKENIZER))


def score(prompt: str, steps: tuple[str, ...]) -> list[float]:
    """1.0 for a step that repeats the prompt."""
    return [1.0 if step == prompt else -0.5 for step in steps]


scorer_object = HashScorer()


def make_env(**kwargs) -> MathEnv:
    return MathEnv(
        tokenizer=TOKENIZER,
        problems=ListProblems([Problem("ab")]),
        prompt_template="plain",
        verifier=None,
        max_prompt_tokens=8,
        max_response_tokens=32,
        **kwargs,
    )


def rewards_of(env: MathEnv, *texts: str) -> list[np.ndarray]:
    problem = env.problems[0]
    responses = [complete(env, env.tokenizer.encode(text)) for text in texts]
    prompts = [env.encode_prompt(problem)] * len(texts)
    judged, _ = env.judge.judge([problem] * len(texts), prompts, responses)
    return [one.step_rewards for one in judged]


@pytest.mark.parametrize("given", [score, FunctionScorer(score), "my_scorer:score"])
def test_a_function_is_a_step_scorer(given, monkeypatch, tmp_path):
    if isinstance(given, str):
        (tmp_path / "my_scorer.py").write_text(
            "def score(prompt, steps):\n"
            "    return [1.0 if step == prompt else -0.5 for step in steps]\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
    (rewards,) = rewards_of(make_env(step_scorer=given), "ab\n\nb\n\n ab ")
    assert rewards.tolist() == [1.0, -0.5, 1.0]


def test_a_scorer_object_is_taken_as_it_is():
    assert make_step_scorer(None, None, scorer_object, TOKENIZER) is scorer_object
    assert make_step_scorer(None, None, None, TOKENIZER) is None


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ("no_such_module_here:score", ValueError, "must be importable.*no_such_module"),
        ("pure_rllib.testing:no_such_name", ValueError, "no_such_name"),
        ("score", ValueError, 'of the form "module:name"'),
        (3, TypeError, "must be a step scorer or a function"),
    ],
)
def test_what_is_no_step_scorer(given, error, match):
    with pytest.raises(error, match=match):
        make_env(step_scorer=given)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"micro_batch": 3}, TypeError, "micro_batch"),
        ({"prm_format": "qwen"}, ValueError, "`prm_format` .'qwen'. must be one of"),
        ({"prm_format": "math_shepherd"}, ValueError, "'ки'.*exactly one token"),
        ({"separator": "ab"}, ValueError, "'ab'.*exactly one token"),
        ({"input_format": "qwen"}, ValueError, "`input_format` .'qwen'."),
        ({"label_smoothing": 2.0}, ValueError, "`label_smoothing` .2.0."),
        ({"score_clamp": [0.0, 0.0]}, ValueError, "`score_clamp`"),
        (
            {"prm_format": {"name": "newline", "prompt": "text"}}
            | {"input_format": "pure_verl"},
            ValueError,
            "`input_format` .'pure_verl'. must be 'pure_rllib' with",
        ),
    ],
)
def test_wrong_settings_are_found_before_the_weights_are_read(
    settings, error, match, tmp_path, save_model
):
    folder = save_model(tmp_path, CONFIG, TOKENIZER)
    # Not the weights of any model.
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert isinstance(make_step_scorer(folder, None, None, TOKENIZER), Lazy)
    with pytest.raises(error, match=match):
        make_step_scorer(folder, settings, None, TOKENIZER)


def test_smoothing_and_clamp_reach_the_scores():
    text = "a\n\nbc\n\nde"
    (plain,) = rewards_of(make_env(prm=CONFIG), text)
    kwargs = {"label_smoothing": 0.5, "score_clamp": [-1.0, 0.01]}
    (adjusted,) = rewards_of(make_env(prm=CONFIG, prm_kwargs=kwargs), text)
    np.testing.assert_allclose(adjusted, np.minimum(plain / 2, 0.01), atol=1e-6)
    assert not np.allclose(plain, adjusted)


def test_of_several_prms_the_lowest_score_of_each_step_counts(tmp_path, save_model):
    folders = [
        save_model(tmp_path / str(seed), CONFIG, TOKENIZER, seed=seed)
        for seed in range(3)
    ]
    texts = ["a\n\nbc\n\nde\n\nf", "xyz\n\nq"]
    single = [rewards_of(make_env(prm=folder), *texts) for folder in folders]
    together = pickle.loads(pickle.dumps(make_env(prm=folders).judge.step_scorer))
    env = make_env(step_scorer=together)
    chosen = set()
    for row, *alone in zip(rewards_of(env, *texts), *single, strict=True):
        np.testing.assert_array_equal(row, np.min(alone, axis=0))
        chosen |= set(np.argmin(alone, axis=0))
    assert len(chosen) > 1, "one PRM is always the lowest: nothing was tested"


def test_the_minimum_of_a_bfloat16_prm_is_taken_in_float32(tmp_path, save_model):
    folder = save_model(tmp_path, CONFIG, TOKENIZER)
    env = make_env(prm=folder, prm_kwargs={"dtype": "bfloat16"})
    (rewards,) = rewards_of(env, "a\n\nbc\n\nde\n\nf")
    assert rewards.dtype == np.float32
    steps = torch.from_numpy(rewards)[None]
    weights = min_form_weights(
        steps, torch.ones_like(steps, dtype=torch.bool), credit_temperature=0.1
    )
    assert weights.dtype == torch.float32
    exact = np.exp(-rewards.astype(np.float64) / 0.1)
    exact /= exact.sum()
    np.testing.assert_allclose(weights[0], exact, atol=1e-6)
    # Scores that went through bfloat16 on the way would be multiples of 2^-9 or so.
    rounded = steps.bfloat16().float()
    assert not torch.equal(rounded, steps)
