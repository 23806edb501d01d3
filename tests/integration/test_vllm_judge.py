"""A generative PRM whose questions a real vLLM engine answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pure_rllib.models.loading import load_policy
from pure_rllib.rewards.prm.generative import GenerativeLoader
from pure_rllib.rewards.prm.judges import LogpJudge, VoteJudge
from pure_rllib.testing import byte_tokenizer, tiny_model_config
from pure_rllib.testing import text_request as request
from tests.integration.conftest import NEEDS_VLLM

pytestmark = [pytest.mark.slow, NEEDS_VLLM]

TOKENIZER = byte_tokenizer()
ENGINE = {"enforce_eager": True, "max_model_len": 96}


@pytest.mark.parametrize(
    "votes",
    [None, {"num_votes": 1, "temperature": 0.0, "max_verdict_tokens": 40}],
    ids=["probabilities", "a greedy vote"],
)
def test_an_engine_judges_like_the_model(tmp_path: Path, votes: dict[str, Any] | None):
    # The smallest head that vLLM's attention has on CPUs.
    config = tiny_model_config(
        len(TOKENIZER), hidden_size=64, num_attention_heads=2, num_key_value_heads=1
    )
    load_policy(config).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    settings: dict[str, Any] = {
        "votes": votes,
        "template": "{problem}|{previous}|{step}",
        "verdicts": ("Y", "N"),
        "dtype": "float32",
    }
    expected = GenerativeLoader(str(tmp_path), TOKENIZER, **settings)()
    judged = GenerativeLoader(
        str(tmp_path), TOKENIZER, generator="vllm", generator_kwargs=ENGINE, **settings
    )()
    assert isinstance(judged.judge, LogpJudge | VoteJudge)
    # The last question is one token longer than the engine takes.
    limit = judged.judge.max_prompt_tokens
    assert limit is not None and limit < ENGINE["max_model_len"]
    fits = limit - len("2+3?|(none)|\n")
    many = [request("a", "bb", "c"), request("x" * fits), request("x" * (fits + 1))]
    try:
        *scores, too_long = judged.score(many)
    finally:
        judged.judge.generator.close()
    for ours, theirs in zip(scores, expected.score(many), strict=False):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert too_long.tolist() == [-1.0] and judged.num_overlong == 1
    assert np.ptp(np.concatenate(scores)) > 0
