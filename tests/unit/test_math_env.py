"""Math-v0 from files, a reward model and Math-Verify; what it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.envs.math_env import MathEnv
from pure_rllib.rewards.base import FunctionScorer, FunctionVerifier
from pure_rllib.rewards.make import Lazy
from pure_rllib.rewards.verifier.hybrid import HybridVerifier
from pure_rllib.testing import (
    HashScorer,
    byte_tokenizer,
    check_same_rewards,
    complete,
    play,
    tiny_model_config,
)

TOKENIZER = byte_tokenizer()
CONFIG = tiny_model_config(len(TOKENIZER))
ROWS = [
    {"question": "1+1?", "answer": "2", "level": 1},
    {"question": "What is the colour of a polar bear?", "answer": "\\text{white}"},
    {"question": "2+2?", "answer": "null"},
]


@pytest.fixture
def problems(tmp_path: Path) -> str:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def prm_folder(tmp_path: Path, save_model) -> str:
    return save_model(tmp_path / "prm", CONFIG, TOKENIZER)


def make_env(problems, **kwargs) -> MathEnv:
    settings = {
        "tokenizer": TOKENIZER,
        "problems": problems,
        "prompt_template": "plain",
        "max_prompt_tokens": 64,
        "max_response_tokens": 48,
        **kwargs,
    }
    return MathEnv(**settings)


def encode(env: MathEnv, text: str) -> np.ndarray:
    return complete(env, env.tokenizer.encode(text))


def test_problems_come_from_a_file(problems):
    env = make_env(problems, step_scorer=HashScorer())
    assert len(env.problems) == 3 and env.problems.num_answers == 2
    assert env.num_dropped_prompts == 0
    _, info = env.reset(options={"problem": env.problems[0]})
    assert info["prompt_ids"] == tuple(TOKENIZER.encode("1+1?"))


def test_problems_take_the_arguments_of_their_loader(problems):
    env = make_env(
        {"source": problems, "limit": 2},
        eval_problems={"source": problems, "answer_fraction": 0.0},
    )
    assert len(env.problems) == 2
    assert env.eval_problems is not None and env.eval_problems.num_answers == 0


def test_long_prompts_are_dropped_and_counted(problems):
    env = make_env(problems, eval_problems=problems, max_prompt_tokens=4)
    assert [env.problems[i].prompt for i in range(len(env.problems))] == [
        "1+1?",
        "2+2?",
    ]
    # One of each of the two files.
    assert env.num_dropped_prompts == 2


def test_the_template_counts_towards_the_length(problems):
    env = make_env(problems, prompt_template="Q: {problem}", max_prompt_tokens=7)
    assert env.num_dropped_prompts == 1
    _, info = env.reset(options={"problem": env.problems[0]})
    assert info["prompt_ids"] == tuple(TOKENIZER.encode("Q: 1+1?"))


def test_math_verify_gives_the_verifiable_reward(problems):
    env = make_env(problems)
    right, wrong, none = (
        encode(env, text) for text in (r"a\n\n\boxed{\frac{4}{2}}", r"\boxed{3}", "a")
    )
    one, _, unknown = (env.problems[i] for i in range(3))
    try:
        rewards = [
            (episode.info["verifiable_reward"], episode.info["outcome"])
            for episode in check_same_rewards(env, one, [right, wrong, none])
        ]
        assert rewards == [(1.0, "correct"), (0.0, "incorrect"), (0.0, "no_answer")]
        info = play(env, unknown, right).info
        assert (info["verifiable_reward"], info["outcome"]) == (None, None)
    finally:
        env.close()


def test_a_saved_prm_scores_as_the_same_weights_from_a_config(problems, prm_folder):
    loaded = make_env(problems, prm=prm_folder, verifier=None)
    random = make_env(problems, prm=CONFIG, verifier=None)
    response = encode(loaded, "a.\n\nb\n\nc")
    problem = loaded.problems[0]
    rewards = play(loaded, problem, response).rewards
    assert np.count_nonzero(rewards) == 3
    assert np.array_equal(rewards, play(random, problem, response).rewards)


def test_a_prm_is_loaded_when_it_is_first_used(problems, prm_folder):
    env = make_env(problems, prm=prm_folder, verifier=None)
    for file in Path(prm_folder).iterdir():
        file.unlink()
    env.reset(seed=0)
    # Nothing to score yet; the first step's end wants the weights.
    env.step(TOKENIZER.encode("a")[0])
    with pytest.raises((ValueError, OSError)):
        env.step(TOKENIZER.encode(".\n\n")[0])


def test_overlong_responses_are_counted(problems):
    config = tiny_model_config(len(TOKENIZER), max_position_embeddings=12)
    env = make_env(problems, prm=config, verifier=None)
    scorer = env.judge.step_scorer
    assert isinstance(scorer, Lazy) and scorer.counts["overlong"] == 0
    problem = Problem("1+1?")
    env.judge.judge([problem], [env.encode_prompt(problem)], [encode(env, "a" * 20)])
    assert scorer.counts["overlong"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "no/such/folder"}, "`tokenizer` .no/such/folder."),
        ({"prm_kwargs": {"separator": "#"}}, "`prm_kwargs`.*without a PRM"),
        (
            {"prm": {"model_type": "qwen2"}, "step_scorer": HashScorer()},
            "`prm`.*`step_scorer`.*exclude",
        ),
        ({"prm": "no/such/folder"}, "`prm` .no/such/folder."),
        ({"prm": []}, "must name a PRM"),
        ({"prm": tiny_model_config(100)}, "`prm` .vocab_size 100. must cover.* 261"),
        ({"verifier": "sympy"}, '`verifier` ."sympy".'),
        (
            {"verifier": None, "verifier_kwargs": {"num_workers": 2}},
            "`verifier_kwargs`",
        ),
        (
            {
                "verifier": FunctionVerifier(lambda gold, text: True),
                "verifier_kwargs": {"num_workers": 2},
            },
            "`verifier_kwargs`",
        ),
        ({"verifier_kwargs": {"num_workers": 0}}, "`num_workers` .0."),
        ({"max_prompt_tokens": 3}, "`max_prompt_tokens` .3. must be >= 4"),
        ({"prompt_template": "pure"}, "`chat`.*no chat template"),
        ({"prompt_template": "nonsense"}, "`template` .'nonsense'."),
    ],
)
def test_bad_settings(problems, settings, message):
    with pytest.raises(ValueError, match=message):
        make_env(problems, **settings)


def test_a_slip_is_found_before_the_prm_is_looked_for(problems):
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
        make_env("absent.jsonl", prm="no/such/folder")
    with pytest.raises(TypeError, match="feild"):
        make_env({"source": problems, "prompt_feild": "x"}, prm="no/such/folder")
    with pytest.raises(TypeError, match="max_reponse_tokens"):
        make_env(problems, prm="no/such/folder", max_reponse_tokens=8)
    with pytest.raises(ValueError, match="`max_response_tokens`"):
        make_env(problems, prm="no/such/folder", max_response_tokens=0)


def test_a_prm_with_another_vocabulary_reads_texts(problems, tmp_path, save_model):
    other = byte_tokenizer(["\n\n"])
    folder = save_model(tmp_path / "prm", tiny_model_config(len(other)), other)
    env = make_env(problems, prm=folder, verifier=None)
    responses = [encode(env, text) for text in ("a.\n\nb}\n\nc", "é", ".\n\n" * 3)]
    for episode in check_same_rewards(env, env.problems[0], responses, tolerance=1e-5):
        assert np.count_nonzero(episode.rewards) == len(episode.step_spans)
    with pytest.raises(ValueError, match=r"policy \(261 tokens\) and reward .*259"):
        make_env(problems, prm=folder, prm_kwargs={"retokenize": False})


def test_what_is_lazy_is_made_once():
    made = []

    def make() -> FunctionScorer:
        made.append(1)
        return FunctionScorer(lambda prompt, steps: [0.0] * len(steps))

    scorer = Lazy(make)
    assert not made
    scorer.score([])
    scorer.score([])
    assert made == [1] and scorer.counts["overlong"] == 0


def test_a_list_of_problems_is_a_source():
    env = make_env([Problem("1+1?", "2"), Problem("x" * 200, "3"), Problem("2+2?")])
    assert (len(env.problems), env.problems.num_answers) == (2, 1)
    assert env.num_dropped_prompts == 1
    with pytest.raises(ValueError, match=r"`problems` .a list with a dict. must hold"):
        make_env(ROWS)


def test_problem_sources_are_taken_as_they_are():
    source = ListProblems([Problem("one")])
    assert make_env(source).problems is source


def like_the_gold(gold: str, answer: str) -> bool | None:
    """A second opinion that the tests name."""
    return answer == "two" if gold == "2" else None


def verdict_of(env: MathEnv, text: str) -> str:
    try:
        verdict = env.judge.verify_one(env.problems[0], text)
        assert verdict is not None
        return verdict.outcome
    finally:
        env.close()


@pytest.mark.slow
@pytest.mark.parametrize("opinion", [like_the_gold, f"{__name__}:like_the_gold"])
def test_a_second_opinion_is_named_in_settings(problems, opinion, monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[like_the_gold.__module__])
    kwargs = {"second_opinion": opinion, "time_limit_s": 20.0}
    for text, outcome in (
        (r"\boxed{two}", "correct"),
        (r"\boxed{three}", "incorrect"),
        (r"\boxed{2}", "correct"),
        ("two", "incorrect"),  # it is asked about boxes only
    ):
        env = make_env(problems, verifier="hybrid", verifier_kwargs=kwargs)
        assert verdict_of(env, text) == outcome


def test_a_judging_model_is_loaded_when_it_is_asked(problems, tmp_path, save_model):
    folder = save_model(tmp_path / "judge", CONFIG, TOKENIZER, AutoModelForCausalLM)
    settings = {"model": folder, "verdicts": ["Y", "N"]}
    kwargs = {"second_opinion": settings, "time_limit_s": 20.0}
    env = make_env(problems, verifier="hybrid", verifier_kwargs=kwargs)
    verifier = env.judge.verifier
    assert isinstance(verifier, HybridVerifier)
    assert verdict_of(env, r"\boxed{two}") in ("correct", "incorrect")
    assert verifier.counts["accepted"] + verifier.counts["rejected"] == 1


@pytest.mark.parametrize(
    ("verifier", "opinion", "message"),
    [
        ("hybrid", None, r"`second_opinion` \(None\)"),
        ("math_verify", like_the_gold, "`second_opinion` "),
        ("hybrid", "like_the_gold", '"module:name"'),
        ("hybrid", "no_such_module:f", "no_such_module"),
        ("hybrid", {"model": "nowhere"}, "nowhere"),
        ("hybrid", {"model": "nowhere", "min_score": 3}, "`min_score` "),
    ],
)
def test_a_wrong_second_opinion_is_a_clear_error(problems, verifier, opinion, message):
    kwargs = {} if opinion is None else {"second_opinion": opinion}
    with pytest.raises(ValueError, match=message):
        make_env(problems, verifier=verifier, verifier_kwargs=kwargs)


def test_golds_that_cannot_be_read_are_named_once(caplog):
    problems = [Problem(f"{n}?", str(n)) for n in range(20)]
    source = ListProblems([*problems, Problem("broken?", r"\frac{1}{")])
    env = make_env(source, verifier_kwargs={"time_limit_s": 20.0})
    first = env.judge.verify_one(env.problems[0], r"\boxed{0}")
    assert first is not None and first.outcome == "correct"
    (record,) = caplog.records
    assert record.getMessage().startswith("1 of 21 gold answers looked at cannot be")
    assert r"\frac{1}{" in record.getMessage().replace("\\\\", "\\")
    assert verdict_of(env, r"\boxed{1}") == "incorrect"
    assert len(caplog.records) == 1
