"""Scores of the two-label reward model on tiny random weights, adjusted and joined."""

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForTokenClassification, Qwen2Tokenizer

from pure_rllib.models.loading import policy_config, random_model
from pure_rllib.rewards.base import FunctionScorer, ScoringRequest, StepScorer
from pure_rllib.rewards.prm.model import ProcessRewardModel
from pure_rllib.rewards.prm.scoring import MinimumScorer, ScoreAdjustment
from pure_rllib.testing import text_request, tiny_model_config

WORDS = ["<pad>", "<|endoftext|>", "\n", "\n\n", "a", "b", "c", "d"]
EOS, NL, BLANK = 1, 2, 3


def make_tokenizer(words=tuple(WORDS)) -> Qwen2Tokenizer:
    # Of the class that AutoTokenizer makes beside a Qwen2 model; newlines are added
    # tokens, which are found before that class cuts text its own way.
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token=words[EOS],
        eos_token=words[EOS],
        pad_token=words[0],
    )
    tokenizer.add_tokens([AddedToken(w, normalized=False) for w in ("\n", "\n\n")])
    return tokenizer


def make_model(context=64) -> Any:
    config = tiny_model_config(
        len(WORDS), max_position_embeddings=context, num_labels=2
    )
    return random_model(AutoModelForTokenClassification, policy_config(config), 0)


def request(prompt, response, spans) -> ScoringRequest:
    texts = tuple("step" for _ in spans)
    return ScoringRequest(
        "prompt", None, np.array(prompt), np.array(response), np.array(spans), texts
    )


def requests(rng, count=9) -> list[ScoringRequest]:
    made = []
    for _ in range(count):
        steps = [
            [*rng.integers(4, 8, size=n).tolist(), BLANK]
            for n in rng.integers(1, 6, size=rng.integers(1, 5))
        ]
        steps[-1][-1] = EOS
        ends = np.cumsum([len(step) for step in steps])
        spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], 1)
        prompt = rng.integers(4, 8, size=rng.integers(1, 9)).tolist()
        made.append(request(prompt, [token for step in steps for token in step], spans))
    return made


def test_score_is_the_difference_of_the_two_probabilities():
    model = make_model()
    prm = ProcessRewardModel(model, make_tokenizer())
    assert isinstance(prm, StepScorer)
    # prompt a b, response c d \n\n a EOS -> a b c d \n a \n, read at columns 4 and 6
    (scores,) = prm.score([request([4, 5], [6, 7, BLANK, 4, EOS], [(0, 3), (3, 5)])])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[4, 5, 6, 7, NL, 4, NL]])).logits[0]
    probs = logits[[4, 6]].softmax(-1)
    np.testing.assert_allclose(scores, probs[:, 1] - probs[:, 0], atol=1e-6)
    assert scores.dtype == np.float32 and np.ptp(scores) > 0.01


def test_steps_beyond_the_context_get_the_lowest_score():
    prm = ProcessRewardModel(
        make_model(context=8), make_tokenizer(), label_smoothing=0.5
    )
    # P P P c | d | a a a |: the third separator would stand in column 10
    response = [6, BLANK, 7, BLANK, 4, 4, 4, EOS]
    long = request([4, 4, 4], response, [(0, 2), (2, 4), (4, 8)])
    short = request([4, 4, 4], [6, BLANK, 7, EOS], [(0, 2), (2, 4)])
    scores, whole = prm.score([long, short])
    np.testing.assert_allclose(scores[:2], whole, atol=1e-5)
    # Smoothing is for what the PRM said; a tail that it did not see never pays.
    assert np.abs(whole).max() <= 0.5 and scores[2] == -1.0
    assert prm.num_overlong == 1
    (none,) = prm.score([request([4] * 20, [6, EOS], [(0, 2)])])
    assert none.tolist() == [-1.0] and prm.num_overlong == 2


def test_no_requests():
    assert ProcessRewardModel(make_model(), make_tokenizer()).score([]) == []


@pytest.fixture
def folder(tmp_path) -> str:
    make_model().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


def test_loading_gives_the_same_scores(folder):
    loaded = ProcessRewardModel.from_pretrained(folder, dtype="float32")
    direct = ProcessRewardModel(make_model(), make_tokenizer())
    batch = requests(np.random.default_rng(3))
    for first, second in zip(loaded.score(batch), direct.score(batch), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)
    half = ProcessRewardModel.from_pretrained(folder, dtype="bfloat16")
    for first, second in zip(half.score(batch), direct.score(batch), strict=True):
        np.testing.assert_allclose(first, second, atol=0.1)
        assert first.dtype == np.float32


@pytest.mark.parametrize(
    "kwargs", [{"retokenize": False}, {"input_format": "pure_verl"}]
)
def test_another_vocabulary_is_refused_where_ids_are_needed(folder, kwargs):
    swapped = make_tokenizer((*WORDS[:6], "d", "c"))
    with pytest.raises(ValueError, match="'c' is id 7 to the policy and 6 to"):
        ProcessRewardModel.from_pretrained(folder, tokenizer=swapped, **kwargs)


def constant(score: float) -> Any:
    return FunctionScorer(lambda prompt, steps: [score] * len(steps))


def test_each_step_gets_its_lowest_score():
    short = FunctionScorer(lambda p, steps: [1.0 - 0.5 * len(s) for s in steps])
    marked = FunctionScorer(
        lambda p, steps: [-0.75 if "!" in s else 0.25 for s in steps]
    )
    scores = MinimumScorer([short, marked]).score(
        [text_request("a", "!", "abc"), text_request("ab!")]
    )
    assert [row.tolist() for row in scores] == [[0.25, -0.75, -0.5], [-0.75]]
    assert all(row.dtype == np.float32 for row in scores)


def test_one_scorer_is_itself_and_no_request_is_no_score():
    only = MinimumScorer([constant(0.5)])
    assert only.score([text_request("a", "b")])[0].tolist() == [0.5, 0.5]
    assert only.score([]) == []
    assert only.counts["overlong"] == 0


def test_a_response_that_is_too_long_for_all_counts_once():
    scorers = [constant(1.0), constant(1.0)]
    scorers[0].num_overlong, scorers[1].num_overlong = 2, 3
    assert MinimumScorer(scorers).counts["overlong"] == 3


SCORES = np.array([-1.0, -0.5, 0.0, 0.8, 1.0], np.float32)


@pytest.mark.parametrize(
    ("adjustment", "expected"),
    [
        (ScoreAdjustment(), SCORES),
        # p = 0.9 becomes 0.8 * 0.9 + 0.1 = 0.82, that is 0.8 becomes 0.64.
        (ScoreAdjustment(0.2), [-0.8, -0.4, 0.0, 0.64, 0.8]),
        (ScoreAdjustment(score_clamp=(-1.0, 0.0)), [-1.0, -0.5, 0.0, 0.0, 0.0]),
        # Smoothed first.
        (ScoreAdjustment(0.5, (-0.3, 0.45)), [-0.3, -0.25, 0.0, 0.4, 0.45]),
    ],
)
def test_adjusted_scores(adjustment, expected):
    adjusted = adjustment.apply(SCORES)
    np.testing.assert_allclose(adjusted, expected, atol=1e-7)
    assert adjusted.dtype == np.float32


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"label_smoothing": 1.0}, r"`label_smoothing` \(1.0\) must lie in \[0, 1\)"),
        ({"label_smoothing": float("nan")}, "`label_smoothing`"),
        ({"score_clamp": (0.5, 0.5)}, r"`score_clamp` \(\(0.5, 0.5\)\) must be two"),
        ({"score_clamp": (-2.0, 1.0)}, "`score_clamp`"),
        ({"score_clamp": (-1.0,)}, "`score_clamp`"),
    ],
)
def test_wrong_adjustments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        ScoreAdjustment(**kwargs)
