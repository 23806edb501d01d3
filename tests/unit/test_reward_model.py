"""Reward models of whole responses: their numbers, and what is made of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
)

from pure_rllib.algorithms.config_rules import check_against_env
from pure_rllib.algorithms.grpo.grpo import GRPOConfig
from pure_rllib.algorithms.pure.pure import PUREConfig
from pure_rllib.algorithms.rloo.rloo import RLOOConfig
from pure_rllib.data.problems import Problem
from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.envs.math_env import MathEnv
from pure_rllib.reporting.records import ResponseNumbers
from pure_rllib.rewards.base import FunctionScorer, ScoringRequest
from pure_rllib.rewards.reward_model import RewardModel
from pure_rllib.rollouts.env_summary import EnvSummary
from pure_rllib.rollouts.group import has_signal
from pure_rllib.rollouts.runner_sample import judge_counts
from pure_rllib.testing import byte_tokenizer, tiny_model_config
from tests.tokenizer_families import FAMILIES

CHAT = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def classifier(vocab_size: int, kind: Any = Qwen2Config, **settings: Any) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "num_labels": 1,
        **settings,
    }
    if kind is not BertConfig and kind is not GPT2Config:
        sizes["num_key_value_heads"] = 2
    torch.manual_seed(0)
    config = kind(vocab_size=vocab_size, **sizes)
    return AutoModelForSequenceClassification.from_config(config).eval()


def request(prompt: str, response: str, **more: Any) -> ScoringRequest:
    ids = np.arange(3)
    return ScoringRequest(
        prompt, None, ids, ids, np.array([[0, 3]]), (response,), **more
    )


REQUESTS = [
    request("2+3?", "5"),
    request("Say something long about cups.", "Two cups hold 3 each."),
    request("?", ""),
    request("2+3?", "5"),
]


def alone(model: Any, ids: list[int]) -> float:
    """What transformers itself says of one text, without any padding."""
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


@pytest.mark.parametrize("pad", [None, 0])
@pytest.mark.parametrize("kind", [Qwen2Config, LlamaConfig, GPT2Config])
@pytest.mark.parametrize("name", ["gpt2", "llama3", "mistral"])
def test_numbers_are_those_of_transformers(name: str, kind: Any, pad: Any) -> None:
    tokenizer = FAMILIES[name]()
    model = classifier(len(tokenizer), kind, pad_token_id=pad)
    template = PromptTemplate("Q: {problem}\nA: ")
    rewards = RewardModel(model, tokenizer, prompt_template=template)
    found = [float(number) for (number,) in rewards.score(REQUESTS)]
    writes_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    for one, number in zip(REQUESTS, found, strict=True):
        text = f"Q: {one.prompt}\nA: {one.step_texts[0]}"
        ids = tokenizer(text, add_special_tokens=writes_bos)["input_ids"]
        assert number == pytest.approx(alone(model, ids), abs=1e-4)
    assert len(set(found)) == 3 and model.config.pad_token_id == pad


def test_a_text_that_ends_with_the_padding_token_is_read_as_transformers_does() -> None:
    tokenizer = byte_tokenizer(["<|im_end|>"])
    tokenizer.chat_template = CHAT
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for pad in (end, None, 5, -1):
        model = classifier(len(tokenizer))
        model.config.pad_token_id = pad
        found = RewardModel(model, tokenizer).score(REQUESTS)
        for one, (number,) in zip(REQUESTS, found, strict=True):
            text = f"user:{one.prompt}<|im_end|>assistant:{one.step_texts[0]}<|im_end|>"
            expected = alone(model, tokenizer.encode(text))
            assert float(number) == pytest.approx(expected, abs=1e-4)


def test_a_conversation_is_shown_whole_and_texts_forge_no_turn() -> None:
    tokenizer = byte_tokenizer(["<|im_end|>"])
    tokenizer.chat_template = CHAT
    rewards = RewardModel(classifier(len(tokenizer)), tokenizer)
    history = ({"role": "system", "content": "Be kind."},)
    ids, _ = rewards._row(request("2?", "a<|im_end|>", history=history))
    text = "system:Be kind.<|im_end|>user:2?<|im_end|>assistant:a<|im_end|><|im_end|>"
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3


def test_added_tokens_that_part_no_turns_are_read_as_in_training() -> None:
    tokenizer = byte_tokenizer(["<|im_end|>", "<think>", "\\boxed{"])
    tokenizer.chat_template = CHAT
    rewards = RewardModel(classifier(len(tokenizer)), tokenizer)
    ids, _ = rewards._row(request("<think>?", "<think>2<|im_end|>\\boxed{2}"))
    end, think, box = tokenizer.convert_tokens_to_ids(
        ["<|im_end|>", "<think>", "\\boxed{"]
    )
    assert [ids.count(i) for i in (end, think, box)] == [2, 2, 1]


def test_a_tokenizer_of_pairs_is_shown_a_pair() -> None:
    tokenizer = FAMILIES["gpt2"]()
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[
            ("[CLS]", tokenizer.cls_token_id),
            ("[SEP]", tokenizer.sep_token_id),
        ],
    )
    model = classifier(len(tokenizer), BertConfig, pad_token_id=0)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    found = RewardModel(model, tokenizer).score(REQUESTS[:2])
    for one, (number,) in zip(REQUESTS, found, strict=False):
        pair = tokenizer(
            one.prompt,
            one.step_texts[0],
            return_tensors="pt",
            return_token_type_ids=True,
        )
        with torch.no_grad():
            expected = float(model(**pair).logits[0, 0])
        assert float(number) == pytest.approx(expected, abs=1e-4)


def test_a_text_over_the_context_keeps_its_end_and_is_counted() -> None:
    tokenizer = byte_tokenizer()
    model = classifier(len(tokenizer), max_position_embeddings=8)
    template = PromptTemplate()
    rewards = RewardModel(model, tokenizer, prompt_template=template)
    long, short = rewards.score(
        [request("x" * 20, "1234567890"), request("", "34567890")]
    )
    assert float(long[0]) == pytest.approx(float(short[0]), abs=1e-6)
    assert rewards.num_overlong == 1


def test_a_sigmoid_makes_probabilities_and_keeps_the_order() -> None:
    tokenizer = byte_tokenizer()
    model = classifier(len(tokenizer))
    raw = np.concatenate(RewardModel(model, tokenizer).score(REQUESTS))
    mapped = np.concatenate(
        RewardModel(model, tokenizer, map="sigmoid").score(REQUESTS)
    )
    np.testing.assert_allclose(mapped, 1 / (1 + np.exp(-raw)), atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, tokenizer = tmp_path_factory.mktemp("reward_model"), byte_tokenizer()
    classifier(len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_env(folder: Any, **settings: Any) -> MathEnv:
    tokenizer = byte_tokenizer()
    settings = {"problems": [Problem("2?"), Problem("3?")], **settings}
    return MathEnv(
        tokenizer=tokenizer,
        reward_model=str(folder),
        prompt_template="plain",
        **settings,
    )


def test_an_environment_of_prompts_alone_is_rated(folder: Path) -> None:
    env = make_env(folder)
    assert not env.has_verifiable_rewards, "no answers: there is no accuracy"
    response = np.array([*byte_tokenizer().encode("ab"), min(env.eos_token_ids)])
    problem, prompt = env.problems[0], env.encode_prompt(env.problems[0])
    (judged,), _ = env.judge.judge([problem], [prompt], [response])
    assert judged.verdict is None and judged.verifiable_reward is None
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = alone(model, byte_tokenizer().encode("2?ab"))
    assert judged.outcome_reward == pytest.approx(expected, abs=1e-5)
    env.reset(options={"problem": problem})
    for token in response:
        *_, info = env.step(token)
    assert info["model_reward"] == pytest.approx(expected, abs=1e-5)
    assert set(judged.final_info()) == set(info) - {"is_boundary", "step_span"}


def test_a_verifier_beside_it_is_measured_and_not_rewarded(folder: Path) -> None:
    env = make_env(folder, problems=[Problem("2?", "2")])
    assert env.has_verifiable_rewards
    response = np.array([*byte_tokenizer().encode("\\boxed{2}")])
    prompt = env.encode_prompt(env.problems[0])
    (judged,), _ = env.judge.judge([env.problems[0]], [prompt], [response])
    assert judged.verifiable_reward == 1.0
    assert judged.outcome_reward == judged.model_reward != 1.0


def broken(folder: Path, tmp_path: Path, **config: Any) -> Path:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "settings", "fragment"),
    [
        ({"id2label": {"0": "A", "1": "B"}}, {}, "must have one label"),
        ({"architectures": ["Qwen2ForCausalLM"]}, {}, "ForSequenceClassification"),
        ({"id2label": None, "num_labels": 3}, {}, "must have one label"),
        ({}, {"map": "tanh"}, "`map`"),
    ],
)
def test_what_is_no_reward_model_is_refused_before_it_is_loaded(
    folder: Path,
    tmp_path: Path,
    config: dict[str, Any],
    settings: dict[str, Any],
    fragment: str,
) -> None:
    with pytest.raises(ValueError, match=fragment):
        make_env(broken(folder, tmp_path, **config), reward_model_kwargs=settings)


def test_a_folder_without_a_tokenizer_is_refused_at_once(
    folder: Path, tmp_path: Path
) -> None:
    broken(folder, tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="tokenizer's files"):
        make_env(tmp_path)


def test_a_base_model_with_a_classifiers_config_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    broken(folder, tmp_path, architectures=None)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: w for name, w in weights.items() if "score" not in name},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"it lacks score\.weight"):
        RewardModel.from_pretrained(str(tmp_path))


def test_settings_that_do_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="colour"):
        make_env(folder, reward_model_kwargs={"colour": 1})
    with pytest.raises(ValueError, match="no effect without a `reward_model`"):
        MathEnv(
            tokenizer=byte_tokenizer(),
            problems=[Problem("2?")],
            prompt_template="plain",
            reward_model_kwargs={"map": "sigmoid"},
        )
    with pytest.raises(ValueError, match="there is no such folder"):
        make_env("./nowhere")


def test_only_algorithms_that_take_any_number_take_it_unmapped(folder: Path) -> None:
    for settings, is_refused in (({}, True), ({"map": "sigmoid"}, False)):
        env = make_env(folder, reward_model_kwargs=settings, max_prompt_tokens=8)
        env.max_response_tokens = 8
        summary = EnvSummary.of(env)
        assert "accuracy" in summary.absent_metrics
        assert "reward/model" not in summary.absent_metrics
        model = tiny_model_config(len(env.tokenizer))
        check_against_env(GRPOConfig(), summary, model)
        pure = PUREConfig().training(
            process_reward_coeff=0.0, verifiable_reward_coeff=1.0
        )
        if is_refused:
            with pytest.raises(ValueError, match=r"`reward_model_kwargs.map` \(None\)"):
                check_against_env(pure, summary, model)
        else:
            check_against_env(pure, summary, model)


def test_groups_learn_from_its_number_and_not_from_the_verdict() -> None:
    def numbers(model_reward: float) -> ResponseNumbers:
        return ResponseNumbers(
            group_id="a",
            num_tokens=2,
            step_spans=[(0, 2)],
            verifiable_reward=1.0,
            outcome="correct",
            model_reward=model_reward,
        )

    config = RLOOConfig()
    assert has_signal([numbers(2.5), numbers(-3.0)], config)
    # The last digits hang on what else is in a batch.
    assert not has_signal([numbers(2.5), numbers(2.5000001)], config)


def test_actors_hold_it_where_there_is_no_prm(folder: Path) -> None:
    judge = make_env(folder).judge
    assert judge.pooled_part == "reward_model"
    judge.step_scorer = FunctionScorer(lambda prompt, steps: [0.0] * len(steps))
    assert judge.pooled_part == "step_scorer"
    assert judge_counts(judge)["reward_model/overlong"] == 0
