"""Bad input is refused before a model is loaded; odd responses are ordinary data."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from pure_rllib.algorithms import PUREConfig
from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.learners.torch_learner import NonFiniteLossError
from pure_rllib.rewards.base import FunctionScorer, FunctionVerifier, ScoringRequest
from pure_rllib.testing import byte_tokenizer, tiny_model_config
from tests.integration.conftest import built, weights
from tests.tokenizer_families import whole_words

TOKENIZER = byte_tokenizer()
KNOWN = ListProblems([Problem(f"{i}+1=?", str(i + 1)) for i in range(8)])
UNKNOWN = ListProblems([Problem(f"{i}+1=?") for i in range(8)])


def ones(prompt: str, steps: tuple[str, ...]) -> list[float]:
    return [1.0] * len(steps)


def contains(gold: str, text: str) -> bool:
    return gold in text


def math_config(model: Any = None, **env_config: Any) -> PUREConfig:
    """A run on the byte tokenizer; every part of the environment can be swapped."""
    parts: dict[str, Any] = {
        "tokenizer": TOKENIZER,
        "problems": KNOWN,
        "step_scorer": FunctionScorer(ones),
        "verifier": FunctionVerifier(contains),
        "prompt_template": "plain",
        "max_prompt_tokens": 16,
        **env_config,
    }
    return (
        PUREConfig()
        .environment("pure_rllib/Math-v0", env_config=parts)
        .env_runners(num_prompts=4, group_size=4, max_response_tokens=6)
        .rl_module(model_config={"model": model or tiny_model_config(len(TOKENIZER))})
        .training(lr=1.0e-3)
        .debugging(seed=3)
    )


@pytest.fixture
def no_model_loads(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    """Fails the test if transformers is asked to make or to load a model."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded before the settings were checked")

    for auto_class in (AutoModelForCausalLM, AutoModelForTokenClassification):
        monkeypatch.setattr(auto_class, "from_config", fail)
        monkeypatch.setattr(auto_class, "from_pretrained", fail)
    monkeypatch.setattr(PreTrainedModel, "__init__", fail)


def model_folder(folder: Path, **config: Any) -> str:
    """A folder that has all of a model's files, with weights that cannot be loaded."""
    folder.mkdir()
    settings = {**tiny_model_config(len(TOKENIZER)), **config}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").write_bytes(b"broken")
    return str(folder)


def without_weights(folder: Path) -> str:
    path = Path(model_folder(folder))
    (path / "model.safetensors").unlink()
    return str(path)


def other_prm(folder: Path) -> str:
    """A process reward model whose tokenizer has other tokens than the policy's."""
    path = model_folder(folder)
    byte_tokenizer(["?\n\n", "\n\n"]).save_pretrained(path)
    return path


Build = Callable[[Path], PUREConfig]

BAD: dict[str, tuple[Build, str]] = {
    "verifiable reward without any gold answer": (
        lambda _: math_config(problems=UNKNOWN),
        r"`verifiable_reward_coeff` \(1\.0\) must be 0, because none of the 8 problems "
        r"has a gold answer\. Set it to 0",
    ),
    "verifiable reward without a verifier": (
        lambda _: math_config(verifier=None),
        r"`verifiable_reward_coeff` \(1\.0\) must be 0, because .* no verifier\. Set",
    ),
    "process reward without a step scorer": (
        lambda _: math_config(step_scorer=None),
        r"`process_reward_coeff` \(1\.0\) must be 0, because .*no step scorer\. Set",
    ),
    "response budget over the context": (
        lambda _: math_config().env_runners(max_response_tokens=500),
        r"`max_prompt_tokens` \(16\) plus `max_response_tokens` \(500\) must be at "
        r"most the model's context \(512\)\. Lower",
    ),
    "policy with fewer ids than the tokenizer": (
        lambda _: math_config(tiny_model_config(100)),
        r"`model` \(vocabulary of 100\) must cover the tokenizer's \d+ ids, because",
    ),
    "policy folder without weights": (
        lambda folder: math_config(without_weights(folder / "policy")),
        r"`model` \(.*policy\) must be a folder.*no \*\.safetensors weights\. Set",
    ),
    "policy folder that is missing": (
        lambda folder: math_config(str(folder / "absent")),
        r"`model` \(.*absent\) must be a folder.*there is no such folder\. Set",
    ),
    "no policy": (
        lambda _: math_config().rl_module(model_config={"model": None}),
        r"`model` \(None\) must name a policy, because .*Set `\.rl_module",
    ),
    "process reward model folder that is missing": (
        lambda folder: math_config(step_scorer=None, prm=str(folder / "absent")),
        r"`prm` \(.*absent\) must be a folder.*there is no such folder\. Set",
    ),
    "process reward model of another vocabulary": (
        lambda folder: math_config(
            step_scorer=None,
            prm=other_prm(folder / "prm"),
            prm_kwargs={"prm_format": "newline", "retokenize": False},
        ),
        r"vocabular.*`retokenize` False",
    ),
    "tokenizer that cannot write a newline": (
        lambda _: math_config(tokenizer=whole_words()),
        r"`tokenizer` .* must have a token with a newline, because .*Set",
    ),
    "evaluation without held-out problems": (
        lambda _: math_config().evaluation(evaluation_interval=1),
        r"`evaluation_interval` \(1\) needs held-out problems.*Set `env_config",
    ),
    "missing problems file": (
        lambda folder: math_config(problems=str(folder / "absent.jsonl")),
        r"absent\.jsonl",
    ),
    "environment that is no TokenEnv": (
        lambda _: PUREConfig().environment("CartPole-v1"),
        r"`env` \(CartPole-v1\) must be a `TokenEnv`, because .*CartPole.*Compose one",
    ),
    "an argument that the environment does not know": (
        lambda _: PUREConfig().environment(
            "pure_rllib/Arithmetic-v0", env_config={"tsk": "z"}
        ),
        r"`env_config` .* does not fit .*tsk",
    ),
    "actors for a process reward model that is not there": (
        lambda _: (
            math_config(step_scorer=None)
            .env_runners(num_prm_actors=1)
            .training(process_reward_coeff=0.0)
        ),
        r"`num_prm_actors` \(1\) must be 0",
    ),
    "no environment": (
        lambda _: PUREConfig(),
        r"`env` \(None\) must be .*Set `\.environment",
    ),
    "group size of 1": (
        lambda _: math_config().env_runners(group_size=1),
        r"`group_size` \(1\) must be >= 2.*set `\.env_runners\(group_size=4\)`",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_before_any_model_is_loaded(
    name: str, tmp_path: Path, no_model_loads: None
) -> None:
    build, message = BAD[name]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(tmp_path).build_algo()


def test_a_run_that_its_gpu_has_no_room_for_is_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    # A GPU of which 1 GiB is free; a plan has no less than CUDA's own 2.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**33))
    config = math_config(model_folder(tmp_path / "policy"))
    config.learners(num_gpus_per_learner=1)
    with pytest.raises(ValueError, match=r"more memory free than 1\.0 GiB.*\n.*total"):
        config.build_algo()


def test_evaluating_without_held_out_problems_says_so(ray_cluster: None) -> None:
    with (
        built(math_config()) as algo,
        pytest.raises(ValueError, match=r"`eval_problems` \(None\) must be given"),
    ):
        algo.evaluate()


class BrokenScorer:
    """Fails as a scorer does whose model ran out of memory."""

    def score(self, requests: list[ScoringRequest]) -> list[np.ndarray]:
        raise OSError("the scorer's disk is full")


class NaNScorer:
    def score(self, requests: list[ScoringRequest]) -> list[np.ndarray]:
        return [np.full(len(r.step_texts), math.nan, np.float32) for r in requests]


@pytest.mark.parametrize(
    ("scorer", "num_env_runners", "message"),
    [
        (BrokenScorer(), 0, "the scorer's disk is full"),
        (NaNScorer(), 0, r"returned \[.*nan.* one finite number per step"),
        pytest.param(
            BrokenScorer(), 1, "the scorer's disk is full", marks=pytest.mark.slow
        ),
    ],
)
def test_a_step_scorer_that_fails_is_raised(
    ray_cluster: None, scorer: Any, num_env_runners: int, message: str
) -> None:
    error = OSError if isinstance(scorer, BrokenScorer) else ValueError
    config = math_config(step_scorer=scorer)
    config.env_runners(num_env_runners=num_env_runners, num_cpus_per_env_runner=0.5)
    with built(config) as algo, pytest.raises(error, match=message):
        algo.train()


def unigram_policy(folder: Path, shares: dict[int, float]) -> str:
    """A policy that draws each token with the given shares, whatever came before.

    All embeddings are equal and the layers add nothing to them, so that the last hidden
    state is the same everywhere and the output layer alone makes the logits.
    """
    config = tiny_model_config(
        len(TOKENIZER), tie_word_embeddings=False, num_hidden_layers=1
    )
    model_type = config.pop("model_type")
    policy = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **config)
    )
    with torch.no_grad():
        policy.model.embed_tokens.weight.fill_(1.0)
        for layer in policy.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        # Hidden states are all ones: a row of logit / width adds up to its logit.
        width = policy.config.hidden_size
        policy.lm_head.weight.fill_(-30.0 / width)
        for token, share in shares.items():
            policy.lm_head.weight[token] = math.log(share) / width
    policy.save_pretrained(folder)
    return str(folder)


def test_odd_responses_are_ordinary_data(tmp_path: Path, ray_cluster: None) -> None:
    eos = TOKENIZER.eos_token_id
    (separator,) = TOKENIZER("\n\n")["input_ids"]
    (one,) = TOKENIZER("1")["input_ids"]
    policy = unigram_policy(tmp_path / "policy", {eos: 0.3, separator: 0.4, one: 0.3})
    config = math_config(policy).training(minibatch_size=4)
    with built(config) as algo:
        before = weights(algo)
        result = algo.train()
        groups = algo.rollouts(4)
        after = weights(algo)
    responses = [record for group in groups for record in group]
    kinds = [set(np.asarray(r.token_ids).tolist()) for r in responses]
    assert {eos} in kinds, "an empty response"
    assert {separator} in kinds or {separator, eos} in kinds, "separators only"
    assert {one} in kinds or {one, eos} in kinds, "no boundary"
    for record, kind in zip(responses, kinds, strict=True):
        assert record.advantages is not None
        assert np.isfinite(np.asarray(record.advantages)).all()
        if one not in kind:
            # Blank responses are never shown to the scorer, which likes everything.
            assert np.asarray(record.step_rewards).tolist() == [-1.0]
        else:
            assert set(np.asarray(record.step_rewards).tolist()) == {1.0}
    blank_share = float(np.mean([one not in kind for kind in kinds]))
    assert result["response"]["blank_share"] == pytest.approx(blank_share)
    assert 0.0 < blank_share < 1.0
    assert math.isfinite(result["loss"]["total"])
    assert all(np.isfinite(array).all() for array in after.values())
    assert any((before[name] != after[name]).any() for name in before)


def test_a_batch_of_empty_responses_only_is_learned_from(
    tmp_path: Path, ray_cluster: None
) -> None:
    eos = TOKENIZER.eos_token_id
    policy = unigram_policy(tmp_path / "policy", {eos: 1.0})
    with built(math_config(policy)) as algo:
        result = algo.train()
    assert result["response"]["tokens"] == 1.0
    assert result["response"]["blank_share"] == 1.0
    assert result["groups"]["no_signal_share"] == 1.0
    assert result["loss"]["policy"] == 0.0


@pytest.mark.parametrize("num_learners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_batch_that_is_all_masked_teaches_nothing(
    tmp_path: Path, ray_cluster: None, num_learners: int
) -> None:
    (one,) = TOKENIZER("1")["input_ids"]
    policy = unigram_policy(tmp_path / "policy", {one: 1.0})
    config = math_config(policy).training(mask_truncated=True, weight_decay=0.1)
    config.learners(num_learners=num_learners, num_cpus_per_learner=0.5)
    with built(config) as algo:
        before = weights(algo)
        result = algo.train()
        after = weights(algo)
    assert result["response"]["truncated_share"] == 1.0
    assert result["gradient_norm"] == 0.0
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])


@pytest.mark.slow
def test_two_learners_raise_together_and_report_what_one_of_them_cannot_do(
    tmp_path: Path, ray_cluster: None
) -> None:
    config = math_config().learners(num_learners=2, num_cpus_per_learner=0.5)
    taken = tmp_path / "taken"
    taken.write_text("a file")

    def spoil(learner: Any) -> dict[str, Any]:
        # One learner's gradients alone: the sum over both is what is not finite.
        if torch.distributed.get_rank() == 1:
            weight = learner._policy.model.norm.weight
            weight.register_hook(lambda grad: grad * math.nan)
        return {name: p.numpy().copy() for name, p in named(learner)}

    def named(learner: Any) -> Any:
        return learner._policy.state_dict().items()

    def unchanged(learner: Any, before: dict[str, Any]) -> bool:
        return all((p.numpy() == before[name]).all() for name, p in named(learner))

    with built(config) as algo:
        learners = algo.learner_group
        with pytest.raises(OSError, match="taken"):
            algo.export_policy(taken / "policy")
        before = [result.get() for result in learners.foreach_learner(spoil)]
        with pytest.raises(NonFiniteLossError, match=r"mini-batch 1 of 1"):
            algo.train()
        # RLlib takes learners that have raised out of service.
        results = learners.foreach_learner(
            unchanged, before=before[0], healthy_only=False
        )
        assert [result.get() for result in results] == [True, True]
