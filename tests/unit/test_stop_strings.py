"""Stop strings: where a response ends, whatever the tokenizer and the generator."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.generation import transformers_generator
from pure_rllib.generation.base import Response, SamplingParams
from pure_rllib.generation.transformers_generator import TransformersGenerator
from pure_rllib.models.stop_strings import StopStrings
from pure_rllib.testing import byte_tokenizer
from tests.tokenizer_families import FAMILIES

BYTES = byte_tokenizer()


def ids_of(text: str, tokenizer: Any = BYTES) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def first_end(stop: StopStrings, ids: list[int]) -> tuple[int, int] | None:
    """Tokens up to and with the one that completes a string, and where that begins."""
    for num in range(1, len(ids) + 1):
        begin = stop.begins_at(ids[:num])
        if begin is not None:
            return num, begin
    return None


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_is_that_of_decoding_everything(name: str) -> None:
    tokenizer = FAMILIES[name]()
    strings = ["So:", "中文", "\n7", "ö"]
    strings = [s for s in strings if s in tokenizer.decode(ids_of(s, tokenizer))]
    assert strings, "the family can write one of them"
    stop = StopStrings(tokenizer, strings, len(tokenizer) + 3)
    draw, num_ends = random.Random(0), 0
    texts = ("So", ":", " 中", "文", "ö", "\n", "7", "x")
    pieces = [ids_of(text, tokenizer) for text in texts]
    for _ in range(60):
        ids = [i for _ in range(12) for i in draw.choice(pieces)]
        # Ids without a text, and halves of characters.
        ids[3:3] = draw.choices(range(len(tokenizer) + 3), k=3)
        so_far = [
            tokenizer.decode(ids[:num], clean_up_tokenization_spaces=False)
            for num in range(len(ids) + 1)
        ]
        expected = next(
            (n for n, t in enumerate(so_far) if any(s in t for s in strings)),
            None,
        )
        found = first_end(stop, ids)
        assert (found and found[0]) == expected, so_far[-1]
        if found is not None:
            num_ends += 1
            at = min(t for s in strings if (t := so_far[found[0]].find(s)) >= 0)
            assert len(so_far[found[1]]) <= at < len(so_far[found[1] + 1])
    assert num_ends > 10, "most of the texts must hold a string"


def test_the_prompt_is_no_part_of_a_match() -> None:
    stop = StopStrings(BYTES, ["ab"], len(BYTES))
    # A prompt that ends with "a" is not given to it at all.
    assert stop.begins_at(ids_of("b")) is None
    assert stop.begins_at(ids_of("xab")) == 1
    assert stop.begins_at([]) is None


def test_special_tokens_have_their_text() -> None:
    stop = StopStrings(BYTES, [BYTES.eos_token], len(BYTES))
    assert stop.begins_at([*ids_of("a"), BYTES.eos_token_id]) == 1


@pytest.mark.parametrize("string", ["\N{REPLACEMENT CHARACTER}", "a中"])
def test_what_no_token_can_write_is_refused(string: str) -> None:
    class Letters:
        """A tokenizer of two letters."""

        def __len__(self) -> int:
            return 2

        def batch_decode(self, rows: list[list[int]], **_: Any) -> list[str]:
            return ["".join("ab"[i] for i in row) for row in rows]

    with pytest.raises(ValueError, match=r"`stop` \(.*can write"):
        StopStrings(Letters(), [string], 2)  # type: ignore[arg-type]


def model() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(BYTES) + 5,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
    }
    return Qwen2ForCausalLM(Qwen2Config(**sizes)).eval()


def generator(stop: list[str], **settings: Any) -> TransformersGenerator:
    return TransformersGenerator(
        model(),
        pad_token_id=BYTES.pad_token_id,
        eos_token_ids=[BYTES.eos_token_id],
        stop=StopStrings(BYTES, stop, len(BYTES) + 5) if stop else None,
        **settings,
    )


PROMPTS = [ids_of("Once"), ids_of("a"), ids_of("What is 2?")]
SEEDS = [5, 6, 7]


def written(response: Response, after: int) -> str:
    """Whole characters that were written, one or two of them."""
    text = BYTES.decode(response.token_ids[after:])
    return next(part for part in text.split("\N{REPLACEMENT CHARACTER}") if part)[:2]


def cut(response: Response, stop: list[str]) -> Response:
    """What a response that was sampled without stop strings becomes by the rule."""
    strings = StopStrings(BYTES, stop, len(BYTES) + 5)
    found = first_end(strings, response.token_ids.tolist())
    if found is None:
        return response
    return Response(response.token_ids[: found[0]], response.logps[: found[0]], True)


@pytest.mark.parametrize("every", [1, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_response_is_the_beginning_of_the_one_without(
    monkeypatch: pytest.MonkeyPatch, temperature: float, every: int
) -> None:
    # As on a CUDA device, where tokens are looked at eight at a time.
    monkeypatch.setitem(transformers_generator._TOKENS_PER_COUNT, "cpu", every)
    params = SamplingParams(60, temperature)
    free = generator([]).generate(PROMPTS, 6, params, SEEDS)
    stop = [written(free[0][0], 10), written(free[1][-1], 20), "o"]
    rows = generator(stop).generate(PROMPTS, 6, params, SEEDS)
    num_cut = 0
    for group, longer in zip(rows, free, strict=True):
        for one, whole in zip(group, longer, strict=True):
            expected = cut(whole, stop)
            num_cut += len(expected.token_ids) < len(whole.token_ids)
            assert one.token_ids.tolist() == expected.token_ids.tolist()
            assert one.terminated == expected.terminated
            np.testing.assert_allclose(one.logps, expected.logps, atol=1e-5)
    assert num_cut > 3
    again = generator(stop, max_batch_size=4).generate(PROMPTS, 6, params, SEEDS)
    assert [[r.token_ids.tolist() for r in g] for g in again] == [
        [r.token_ids.tolist() for r in g] for g in rows
    ]


def test_it_is_where_transformers_stops() -> None:
    free = generator([]).generate(PROMPTS, 1, SamplingParams(60, 0.0), SEEDS)
    stop = [written(free[0][0], 10)]
    policy = generator(stop)
    for prompt, (one,) in zip(
        PROMPTS,
        policy.generate(PROMPTS, 1, SamplingParams(60, 0.0), SEEDS),
        strict=True,
    ):
        expected = policy.model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=60,
            pad_token_id=BYTES.pad_token_id,
            eos_token_id=BYTES.eos_token_id,
            stop_strings=stop,
            tokenizer=BYTES,
        )[0, len(prompt) :]
        assert one.token_ids.tolist() == expected.tolist()


def test_the_budget_ends_what_no_string_does() -> None:
    (free,) = generator([]).generate(PROMPTS[:1], 1, SamplingParams(60, 0.0), [5])
    stop = [written(free[0], 10)]
    num = len(cut(free[0], stop).token_ids)
    for budget, terminated in [(num - 1, False), (num, True), (num + 1, True)]:
        params = SamplingParams(budget, 0.0)
        ((one,),) = generator(stop).generate(PROMPTS[:1], 1, params, [5])
        assert (len(one.token_ids), one.terminated) == (min(num, budget), terminated)


# Response, stop strings, steps; `\n\n` is one token, and so is each other character.
STEPS = [
    ("2:\n\nQ:", ["\n\nQ:"], [(0, 3)]),  # the string alone is no step
    ("2:\n\nQ:", ["Q:"], [(0, 3)]),
    ("2:\n\nbQ:", ["Q:"], [(0, 3), (3, 6)]),
    ("2Q:", ["Q:"], [(0, 3)]),
    ("Q:", ["Q:"], [(0, 2)]),  # a response has a step
    ("2:\n\nQ:", ["x"], [(0, 3), (3, 5)]),  # cut by its budget
]


@pytest.mark.parametrize(("text", "stop", "spans"), STEPS)
def test_a_step_of_the_string_alone_is_none(
    text: str, stop: list[str], spans: list[tuple[int, int]]
) -> None:
    strings = StopStrings(BYTES, stop, len(BYTES))
    splitter = StepSplitter.from_tokenizer(BYTES).ending_with(strings.begins_at)
    found = splitter.step_spans(np.array(ids_of(text)))
    assert [tuple(span) for span in found.tolist()] == spans


def test_the_environment_ends_its_episodes_there() -> None:
    env = TokenEnv(problems=ListProblems([Problem("2?")]), tokenizer=BYTES)
    env.set_stop(["</a>"])
    env.set_vocab_size(len(BYTES) + 7)
    env.reset(seed=0)
    for token in ids_of("<a>2</a"):
        assert not any(env.step(token)[2:4])
    _, _, terminated, truncated, info = env.step(ids_of(">")[0])
    assert (terminated, truncated) == (True, False)
    assert info["response_text"] == "<a>2</a>", "the string is part of the text"
    env.set_stop([])
    assert env.stop is None and not env.is_ended(ids_of("</a>"))


class Echo:
    """Says what it was shown."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return "?", {}

    def step(self, action: str) -> Any:
        return f"saw {action}", None, False, False, {}


def test_a_turn_ends_there_and_the_chat_goes_on_as_its_template_says() -> None:
    tokenizer = byte_tokenizer(["<|im_end|>"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    env = TextTokenEnv(
        make_env=Echo,
        tokenizer=tokenizer,
        prompt_template={"chat": True},
        max_prompt_tokens=64,
        max_response_tokens=128,
    )
    env.set_stop(["</call>"])
    observation, _ = env.reset(seed=0)
    for token in ids_of("f</call>", tokenizer):
        observation, *_ = env.step(token)
    shown = observation["input_ids"][observation["attention_mask"] > 0].tolist()
    # The template's end of a turn is the environment's: it is not learned.
    text = "user:saw f</call><|im_end|>assistant:"
    assert tokenizer.decode(shown).endswith(f"assistant:f</call><|im_end|>{text}")
    # A new turn's match does not begin in the old one.
    assert env.is_ended(ids_of("</call>", tokenizer))
    for token in ids_of("/call>", tokenizer):
        observation, _, _, _, info = env.step(token)
    assert info["turn"] == 1
    assert tokenizer.decode(
        observation["input_ids"][observation["attention_mask"] > 0].tolist()
    ).endswith("assistant:/call>")
