"""When weights are sent, and when they lie in the object store."""

import importlib.util
from typing import Any

import pytest

from pure_rllib.algorithms import PUREConfig
from pure_rllib.algorithms.config_rules import check_weight_transport


def config(transport: str, gpus: float = 0, **changes: Any) -> PUREConfig:
    made = PUREConfig().environment("pure_rllib/Arithmetic-v0")
    made.env_runners(generator="vllm", num_env_runners=2, num_gpus_per_env_runner=gpus)
    made.learners(num_learners=1, num_gpus_per_learner=gpus, weight_transport=transport)
    for name, value in changes.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("transport", "gpus", "changes", "is_sent"),
    [
        ("auto", 0, {}, False),
        ("auto", 1, {}, True),
        ("auto", 1, {"generator_kwargs": {"tensor_parallel_size": 2}}, True),
        # NCCL does not connect a GPU with itself.
        ("auto", 0.5, {}, False),
        ("auto", 1, {"num_gpus_per_learner": 0}, False),
        ("auto", 1, {"num_learners": 0}, False),
        ("auto", 1, {"num_env_runners": 0}, False),
        ("auto", 1, {"generator": "transformers"}, False),
        ("files", 1, {}, False),
        ("broadcast", 1, {}, True),
    ],
)
def test_the_transport_that_fits(
    transport: str, gpus: float, changes: dict[str, Any], is_sent: bool
) -> None:
    made = config(transport, gpus, **changes)
    check_weight_transport(made)
    assert (made.weight_backend() is not None) == is_sent


@pytest.mark.parametrize(
    ("gpus", "changes", "message"),
    [
        (0, {"generator": "transformers"}, r'`generator` \("transformers"\)'),
        (0, {"num_env_runners": 0}, r"`num_env_runners` \(0\).*env_runners\(num_env"),
        (0, {"num_learners": 0}, r"`num_learners` \(0\).*learners\(num_learners=1\)"),
        (0, {}, r"whole GPUs: `num_gpus_per_learner` \(0\).*weight_transport=\"files"),
        (1, {"num_gpus_per_learner": 0}, r"`num_gpus_per_learner` \(0\)"),
        (0.5, {}, r"`num_gpus_per_env_runner` \(0.5\)"),
    ],
)
def test_weights_that_cannot_be_sent(
    gpus: float, changes: dict[str, Any], message: str
) -> None:
    made = config("broadcast", gpus, **changes)
    with pytest.raises(ValueError, match=f'`weight_transport`.*"broadcast".*{message}'):
        check_weight_transport(made)
    made.weight_transport = "auto"
    check_weight_transport(made)


@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed: not run (make engines)",
)
def test_settings_are_validated() -> None:
    config("broadcast", 1).validate()
    with pytest.raises(ValueError, match=r"`weight_transport` \('ray'\) must be one"):
        config("ray").validate()
    with pytest.raises(ValueError, match="`num_learners`"):
        config("broadcast", num_learners=0).validate()
