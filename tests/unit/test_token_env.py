"""Steps, rewards and ends of an episode, one token at a time, on cases by hand."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.rewards.base import FunctionScorer, FunctionVerifier
from pure_rllib.testing import byte_tokenizer, check_same_rewards, complete, play
from tests.tokenizer_families import whole_words

TOKENIZER = byte_tokenizer()
EOS = "<|endoftext|>"
PROBLEMS = ListProblems([Problem(f"problem {i}?", str(i)) for i in range(20)])
HELD_OUT = ListProblems([Problem("held out?", "8")])


def rising(prompt: str, step_texts: tuple[str, ...]) -> list[float]:
    """0.25 for the first step, 0.5 for the second, and so on."""
    return [0.25 * (k + 1) for k in range(len(step_texts))]


def make_env(**kwargs) -> TokenEnv:
    settings = {
        "problems": PROBLEMS,
        "tokenizer": TOKENIZER,
        "step_scorer": FunctionScorer(rising),
        "verifier": FunctionVerifier(lambda gold, text: gold in text),
        "max_prompt_tokens": 16,
        "max_response_tokens": 7,
        **kwargs,
    }
    return TokenEnv(**settings)


def ids(pieces: str) -> np.ndarray:
    """One token per piece; `/` stands for a newline, `_` for a space, E for EOS."""
    names = {"E": EOS, "_": " "}
    rows = [
        TOKENIZER.encode(names.get(piece, piece.replace("/", "\n")))
        for piece in pieces.split()
    ]
    assert all(len(row) == 1 for row in rows), f"{pieces}: {rows}"
    return np.array([row[0] for row in rows])


# A ruler per case: the tokens, and below each its reward times 100.
CASES = {
    "visible and separator in one token": (
        "a .// b // E",
        "0  25 0 50 0",
        [[0, 2], [2, 4]],
    ),
    "the last step ends at the last token": (
        "a // b E",
        "0 25 0 50",
        [[0, 2], [2, 4]],
    ),
    "two newlines in two tokens end a step": (
        "a / /  / b / E",
        "0 0 25 0 0 0 50",
        [[0, 3], [3, 7]],
    ),
    "one newline ends none": ("a / b / E", "0 0 0 0 25", [[0, 5]]),
    "a blank step opens the next step": (
        "a // // b // E",
        "0 25  0 0 50 0",
        [[0, 2], [2, 5]],
    ),
    "so does one of spaces and newlines": (
        "a // _ / // b E",
        "0 25 0 0  0 0 50",
        [[0, 2], [2, 7]],
    ),
    "separators first": (
        "// // a // E",
        " 0  0 0 25 0",
        [[0, 4]],
    ),
    "blank tokens after the last step belong to none": (
        "a // // _ // E",
        "0 25  0 0  0 0",
        [[0, 2]],
    ),
    "only EOS": ("E", "-100", [[0, 1]]),
    "only separators": (
        "// // E",
        " 0  0 -100",
        [[0, 3]],
    ),
    "only a space": ("_ E", "0 -100", [[0, 2]]),
    "truncated within a step": (
        "a // b c d e f",
        "0 25 0 0 0 0 50",
        [[0, 2], [2, 7]],
    ),
    "truncated at a separator": (
        "a // b c d e //",
        "0 25 0 0 0 0 50",
        [[0, 2], [2, 7]],
    ),
    "truncated among blank tokens": (
        "a // _ _ _ _ _",
        "0 25 0 0 0 0 0",
        [[0, 2]],
    ),
    "truncated without anything visible": (
        "_ _ // _ // / /",
        "0 0  0 0  0 0 -100",
        [[0, 7]],
    ),
}


@pytest.mark.parametrize(("tokens", "rewards", "spans"), CASES.values(), ids=CASES)
def test_rewards_stand_at_step_ends(tokens, rewards, spans):
    (episode,) = check_same_rewards(make_env(), PROBLEMS[0], [ids(tokens)])
    assert (episode.rewards * 100).astype(int).tolist() == [
        int(reward) for reward in rewards.split()
    ]
    assert episode.step_spans.tolist() == spans
    assert episode.terminated == tokens.endswith("E")


def test_a_blank_response_never_reaches_the_scorer():
    def refuse(prompt: str, step_texts: tuple[str, ...]) -> list[float]:
        raise AssertionError(f"shown {step_texts}")

    env = make_env(step_scorer=FunctionScorer(refuse))
    blank = [ids(tokens) for tokens in ("E", "// E", "_ / // _ E")]
    for episode in check_same_rewards(env, PROBLEMS[0], blank):
        assert episode.rewards[-1] == -1.0
    with pytest.raises(AssertionError, match="shown"):
        play(env, PROBLEMS[0], ids("a E"))


def test_without_a_step_scorer_nothing_is_rewarded():
    env = make_env(step_scorer=None)
    responses = [ids("E"), ids("a // b E")]
    for episode in check_same_rewards(env, PROBLEMS[0], responses):
        assert not episode.rewards.any()


def test_the_end_of_an_episode_tells_text_and_verdict():
    env = make_env()
    right = play(env, Problem("p", "8"), ids("a // 8 E")).info
    assert right["response_text"] == "a\n\n8"
    assert (right["verifiable_reward"], right["outcome"]) == (1.0, "correct")
    wrong = play(env, Problem("p", "8"), ids("a // 9 E")).info
    assert (wrong["verifiable_reward"], wrong["outcome"]) == (0.0, "incorrect")
    unknown = play(env, Problem("p"), ids("a // 8 E")).info
    assert (unknown["verifiable_reward"], unknown["outcome"]) == (None, None)
    no_verifier = make_env(verifier=None)
    info = play(no_verifier, Problem("p", "8"), ids("a // 8 E")).info
    assert info["verifiable_reward"] is None


def test_an_episode_that_is_over_takes_no_token():
    env = make_env()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(0)
    play(env, PROBLEMS[0], ids("a E"))
    with pytest.raises(RuntimeError, match="reset"):
        env.step(0)


@pytest.mark.parametrize("action", [-1, 261])
def test_only_ids_are_actions(action):
    env = make_env()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"`action` \(-?\d+\) must be in \[0, 261\)"):
        env.step(action)


def test_any_of_several_eos_ids_ends_a_response():
    stop = int(ids("!")[0])
    env = make_env(eos_token_ids=[stop, TOKENIZER.eos_token_id])
    episode = play(env, PROBLEMS[0], ids("a !"))
    assert episode.terminated and episode.rewards.tolist() == [0.0, 0.25]
    assert complete(env, ids("a ! b")).tolist() == ids("a !").tolist()


def test_reset_draws_by_seed():
    def draw(seed: int, count: int = 6) -> list[str]:
        env = make_env()
        first = env.reset(seed=seed)[1]["problem_id"]
        return [first, *(env.reset()[1]["problem_id"] for _ in range(count - 1))]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert len(set(draw(3))) > 1


def test_reset_options_choose_the_problem():
    env = make_env(eval_problems=HELD_OUT)
    observation, info = env.reset(options={"problem": PROBLEMS[7]})
    assert info["problem_id"] == "7"
    prompt = TOKENIZER.encode("problem 7?")
    assert info["prompt_ids"] == tuple(prompt)
    assert observation["input_ids"][: len(prompt)].tolist() == prompt
    assert observation["attention_mask"].sum() == len(prompt)
    _, info = env.reset(options={"problem": "any text"})
    assert info["prompt_ids"] == tuple(TOKENIZER.encode("any text"))
    _, info = env.reset(options={"split": "eval"})
    assert info["prompt_ids"] == tuple(TOKENIZER.encode("held out?"))
    given = env.reset(seed=5, options={"split": "train"})
    assert data_equivalence(given, env.reset(seed=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problme": "x"}, r"unknown keys \['problme'\]"),
        ({"split": "test"}, r'`split` \(\'test\'\) must be "train" or "eval"'),
        ({"split": "eval"}, "needs `eval_problems`"),
        ({"problem": "much too long a text for it"}, "`max_prompt_tokens` .16."),
        ({"problem": ""}, "has 0 tokens"),
    ],
)
def test_bad_reset_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_env().reset(options=options)


class NoProblems:
    """A source of nothing."""

    num_answers = 0

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Problem:
        raise IndexError(index)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": whole_words()}, "must have a token with a newline"),
        ({"problems": NoProblems()}, "`problems`.*at least one"),
        ({"max_prompt_tokens": 0}, "`max_prompt_tokens` .0."),
        ({"max_response_tokens": 0}, "`max_response_tokens` .0."),
        ({"render_mode": "human"}, '`render_mode` ."human".'),
        ({"eos_token_ids": []}, "`eos_token_ids`"),
        ({"vocab_size": 100}, "`vocab_size` .100. must be >= 261"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make_env(**settings)


def test_render_shows_steps_with_their_scores():
    env = make_env(render_mode="ansi")
    assert env.render() is None
    env.reset(options={"problem": "p?"})
    assert env.render() == "prompt  p?"
    for token in ids("a .// b c // d"):
        env.step(token)
    assert env.render() == "prompt  p?\n+0.25   a.\n+0.50   bc\n...     d"
    play(env, PROBLEMS[0], ids("E"))
    assert env.render() == "prompt  problem 0?\n-1.00   "
    assert make_env().render() is None


def test_ids_beyond_the_tokenizer_are_blank_tokens():
    env = make_env(vocab_size=300)
    eos = TOKENIZER.eos_token_id
    #             a    290  \n\n  299 EOS     a step [0, 3), then blank tokens
    response = np.array([*ids("a"), 290, *ids("//"), 299, eos])
    (episode,) = check_same_rewards(env, PROBLEMS[0], [response])
    assert episode.step_spans.tolist() == [[0, 3]]
    assert episode.info["response_text"] == "a\n\n"


def test_close_closes_the_parts():
    class Closing(FunctionVerifier):
        closed = False

        def close(self) -> None:
            self.closed = True

    verifier = Closing(lambda gold, text: True)
    make_env(verifier=verifier).close()
    assert verifier.closed
