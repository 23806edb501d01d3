"""Where responses end, by all the files that say so; what is said of an environment."""

import json
from pathlib import Path

import pytest

from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.envs.guess_number import GuessNumberEnv
from pure_rllib.envs.math_env import MathEnv
from pure_rllib.rollouts.env_summary import first_lines, fit_to_policy
from pure_rllib.testing import byte_tokenizer, tiny_model_config

WORD, TURN, TOOL = 35, 261, 262  # a byte, and two added tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a tokenizer, with ids that nothing names yet."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|turn|>", "<|tool|>"], special_tokens=True)
    assert len(tokenizer) == TOOL + 1
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def write(folder: Path, name: str, eos: object) -> None:
    (folder / name).write_text(json.dumps({"model_type": "qwen2", "eos_token_id": eos}))


def make_env(folder: Path, **kwargs) -> MathEnv:
    return MathEnv(
        tokenizer=str(folder),
        problems=ListProblems([Problem("1+1?", "2"), Problem("2+2?")]),
        verifier=None,
        prompt_template="Q: {problem}\n",
        max_prompt_tokens=16,
        max_response_tokens=8,
        **kwargs,
    )


def test_responses_end_where_any_of_the_files_says(folder: Path):
    own = byte_tokenizer().eos_token_id
    assert make_env(folder).eos_token_ids == {own}
    write(folder, "config.json", TURN)
    write(folder, "generation_config.json", [own, TOOL])
    env = make_env(folder)
    assert env.eos_token_ids == {own, TURN, TOOL}
    env.reset(seed=0)
    assert env.step(TOOL)[2]
    assert make_env(folder, eos_token_ids=[TURN]).eos_token_ids == {TURN}


def test_the_policy_s_files_count_as_well(folder: Path, tmp_path_factory):
    own = byte_tokenizer().eos_token_id
    policy = tmp_path_factory.mktemp("policy")
    config = {**tiny_model_config(300), "eos_token_id": TURN}
    (policy / "config.json").write_text(json.dumps(config))
    for model, expected in (
        (tiny_model_config(300), {own}),
        (config, {own, TURN}),
        (str(policy), {own, TURN}),
    ):
        env = make_env(folder)
        fit_to_policy(env, {"model": model, "trust_remote_code": False})
        assert (env.vocab_size, env.eos_token_ids) == (300, expected)
    env = make_env(folder, eos_token_ids=[own])
    fit_to_policy(env, {"model": config, "trust_remote_code": False})
    assert env.eos_token_ids == {own}


def test_a_word_ends_no_response(folder: Path):
    """As the default of a config's class would be one with another's tokenizer."""
    write(folder, "generation_config.json", [WORD, 4000, TURN])
    with pytest.warns(UserWarning, match=rf"{WORD} \('.+'\), 4000 .*`eos_token_ids`"):
        env = make_env(folder)
    assert env.eos_token_ids == {byte_tokenizer().eos_token_id, TURN}


def test_a_broken_file_is_named(folder: Path):
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(OSError, match=r"generation_config\.json"):
        make_env(folder)


def test_held_out_problems_that_are_trained_on_are_said(folder: Path):
    held_out = ListProblems([Problem("3+3?", "6"), Problem("1+1?", "2")])
    assert first_lines(make_env(folder, eval_problems=held_out)).splitlines()[2] == (
        "                at least 1 of them are asked in training, too"
    )
    # Games that begin alike are told apart by nobody.
    assert "at least 200 of them are asked" in first_lines(GuessNumberEnv())


def test_what_was_read_is_said(folder: Path):
    own = byte_tokenizer().eos_token_id
    env = make_env(folder, eval_problems=ListProblems([Problem("3+3?", "6")]))
    env.num_dropped_prompts = 3
    assert first_lines(env).splitlines() == [
        "problems        2, 1 of them with an answer",
        "held out        1, 1 of them with an answer",
        "dropped         3, their prompts being longer than 16 tokens",
        "first prompt",
        "  | Q: 1+1?",
        "  | ",
        f"responses end   at <|endoftext|> ({own})",
    ]
