"""A language model that is asked about each step, on tiny random weights."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.envs.math_env import MathEnv
from pure_rllib.generation.base import SamplingParams
from pure_rllib.generation.transformers_generator import TransformersGenerator
from pure_rllib.models.loading import policy_config, random_model
from pure_rllib.rewards.base import StepScorer
from pure_rllib.rewards.make import make_step_scorer
from pure_rllib.rewards.prm.generative import (
    GenerativeLoader,
    GenerativePRM,
    StepQuestion,
)
from pure_rllib.rewards.prm.judges import (
    LogpJudge,
    ModelJudge,
    VoteJudge,
    VoteSettings,
)
from pure_rllib.testing import byte_tokenizer, check_same_rewards, complete
from pure_rllib.testing import text_request as request
from pure_rllib.testing import tiny_model_config as tiny

TOKENIZER = byte_tokenizer()
CONFIG = tiny(len(TOKENIZER))
SHORT = StepQuestion("{problem}|{previous}|{step}|{good} or {bad}", verdicts=("Y", "N"))


def make_model(**overrides):
    return random_model(
        AutoModelForCausalLM, policy_config({**CONFIG, **overrides}), seed=0
    )


def make_generator(model) -> TransformersGenerator:
    eos = TOKENIZER.eos_token_id
    return TransformersGenerator(model, pad_token_id=eos, eos_token_ids=[eos])


def test_the_question_shows_the_step_and_what_is_before():
    asked = request("a {bad}", "b", "c")
    texts = [TOKENIZER.decode(SHORT.ids(TOKENIZER, asked, k)) for k in range(3)]
    assert texts == [
        "2+3?|(none)|a {bad}|Y or N\n",
        "2+3?|a {bad}|b|Y or N\n",
        "2+3?|a {bad}\n\nb|c|Y or N\n",
    ]
    own = TOKENIZER.decode(StepQuestion().ids(TOKENIZER, asked, 1))
    assert own.endswith(
        "Step to check:\nb\n\nIs the step to check correct? Answer Yes or No.\n"
    )


@pytest.mark.parametrize("micro_batch_tokens", [1, 60, 100_000])
def test_scores_are_the_difference_of_the_verdicts_probabilities(micro_batch_tokens):
    model = make_model()
    ids = SHORT.verdict_ids(TOKENIZER)
    judge = ModelJudge(model, ids, micro_batch_tokens=micro_batch_tokens)
    prm = GenerativePRM(judge, TOKENIZER, SHORT)
    assert isinstance(prm, StepScorer)
    many = [request("a", "bb"), request("a", "ccc", "d"), request("e", prompt="x")]
    scores = prm.score(many)
    for asked, scored in zip(many, scores, strict=True):
        expected = []
        for step in range(len(asked.step_texts)):
            question = torch.tensor([SHORT.ids(TOKENIZER, asked, step)])
            with torch.no_grad():
                probs = model(question).logits[0, -1, list(ids)].softmax(-1)
            expected.append(float(probs[0] - probs[1]))
        np.testing.assert_allclose(scored, expected, atol=1e-5)
        assert scored.dtype == np.float32
    # Both responses begin with the same step: asked once, scored twice.
    assert scores[0][0] == scores[1][0] != scores[0][1]


def test_a_generator_gives_the_same_scores_as_the_model():
    model = make_model()
    ids = SHORT.verdict_ids(TOKENIZER)
    many = [request("a", "bb"), request("ccc")]
    by_model = GenerativePRM(ModelJudge(model, ids), TOKENIZER, SHORT).score(many)
    judge = LogpJudge(make_generator(model), ids, max_model_len=512)
    by_generator = GenerativePRM(judge, TOKENIZER, SHORT).score(many)
    for first, second in zip(by_model, by_generator, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


def vote_judge(**settings) -> VoteJudge:
    return VoteJudge(
        make_generator(make_model(initializer_range=0.02)),
        TOKENIZER,
        ("Y", "N"),
        VoteSettings(**settings),
        max_model_len=512,
    )


def test_votes_are_counted():
    judge = vote_judge(num_votes=9, max_verdict_tokens=60)
    steps = ("a", "bb")
    prm = GenerativePRM(judge, TOKENIZER, SHORT)
    (scores,) = prm.score([request(*steps)])
    prompts = [SHORT.ids(TOKENIZER, request(*steps), k) for k in range(2)]
    groups = judge.generator.generate(
        prompts, 9, SamplingParams(60, 1.0), [judge._seed(ids) for ids in prompts]
    )
    expected, unclear = [], 0
    for group in groups:
        votes = []
        for response in group:
            text = TOKENIZER.decode(response.token_ids, skip_special_tokens=True)
            last = _last_verdict(text)
            unclear += last is None
            votes.append({"y": 1.0, "n": -1.0, None: 0.0}[last])
        expected.append(np.mean(votes))
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert 0 < unclear < 18
    assert prm.counts == {
        "verdicts": 18,
        "unclear_verdicts": unclear,
        "ties": sum(score == 0.0 for score in expected),
        "overlong": 0,
    }
    assert np.abs(scores).max() > 0


def _last_verdict(text: str) -> str | None:
    found = None
    for i, char in enumerate(text):
        around = text[max(0, i - 1) : i] + text[i + 1 : i + 2]
        if char in "YyNn" and not any(c.isalnum() or c == "_" for c in around):
            found = char.lower()
    return found


def test_votes_do_not_depend_on_neighbours():
    many = [request("a", "bb"), request("ccc"), request("d", prompt="longer than 2+3")]
    prm = GenerativePRM(
        vote_judge(num_votes=5, max_verdict_tokens=40), TOKENIZER, SHORT
    )
    together = prm.score(many)
    alone = [prm.score([one])[0] for one in many[::-1]][::-1]
    for first, second in zip(together, alone, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)
    other_seed = GenerativePRM(
        vote_judge(num_votes=5, max_verdict_tokens=40, seed=1), TOKENIZER, SHORT
    ).score(many)
    assert any((a != b).any() for a, b in zip(together, other_seed, strict=True))


def test_questions_over_the_context_get_the_lowest_score():
    model = make_model(max_position_embeddings=40)
    judge = ModelJudge(model, SHORT.verdict_ids(TOKENIZER))
    prm = GenerativePRM(judge, TOKENIZER, SHORT)
    scores, short = prm.score([request("a", "b" * 40, "c"), request("a")])
    assert scores[0] == short[0] > -1 and scores[1:].tolist() == [-1.0, -1.0]
    assert prm.num_overlong == 1
    (none,) = prm.score([request("b" * 40)])
    assert none.tolist() == [-1.0] and prm.num_overlong == 2


@pytest.fixture
def judge_folder(tmp_path, save_model) -> str:
    return save_model(tmp_path, CONFIG, TOKENIZER, AutoModelForCausalLM)


def test_an_environment_takes_one_by_its_settings(judge_folder):

    def make_env(prm, **kwargs) -> MathEnv:
        return MathEnv(
            tokenizer=TOKENIZER,
            problems=ListProblems([Problem("2+3?")]),
            prompt_template="plain",
            verifier=None,
            max_response_tokens=24,
            prm=prm,
            prm_kwargs={
                "prm_format": "generative",
                "verdicts": ["Y", "N"],
                "template": SHORT.template,
                **kwargs,
            },
        )

    env = make_env(judge_folder, label_smoothing=0.5, dtype="float32")
    response = complete(env, TOKENIZER.encode("a\n\nbb\n\nc"))
    (episode,) = check_same_rewards(env, env.problems[0], [response], tolerance=1e-5)
    judge = ModelJudge(make_model(), SHORT.verdict_ids(TOKENIZER))
    prm = GenerativePRM(judge, TOKENIZER, SHORT)
    (scores,) = prm.score([request("a", "bb", "c")])
    rewards = episode.rewards[episode.step_spans[:, 1] - 1]
    np.testing.assert_allclose(rewards, scores / 2, atol=1e-5)
    # A config stands for random weights; and verdicts can be sampled.
    random = make_env(CONFIG, votes={"num_votes": 3, "max_verdict_tokens": 8})
    check_same_rewards(random, random.problems[0], [response])


def test_settings_put_a_judge_on_a_generator(judge_folder):
    model = make_model()
    load = partial(
        GenerativeLoader,
        judge_folder,
        TOKENIZER,
        template=SHORT.template,
        verdicts=SHORT.verdicts,
        generator="transformers",
        generator_kwargs={"max_batch_size": 3},
        dtype="float32",
    )
    many = [request("a", "bb"), request("ccc")]
    votes = VoteSettings(num_votes=3, max_verdict_tokens=20)
    for judge, prm in (
        (ModelJudge(model, SHORT.verdict_ids(TOKENIZER)), load()()),
        (
            VoteJudge(
                make_generator(model), TOKENIZER, ("Y", "N"), votes, max_model_len=512
            ),
            load(votes={"num_votes": 3, "max_verdict_tokens": 20})(),
        ),
    ):
        assert isinstance(prm.judge, LogpJudge | VoteJudge)
        assert isinstance(prm.judge.generator, TransformersGenerator)
        assert prm.judge.generator.max_batch_size == 3
        expected = GenerativePRM(judge, TOKENIZER, SHORT).score(many)
        for first, second in zip(prm.score(many), expected, strict=True):
            np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"template": "{problem}"}, ValueError, r"must hold \{step\}"),
        ({"verdicts": ("Y", "y ")}, ValueError, "two different words"),
        ({"verdicts": ("Yes", "No")}, ValueError, "'Yes'.*exactly one token"),
        ({"votes": {"num_votes": 0}}, ValueError, r"`num_votes` \(0\)"),
        ({"votes": {"temperature": 0.0}}, ValueError, r"`temperature` \(0.0\)"),
        ({"votes": {"temprature": 1.0}}, TypeError, "temprature"),
        ({"votes": {}, "micro_batch_tokens": 5}, ValueError, "`micro_batch_tokens`"),
        ({"generator": "tgi"}, ValueError, r"`generator` \('tgi'\) must be one of"),
        ({"generator_kwargs": {"a": 1}}, ValueError, "no effect without a generator"),
        ({"votes": {}, "generator_kwargs": {"a": 1}}, ValueError, r"keys \['a'\]"),
        ({"generator": "vllm"}, ValueError, "`prm` .* must be a local folder"),
        ({"score_clamp": (1.0, 0.0)}, ValueError, "`score_clamp`"),
        ({"separator": "#"}, TypeError, "separator"),
    ],
)
def test_wrong_settings(settings, error, match):
    settings = {"prm_format": "generative", "verdicts": ("Y", "N"), **settings}
    with pytest.raises(error, match=match):
        make_step_scorer(CONFIG, settings, None, TOKENIZER)


@pytest.mark.parametrize("name", ["device", "attn_implementation"])
def test_settings_that_vllm_would_not_heed_are_refused(judge_folder, name):
    settings = {"prm_format": "generative", "verdicts": ("Y", "N"), name: "cpu"}
    with pytest.raises(ValueError, match=rf"`{name}` \(cpu\) must be left out"):
        make_step_scorer(
            judge_folder, {**settings, "generator": "vllm"}, None, TOKENIZER
        )


def test_words_need_not_be_one_token_where_they_are_sampled():
    votes: dict[str, Sequence | int] = {"num_votes": 1, "temperature": 0}
    loader = GenerativeLoader(CONFIG, TOKENIZER, votes=votes)
    assert loader.votes == VoteSettings(num_votes=1, temperature=0)


def test_a_judge_ends_where_its_own_files_say(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    folder, model = tmp_path / "judge", make_model(vocab_size=len(tokenizer))
    turn, eos = tokenizer.convert_tokens_to_ids("<|turn|>"), tokenizer.eos_token_id
    model.generation_config.eos_token_id = [turn, eos]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prm = GenerativeLoader(str(folder), TOKENIZER, votes={"num_votes": 1})()
    assert isinstance(prm.judge, VoteJudge)
    assert isinstance(prm.judge.generator, TransformersGenerator)
    assert prm.judge.generator.eos_token_ids == tuple(sorted({turn, eos}))
