"""What is checked of vLLM's settings before vLLM is imported."""

import sys

import pytest

from pure_rllib.algorithms import PUREConfig
from pure_rllib.generation.vllm_settings import (
    check_engine_settings,
    check_vllm_installed,
    check_vllm_sampling,
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpu_mem": 0.5}, r"unknown keys \['gpu_mem'\].*gpu_memory_utilization"),
        ({"seed": 1}, r"must not hold `seed` \(1\), because every prompt brings"),
        ({"load_format": "auto"}, "must not hold `load_format`"),
        ({"max_num_seqs": 0}, r"max_num_seqs` \(0\) must be a whole number >= 1"),
        ({"tensor_parallel_size": True}, "must be a whole number >= 1"),
        ({"enforce_eager": "yes"}, r"enforce_eager` \('yes'\) must be True or False"),
        ({"gpu_memory_utilization": 1.5}, r"\(1.5\) must lie in \(0, 1\]"),
        ({"gpu_memory_utilization": "all"}, "must lie in"),
        ({"dtype": "int8"}, r"dtype` \('int8'\) must be one of"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        check_engine_settings(settings)


def test_settings_have_vllms_names():
    check_engine_settings(
        {
            "gpu_memory_utilization": 0.5,
            "tensor_parallel_size": 2,
            "max_model_len": 1024,
            "enforce_eager": True,
            "dtype": "bfloat16",
            "kv_cache_memory_bytes": 2**28,
        }
    )


@pytest.mark.parametrize(
    ("temperature", "top_p", "message"),
    [
        (0.005, 1.0, r"`temperature` \(0.005\) must be 0.0 or lie in \[0.01, 2.0\]"),
        (2.5, 1.0, r"`temperature` \(2.5\)"),
        (float("nan"), 1.0, "`temperature`"),
        (1.0, 0.0, r"`top_p` \(0.0\) must lie in \(0, 1\]"),
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


def test_a_missing_vllm_is_found_before_anything_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pure-rllib\[vllm\].*make engines"):
        check_vllm_installed()
    config = PUREConfig().environment("pure_rllib/Arithmetic-v0")
    with pytest.raises(ValueError, match=r"pure-rllib\[vllm\].*make engines"):
        config.env_runners(generator="vllm").validate()


def test_a_configuration_is_checked_for_its_generator():
    config = PUREConfig().environment("pure_rllib/Arithmetic-v0")
    config.env_runners(generator="vllm", generator_kwargs={"max_batch_size": 8})
    with pytest.raises(ValueError, match=r"\['max_batch_size'\].*`vllm` takes"):
        config.validate()
    config.env_runners(generator_kwargs={}, temperature=0.7, top_p=0.9)
    with pytest.raises(ValueError, match="`top_p`"):
        config.validate()
