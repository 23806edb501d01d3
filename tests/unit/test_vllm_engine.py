"""What is decided about a vLLM engine without importing vLLM."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from pure_rllib.algorithms import PUREConfig
from pure_rllib.generation.vllm_engine import (
    _cpu_kv_cache_bytes,
    _whole_prompts,
    check_engine_settings,
    check_vllm_installed,
    parameter_sizes,
)
from pure_rllib.generation.vllm_generator import check_vllm_sampling, engine_seed
from pure_rllib.testing import tiny_model_config

with_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed: not run (make engines)",
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, r"must not hold `seed` \(1\), because every prompt brings"),
        ({"load_format": "auto"}, "must not hold `load_format`"),
        ({"logits_processors": []}, "computes log-probabilities without them"),
        pytest.param(
            {"gpu_memory_use": 0.5},
            r"must not hold `gpu_memory_use` \(0.5\).*nearest: gpu_memory_utilization",
            marks=with_vllm,
        ),
    ],
)
def test_settings_that_are_not_vllms_or_ours_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        check_engine_settings(settings)


@with_vllm
def test_settings_have_vllms_names_and_importing_it_is_not_needed():
    imported = "vllm" in sys.modules
    check_engine_settings(
        {
            "gpu_memory_utilization": 0.5,
            "tensor_parallel_size": 2,
            "max_model_len": 1024,
            "enforce_eager": True,
            "dtype": "bfloat16",
            "kv_cache_memory_bytes": 2**28,
            "quantization": "fp8",
            "attention_backend": "FLASH_ATTN",
        }
    )
    assert ("vllm" in sys.modules) == imported


@pytest.mark.parametrize(
    ("temperature", "top_p", "message"),
    [
        (0.005, 1.0, r"`temperature` \(0.005\) must be 0.0 or lie in \[0.01, 2.0\]"),
        (2.5, 1.0, r"`temperature` \(2.5\)"),
        (float("nan"), 1.0, "`temperature`"),
        (0.7, 0.9, r"`top_p` \(0.9\) must be 1.0 with a `temperature` \(0.7\)"),
    ],
)
def test_sampling_that_vllm_cannot_do_is_refused(temperature, top_p, message):
    with pytest.raises(ValueError, match=message):
        check_vllm_sampling(temperature, top_p)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(0.0, 1.0), (0.0, 0.9), (1.0, 0.9), (0.7, 1.0)]
)
def test_sampling_that_vllm_can_do_is_let_through(temperature, top_p):
    check_vllm_sampling(temperature, top_p)


def vllm_config() -> PUREConfig:
    config = PUREConfig().environment("pure_rllib/Arithmetic-v0")
    return config.env_runners(generator="vllm")


def test_a_missing_vllm_is_found_before_anything_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    for check in (check_vllm_installed, vllm_config().validate):
        with pytest.raises(ValueError, match=r"pure-rllib\[vllm\].*make engines"):
            check()


@with_vllm
def test_a_configuration_is_checked_for_its_generator():
    config = vllm_config().env_runners(generator_kwargs={"max_batch_size": 8})
    with pytest.raises(ValueError, match=r"`max_batch_size`.*generator `vllm` takes"):
        config.validate()
    config.env_runners(generator_kwargs={}, temperature=0.7, top_p=0.9)
    with pytest.raises(ValueError, match="`top_p`"):
        config.validate()


def test_the_cache_on_a_cpu_holds_all_sequences_up_to_a_limit():
    config = SimpleNamespace(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        hidden_size=128,
        head_dim=None,
    )
    # 256 sequences of 150 tokens are 512 blocks of 128 tokens, and one is vLLM's own;
    # a token takes 2 layers x 1 head x 32 numbers x 4 bytes, for keys and for values.
    assert _cpu_kv_cache_bytes(config, 150, 256) == 513 * 128 * 2 * 32 * 4 * 2
    assert _cpu_kv_cache_bytes(config, 100_000, 256) == 2**30


def test_tied_parameters_have_one_name():
    tied, untied = (
        parameter_sizes(
            tiny_model_config(32, tie_word_embeddings=tied), trust_remote_code=False
        )
        for tied in (True, False)
    )
    assert set(untied) - set(tied) == {"lm_head.weight"}
    assert tied["model.embed_tokens.weight"] == untied["lm_head.weight"]


def test_seeds_of_neighbouring_prompts_do_not_meet():
    seeds = [engine_seed(seed) for seed in [*range(1000), -1, 2**64 + 5]]
    assert all(0 <= seed < 2**62 for seed in seeds)
    # Response g of a prompt is given the prompt's seed plus g.
    gaps = [b - a for a, b in zip(sorted(seeds), sorted(seeds)[1:], strict=False)]
    assert min(gaps) > 10_000
    assert engine_seed(7) == engine_seed(7)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 4096),
        ({"max_model_len": 9000}, 9000),
        ({"max_num_seqs": 8192}, 8192),
        ({"max_num_batched_tokens": 128}, 128),
    ],
)
def test_on_a_cpu_no_prompt_is_taken_in_parts(settings, expected):
    assert _whole_prompts({"max_model_len": 128, **settings}) == {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": expected,
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "enable_chunked_prefill",
            True,
            r"\(True\) must be False on a CPU",
        ),
        ("long_prefill_token_threshold", 64, r"\(64\) must be 0 on a CPU"),
        ("max_num_batched_tokens", 127, r"\(127\) must be >= 128 on a"),
    ],
)
def test_settings_that_ask_for_parts_of_prompts_are_refused(name, value, message):
    with pytest.raises(ValueError, match=f"`generator_kwargs.{name}` {message}"):
        _whole_prompts({"max_model_len": 128, name: value})
