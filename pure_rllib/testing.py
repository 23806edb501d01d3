r"""Contract checks and small parts for tests of environments, yours and ours.

`check_token_env(env)` holds any `TokenEnv` to what the algorithm relies on, and
`check_text_env(make_env)` what is played over turns. The parts
are real but tiny: a byte tokenizer, configs of two-layer models, a step scorer that
hashes what it sees. T response tokens, S steps.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import zip_longest
from typing import Any

import numpy as np
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from pure_rllib.data.problems import Problem
from pure_rllib.envs.text_env import (
    TextEnvMaker,
    TextTasks,
    close_env,
    task,
    text_env_maker,
)
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.rewards.base import ScoringRequest

SEPARATORS = (".\n\n", "\n\n", "}\n\n")
"""Blank lines that the byte tokenizer writes as one token; "\n" is another one."""

_EOS_TOKEN = "<|endoftext|>"
_RESET_KEYS = {"prompt_ids", "problem_id"}
NONSENSE = ("", " ", "\n\n", "0", "-1", "{", "<|im_end|>", "\u00e9" * 5000)
"""Turns that any policy writes one day."""
_FINAL_KEYS = {"response_text", "verifiable_reward", "outcome"}


def byte_tokenizer(separators: Iterable[str] = SEPARATORS) -> PreTrainedTokenizerBase:
    """Makes a tokenizer with one token per byte, and one per separator.

    It encodes any text and decodes it to the same text.

    Args:
        separators: further tokens.
    """
    vocabulary = {char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary[_EOS_TOKEN] = len(vocabulary)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token=_EOS_TOKEN,
        eos_token=_EOS_TOKEN,
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in separators])
    return tokenizer


def tiny_model_config(vocab_size: int, **overrides: Any) -> dict[str, Any]:
    """Returns the Hugging Face config of a two-layer Qwen2 for random weights.

    Args:
        vocab_size: at least the tokenizer's length.
        **overrides: any other setting of `Qwen2Config`.
    """
    return {
        "model_type": "qwen2",
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Weights of the usual size would give almost the same score to every step.
        "initializer_range": 0.5,
        "tie_word_embeddings": True,
        **overrides,
    }


class HashScorer:
    """Scores a step by a hash of everything that a causal scorer may look at.

    Two requests that differ in the prompt, in a token up to the step's end, in the
    step's span or in its text get different scores; later tokens change nothing.

    Attributes:
        num_scored: how many responses it was shown.
    """

    def __init__(self) -> None:
        self.num_scored = 0

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """See `StepScorer.score`."""
        self.num_scored += len(requests)
        return [
            np.array(
                [self._score_step(request, k) for k in range(len(request.step_spans))],
                dtype=np.float32,
            )
            for request in requests
        ]

    @staticmethod
    def _score_step(request: ScoringRequest, k: int) -> float:
        end = int(request.step_spans[k, 1])
        seen = (
            request.prompt,
            request.answer,
            request.prompt_ids.tolist(),
            request.response_ids[:end].tolist(),
            request.step_spans[: k + 1].tolist(),
            request.step_texts[: k + 1],
        )
        digest = blake2b(repr(seen).encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") / 2**31 - 1.0


def text_request(*steps: str, prompt: str = "2+3?") -> ScoringRequest:
    """Makes a scoring request of the texts of steps, in ids of the byte tokenizer.

    Args:
        *steps: their texts; in the response a blank line follows each.
        prompt: the problem's text.
    """
    encode = byte_tokenizer().encode
    rows = [np.array(encode(step + "\n\n")) for step in steps]
    ends = np.cumsum([len(row) for row in rows])
    spans = np.stack([np.append(0, ends[:-1]), ends], 1)
    prompt_ids = np.array(encode(prompt))
    return ScoringRequest(prompt, None, prompt_ids, np.concatenate(rows), spans, steps)


@dataclass(frozen=True, slots=True)
class PlayedEpisode:
    """One episode that went through `env.step`, token by token.

    Attributes:
        rewards: `[T]` float32.
        step_spans: `[S, 2]` int64, from the infos.
        terminated: whether the last token was an end-of-sequence token.
        info: of the last token.
    """

    rewards: np.ndarray
    step_spans: np.ndarray
    terminated: bool
    info: dict[str, Any]


def play(env: TokenEnv, problem: Problem, response: np.ndarray) -> PlayedEpisode:
    """Steps through a response, checking the rules of every single step.

    Args:
        env: the environment; it is reset first.
        problem: what is answered.
        response: `[T]` token ids that end the episode at the last one, not before.

    Raises:
        AssertionError: a rule is broken.
    """
    observation, info = env.reset(options={"problem": problem})
    prompt = np.asarray(info["prompt_ids"])
    rewards, spans = [], []
    terminated = truncated = False
    for t, token in enumerate(response):
        assert not (terminated or truncated), (
            f"The episode ended after {t} of {len(response)} tokens: only an "
            "end-of-sequence token or the budget may end it."
        )
        observation, reward, terminated, truncated, info = env.step(token)
        _check_observation(env, observation, np.append(prompt, response[: t + 1]))
        assert isinstance(reward, float), f"The reward {reward!r} is not a float."
        is_eos = int(token) in env.eos_token_ids
        assert terminated == is_eos, f"terminated={terminated} at token {token}."
        is_full = t + 1 == env.max_response_tokens and not is_eos
        assert truncated == is_full, f"truncated={truncated} after {t + 1} tokens."
        assert info["is_boundary"] or reward == 0.0, (
            f"Reward {reward} at token {t}, where no step ends."
        )
        assert info["is_boundary"] == ("step_span" in info), f"{info} at token {t}."
        if info["is_boundary"]:
            spans.append(info["step_span"])
            assert info["step_span"][1] == t + 1, f"{spans[-1]} must end at {t + 1}."
        assert _FINAL_KEYS.isdisjoint(info) or terminated or truncated, (
            f"{_FINAL_KEYS & set(info)} are known at the end only, not at token {t}."
        )
        rewards.append(reward)
    assert terminated or truncated, "The response does not end the episode."
    assert set(info) >= _FINAL_KEYS, f"No {_FINAL_KEYS - set(info)} at the end."
    assert spans, "An episode has at least one step."
    starts = [0, *(end for _, end in spans[:-1])]
    assert [start for start, _ in spans] == starts, f"Gaps between steps: {spans}"
    return PlayedEpisode(
        np.array(rewards, np.float32), np.array(spans, np.int64), terminated, info
    )


def check_same_rewards(
    env: TokenEnv,
    problem: Problem,
    responses: Sequence[np.ndarray],
    *,
    tolerance: float = 0.0,
) -> list[PlayedEpisode]:
    """Holds `env.step` and the batched path equal, token for token.

    Args:
        env: the environment.
        problem: what all responses answer.
        responses: N arrays of token ids, each as for `play`.
        tolerance: largest difference of two rewards; 0.0 asks for equal bits, right
            for functions. A neural PRM rounds differently in batches: 1e-5.

    Returns:
        The N episodes.

    Raises:
        AssertionError: the two differ, or `play` finds a broken rule.
    """
    count = len(responses)
    prompts = [env.encode_prompt(problem)] * count
    judged, _ = env.judge.judge([problem] * count, prompts, responses)
    episodes = [play(env, problem, response) for response in responses]
    for response, batched, episode in zip(responses, judged, episodes, strict=True):
        named = f"for response {response.tolist()}"
        assert np.array_equal(batched.step_spans, episode.step_spans), (
            f"Steps {batched.step_spans.tolist()} batched, "
            f"{episode.step_spans.tolist()} one token at a time, {named}"
        )
        rewards = batched.token_rewards(len(response))
        assert np.abs(rewards - episode.rewards).max() <= tolerance, (
            f"Rewards {rewards.tolist()} batched, {episode.rewards.tolist()} one token "
            f"at a time, {named}; is the step scorer causal?"
        )
        assert batched.text == episode.info["response_text"], named
        assert batched.verifiable_reward == episode.info["verifiable_reward"], named
    return episodes


def complete(env: TokenEnv, ids: Iterable[int]) -> np.ndarray:
    """Makes of any ids a whole response: cut where the episode ends, or given an EOS.

    Returns:
        `[T]` int64, 1 <= T <= `max_response_tokens`.
    """
    response: list[int] = []
    for token in [*ids, min(env.eos_token_ids)]:
        response.append(int(token))
        if token in env.eos_token_ids or len(response) == env.max_response_tokens:
            break
    return np.array(response, dtype=np.int64)


def random_responses(
    env: TokenEnv, rng: np.random.Generator, count: int
) -> list[np.ndarray]:
    """Draws responses full of newlines, blank tokens and early ends."""
    splitter, size = env.splitter, env.vocab_size
    kinds = (
        np.flatnonzero(splitter.has_newline),
        np.flatnonzero(~splitter.is_visible),
        np.arange(size),
    )
    responses = []
    for _ in range(count):
        length = rng.integers(0, env.max_response_tokens + 1)
        shares = rng.dirichlet([1.0] * len(kinds))
        drawn = rng.choice(len(kinds), size=length, p=shares)
        responses.append(complete(env, [rng.choice(kinds[kind]) for kind in drawn]))
    return responses


def check_token_env(
    env: TokenEnv, *, seed: int = 0, num_episodes: int = 8, tolerance: float = 0.0
) -> None:
    """Checks an environment's contract on random and on awkward responses.

    Spaces, seeding, when episodes end, where rewards stand, what infos hold, and that
    one token at a time and many responses at once give the same rewards.

    Args:
        env: the environment, unwrapped.
        seed: of the responses and of the environment.
        num_episodes: how many random responses; >= 1.
        tolerance: see `check_same_rewards`.

    Raises:
        AssertionError: a rule is broken; the message says which.
    """
    if isinstance(env, TextTokenEnv):
        _check_turns(env, seed, num_episodes)
        return
    rng = np.random.default_rng(seed)
    first, first_info = env.reset(seed=seed)
    assert set(first_info) >= _RESET_KEYS, f"{_RESET_KEYS} missing in {first_info}."
    _check_observation(env, first, np.asarray(first_info["prompt_ids"]))
    again, again_info = env.reset(seed=seed)
    assert first_info["problem_id"] == again_info["problem_id"], (
        "Two resets with one seed drew two problems: draw with `self.np_random` only."
    )
    assert np.array_equal(first["input_ids"], again["input_ids"])
    newline = int(np.flatnonzero(env.splitter.has_newline)[0])
    visible = int(np.flatnonzero(env.splitter.is_visible)[0])
    awkward = [
        complete(env, ids)
        for ids in (
            [],
            [newline] * env.max_response_tokens,
            [visible] * env.max_response_tokens,
            [newline, newline, visible, newline, newline, newline, newline],
            [visible, newline, newline, visible],
        )
    ]
    problem = env.problems[0]
    responses = awkward + random_responses(env, rng, num_episodes)
    once = check_same_rewards(env, problem, responses, tolerance=tolerance)
    twice = [play(env, problem, response) for response in responses]
    for a, b in zip(once, twice, strict=True):
        assert np.array_equal(a.rewards, b.rewards), "The same tokens, other rewards."
    try:
        env.step(visible)
    except RuntimeError:
        return
    raise AssertionError("`step` after the end of an episode must raise RuntimeError.")


def _check_turns(env: TextTokenEnv, seed: int, num_episodes: int) -> None:
    """Plays random tokens, after the texts' own check."""
    tasks = env.problems
    assert isinstance(tasks, TextTasks)
    check_text_env(env.make_text_env, seeds=tasks.seeds[:2])
    rng = np.random.default_rng(seed)
    for number in range(num_episodes):
        problem = tasks[number % len(tasks)]
        _, info = env.reset(options={"problem": problem})
        is_over, num_tokens = False, 0
        while not is_over:
            token = int(rng.integers(env.vocab_size))
            observation, reward, terminated, truncated, info = env.step(token)
            assert env.observation_space.contains(observation)
            assert isinstance(reward, float), f"The reward {reward!r} is not a float."
            is_over, num_tokens = terminated or truncated, num_tokens + 1
        assert num_tokens <= env.max_response_tokens
        assert set(info) >= _FINAL_KEYS, f"No {_FINAL_KEYS - set(info)} at the end."


def check_text_env(
    make_env: TextEnvMaker | str,
    *,
    turns: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    max_turns: int = 8,
) -> None:
    """Checks a text environment's contract, with the given turns and with nonsense.

    It must not raise, say what it should, and depend on nothing but its seed and its
    turns: not on others that are played in between, nor on the global generators.

    Args:
        make_env: as for `TextTokenEnv`.
        turns: that make sense.
        seeds: of the tasks that are played.
        max_turns: of a game that does not end itself.

    Raises:
        AssertionError: a rule is broken.
        Exception: what the environment raises.
    """
    make = text_env_maker(make_env)
    written = [*turns, *NONSENSE]
    for seed in seeds:
        for shift in range(len(written)):
            texts = [*written[shift:], *written[:shift]][:max_turns]
            alone = list(_told(make, seed, texts))
            # Two of the seed by turns with each other, and with one of another seed.
            games = (_told(make, s, texts) for s in (seed, seed + 1, seed))
            first, _, second = zip(*zip_longest(*games), strict=True)
            for other in (first, second):
                found = [said for said in other if said is not None]
                assert found == alone, (
                    f"With seed {seed} and turns {texts!r:.200} it said {alone!r:.200} "
                    f"alone, and {found!r:.200} beside others: draw from a generator "
                    "of its own with that seed."
                )


def _told(make: TextEnvMaker, seed: int, texts: Sequence[str]) -> Iterator[Any]:
    """What an environment says at first and to each turn."""
    env = make()
    observation, info = env.reset(seed=seed)
    assert isinstance(info, dict), f"The info {info!r:.80} is no dictionary."
    task(observation, seed)
    yield observation
    for text in texts:
        result = env.step(text)
        assert len(result) == 5, f"`step` gave {len(result)} values for five."
        observation, reward, terminated, truncated, info = result
        assert isinstance(observation, str | Sequence), f"{observation!r:.80}"
        assert reward is None or np.isfinite(reward), f"The reward is {reward!r}."
        worth = info.get("verifiable_reward")
        assert worth is None or 0.0 <= worth <= 1.0, f"`verifiable_reward` is {worth}."
        yield result
        if terminated or truncated:
            break
    close_env(env)


def _check_observation(
    env: TokenEnv, observation: dict[str, np.ndarray], tokens: np.ndarray
) -> None:
    """Checks space and content: `tokens`, then padding."""
    assert env.observation_space.contains(observation), (
        f"Observation outside of {env.observation_space}: {observation}"
    )
    mask, num_tokens = observation["attention_mask"], len(tokens)
    assert mask[:num_tokens].all() and not mask[num_tokens:].any()
    assert np.array_equal(observation["input_ids"][:num_tokens], tokens)
