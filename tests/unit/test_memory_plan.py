"""The memory plan: against published shapes, measured tensors, and as users see it."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from pure_rllib.algorithms import RLOOConfig
from pure_rllib.algorithms.memory import RunPlan
from pure_rllib.cli.experiment import EXAMPLES, load_experiment
from pure_rllib.cli.main import main
from pure_rllib.cli.plan import plan_of
from pure_rllib.models.loading import load_policy
from pure_rllib.models.memory_plan import (
    GIB,
    USABLE,
    MemorySettings,
    ModelSize,
    plan_memory,
)
from pure_rllib.testing import tiny_model_config
from tests.unit.conftest import qwen2_5

# Weights and KV cache in GiB; then full, 8-bit Adam, Adam on the CPU, LoRA: the peak
# while learning, and while sampling. 16k tokens in a pass, 256 x 1k in the cache.
TABLE = {
    "0.5B": (0.9, 3, (13, 10, 7, 5), (12, 10, 7, 7)),
    "1.5B": (2.9, 7, (32, 23, 15, 8), (32, 23, 15, 15)),
    "3B": (5.7, 9, (60, 42, 25, 12), (57, 40, 22, 22)),
    "7B": (14.2, 14, (139, 96, 54, 23), (129, 87, 44, 44)),
}
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"adam_bytes": 2},
    {"offload_optimizer": True},
    {"lora_rank": 16},
)


@pytest.mark.parametrize("name", TABLE)
def test_a_plan_has_the_numbers_that_can_be_worked_out_by_hand(name):
    weights, kv_cache, learning, sampling = TABLE[name]
    size = ModelSize.of(qwen2_5(name))
    assert size.parameters * 2 / GIB == pytest.approx(weights, abs=0.06)
    for way, learn, sample in zip(WAYS, learning, sampling, strict=True):
        settings = MemorySettings(size, checkpointing=True, kv_tokens=256 * 1024, **way)
        phases = plan_memory(settings)
        assert phases["sample"].kv_cache / GIB == pytest.approx(kv_cache, abs=0.5)
        assert phases["learn"].total / GIB == pytest.approx(learn, abs=1), way
        assert phases["sample"].total / GIB == pytest.approx(sample, abs=1), way
        if "offload_optimizer" in way:
            assert phases["learn"].ram == 12 * size.parameters


@pytest.mark.parametrize(
    ("stage", "held", "at_step"),
    # Bytes per parameter that benchmarks/zero_memory.py found with two learners in
    # bfloat16, of 100 million before a step: 1726, 1342, 958 and 882 MiB.
    [(0, 14, 18), (1, 8, 14), (2, 8, 10), (3, 7, 9)],
)
def test_zero_shares_what_its_stage_says(stage, held, at_step):
    size = replace(ModelSize.of(tiny_model_config(32)), parameters=10**8)
    settings = MemorySettings(size, zero_stage=stage, num_learners=2, is_shared=False)
    learn = plan_memory(settings)["learn"]
    assert learn.weights + learn.optimizer == held * 10**8
    assert learn.weights + learn.optimizer + learn.gradients == at_step * 10**8


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_activations_are_those_that_a_pass_keeps(model_type):
    config = tiny_model_config(
        32,
        model_type=model_type,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
    )
    policy, num_tokens = load_policy(config), 128
    weights = {p.data_ptr() for p in policy.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(1, num_tokens, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = policy.model(input_ids=ids, use_cache=False)[0]
    settings = MemorySettings(
        ModelSize.of(config), dtype="float32", pass_tokens=num_tokens
    )
    planned = plan_memory(settings)["learn"].activations
    assert sum(kept.values()) == pytest.approx(planned, rel=0.15)
    del hidden


def config_of(**model_config: Any) -> RLOOConfig:
    model: dict[str, Any] = {"model": qwen2_5("1.5B"), **model_config}
    return (
        RLOOConfig()
        .env_runners(num_prompts=32, group_size=8)
        .rl_module(model_config=model)
        .training(kl_coeff=0.01)
    )


def plan(config: RLOOConfig) -> RunPlan:
    return RunPlan.of(config, max_prompt_tokens=256, max_response_tokens=768)


def test_a_plan_that_does_not_fit_is_refused_with_what_would_help():
    crowded = plan(config_of())
    with pytest.raises(ValueError, match=r"more memory free than 38\.0") as it:
        crowded.check(38 * GIB)
    message = str(it.value)
    assert crowded.table() in message
    for change in (
        "colocate=true",
        "dtype=bfloat16",
        "checkpointing=true",
        "lora.r=16",
    ):
        assert change in message
    peaks = [peak for _, peak in crowded.what_helps()]
    assert peaks == sorted(peaks) and peaks[-1] < crowded.peak[1]
    better = config_of(dtype="bfloat16", gradient_checkpointing=True)
    better.env_runners(generator="vllm", colocate=True).training(kl_coeff=0.0)
    plan(better).check(38 * GIB)


def test_settings_are_read_as_the_run_reads_them():
    config = config_of(dtype="bfloat16", lora={"r": 4})
    config.env_runners(generator="vllm", generator_kwargs={"max_num_seqs": 64})
    settings = plan(config).settings
    # 64 sequences of 1,024 tokens, and one block of vLLM's own.
    assert settings.kv_tokens == 64 * 1024 + 16
    assert (settings.lora_rank, settings.has_reference) == (4, False)
    assert (settings.is_shared, settings.sleeps) == (True, False)
    assert plan(config).phases["learn"].kv_cache > 0
    assert plan(config_of()).phases["learn"].kv_cache == 0  # freed with each call
    config.training(micro_batch_tokens=100)
    assert plan(config).settings.pass_tokens == 1024  # a row alone
    config.environment(env_config={"prm": qwen2_5("0.5B")})
    scored = plan(config)
    assert set(scored.phases) == {"learn", "sample", "score"}
    assert scored.phases["learn"].scorers == 4 * scored.settings.scorers[0].parameters
    encoder = {**qwen2_5("0.5B"), "model_type": "bert"}
    config.environment(env_config={"prm": encoder})
    assert plan(config).settings.scorers[0].parameters > 10**8
    config.learners(num_learners=2, deepspeed={"stage": 3}).env_runners(
        num_env_runners=4, num_prm_actors=1
    )
    apart = plan(config)
    assert set(apart.phases) == {"learn", "sample"}
    assert apart.phases["learn"].engine == apart.phases["sample"].weights == 0


def test_the_command_prints_the_plan_and_says_whether_it_fits(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"""
mine:
  run: RLOO
  stop: {{training_iteration: 1}}
  config:
    environment:
      env: pure_rllib/Math-v0
      env_config:
        problems: "REQUIRED: prompts"
        tokenizer: none
        max_prompt_tokens: 256
        max_response_tokens: 768
    rl_module: {{model_config: {{model: {qwen2_5("0.5B")}, dtype: bfloat16}}}}
"""
    )
    assert main(["plan", str(file), "--gpu-gib", "8"]) == 1
    printed = capsys.readouterr().out
    assert "which does not fit into 7.6" in printed and "lora.r=16" in printed
    assert main(["plan", str(file), "--gpu-gib", "80"]) == 0
    assert "The peak is in `learn`" in capsys.readouterr().out
    assert main(["plan", str(file), "--gpu-gib", "0"]) == 2


@pytest.mark.parametrize(
    ("name", "size", "card"),
    [
        ("math_0_5b_one_gpu", "0.5B", 24),
        ("math_1_5b_one_gpu", "1.5B", 40),
        ("math_3b_one_gpu", "3B", 80),
        ("math_7b_lora_one_gpu", "7B", 80),
    ],
)
def test_an_example_for_one_gpu_fits_its_card(name, size, card):
    experiment = load_experiment(name)
    text = (EXAMPLES / f"{name}.yaml").read_text()
    head = text.partition(f"\n{name}:")[0]
    shape = f"rl_module.model_config.model={json.dumps(qwen2_5(size))}"
    found = plan_of(experiment.with_overrides([shape]))
    assert found.settings.sleeps and found.peak[1] <= USABLE * card * GIB
    assert "not run: no GPU was at hand" in head
    assert f"{found.peak[1] / GIB:.1f} GiB at the peak" in head
    assert f"of {card} GB" in head and f"Qwen2.5-{size}" in str(experiment.config)
