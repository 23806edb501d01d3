"""Training on what a reward model says, in this process and with actors."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pure_rllib.algorithms import GRPOConfig, LLMConfig, PUREConfig
from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.data.problems import Problem
from pure_rllib.models.loading import policy_config, random_model
from tests.integration.conftest import TINY_POLICY, built, flat

TOKENIZER = build_tokenizer(TASK_Z)
PROMPTS = [Problem(f"{i}+{i}-3=?") for i in range(6)]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("reward_model")
    config = policy_config({**TINY_POLICY, "num_labels": 1, "pad_token_id": 0})
    made = random_model(AutoModelForSequenceClassification, config, 0)
    made.score.weight.data *= 50  # numbers far outside [0, 1]
    made.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def of_prompts(config: LLMConfig, reward_model: str, **env_config: Any) -> LLMConfig:
    """A run on prompts without any answer."""
    return (
        config.environment(
            "pure_rllib/Math-v0",
            env_config={
                "tokenizer": TOKENIZER,
                "problems": PROMPTS,
                "eval_problems": PROMPTS[:2],
                "prompt_template": "plain",
                "max_prompt_tokens": 24,
                "reward_model": reward_model,
                **env_config,
            },
        )
        .env_runners(num_prompts=2, group_size=4, max_response_tokens=12)
        .rl_module(model_config={"model": TINY_POLICY})
        .training(lr=1.0e-3)
        .evaluation(evaluation_interval=1, num_samples_per_problem=2)
        .debugging(seed=3)
    )


def test_prompts_without_answers_are_trained_on(reward_model: str) -> None:
    with built(of_prompts(GRPOConfig(), reward_model)) as algo:
        result = algo.train()
        ((first, *_), *_) = algo.rollouts()
    metrics = flat(result)
    assert torch.tensor(metrics["loss/total"]).isfinite()
    assert metrics["reward/model"] == pytest.approx(metrics["reward/total"])
    assert metrics["groups/no_signal_share"] < 1.0
    assert torch.tensor(metrics["evaluation/greedy_model_reward"]).isfinite()
    assert "accuracy" not in metrics and "reward/verifiable" not in metrics
    assert first.model_reward is not None


def test_pure_takes_it_mapped(reward_model: str) -> None:
    config = of_prompts(PUREConfig(), reward_model)
    config.training(process_reward_coeff=0.0, verifiable_reward_coeff=1.0)
    with pytest.raises(ValueError, match=r"`reward_model_kwargs.map` \(None\)"):
        config.copy(copy_frozen=False).build_algo()
    mapped = config.copy(copy_frozen=False).environment(
        env_config={**config.env_config, "reward_model_kwargs": {"map": "sigmoid"}}
    )
    with built(mapped) as algo:
        assert 0.0 <= algo.train()["reward"]["model"] <= 1.0


@pytest.mark.slow
def test_actors_say_the_same(reward_model: str, ray_cluster: None) -> None:
    found = []
    for num_actors in (0, 1):
        config = of_prompts(GRPOConfig(), reward_model)
        config.env_runners(num_prm_actors=num_actors)
        with built(config) as algo:
            found.append(flat(algo.train())["reward/model"])
    assert found[0] == pytest.approx(found[1], abs=1e-4)
