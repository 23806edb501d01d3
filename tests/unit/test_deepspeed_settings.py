"""Settings of DeepSpeed: what is refused, before anything is loaded."""

from typing import Any

import pytest

from pure_rllib.algorithms import PUREConfig
from pure_rllib.cli.experiment import load_experiment
from pure_rllib.learners import deepspeed_settings
from pure_rllib.learners.deepspeed_learner import default_sizes, engine_config
from pure_rllib.learners.torch_learner import LLMTorchLearner
from pure_rllib.testing import tiny_model_config


def config(deepspeed: Any, num_learners: int = 2) -> PUREConfig:
    return (
        PUREConfig()
        .environment("pure_rllib/Arithmetic-v0")
        .rl_module(model_config={"model": tiny_model_config(32)})
        .learners(num_learners=num_learners, deepspeed=deepspeed)
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were there; our own rules need no DeepSpeed."""
    monkeypatch.setattr(deepspeed_settings, "find_spec", lambda name: object())


@pytest.fixture
def really_installed() -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")


def test_without_deepspeed_learners_hold_replicas() -> None:
    made = config(None)
    made.validate()
    assert made.get_default_learner_class() is LLMTorchLearner


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lora", {"r": 4}, "must be left out with `deep"),
        ("autocast_dtype", "bfloat16", "must be left out with `deep"),
        ("dtype", "float16", r"\(\"float16\"\) must be .*bfloat16.* loss scaling"),
    ],
)
def test_what_does_not_go_with_deepspeed(
    installed: None, name: str, value: object, message: str
) -> None:
    made = config({"stage": 2})
    made.rl_module(model_config={**made.model_config, name: value})
    with pytest.raises(ValueError, match=f"`{name}` .*{message}"):
        made.validate()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_chooses_the_learner(really_installed: None, stage: int) -> None:
    made = config({"stage": stage, "offload_optimizer": {"device": "cpu"}})
    made.validate()
    assert made.get_default_learner_class().__name__ == "DeepSpeedLearner"
    again = PUREConfig.from_dict(dict(made.to_dict()))
    assert again.deepspeed == made.deepspeed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("zero2", r"`deepspeed` \('zero2'\) must be a mapping"),
        ({}, r"`stage` \(None\) .*must be 1, 2 or 3.*For replicas, leave"),
        ({"stage": 0}, r"`stage` \(0\) .*For replicas, leave `deepspeed` out"),
        ({"stage": 1, "allgather_bucket_size": 7}, r"\(7\) .*must be even.*Add 1"),
        ({"stage": True}, r"`stage` \(True\)"),
        (
            {"stage": 2, "offload_param": {"device": "cpu"}},
            r"`offload_param` .* has no effect with stage 2: it belongs to stage 3",
        ),
        (
            {"stage": 1, "stage3_prefetch_bucket_size": 5},
            r"`stage3_prefetch_bucket_size` \(5\).* no effect with stage 1",
        ),
        ({"stage": 3, "round_robin_gradients": True}, r"belongs to stage 1 or 2"),
        (
            {"stage": 2, "compute_grad_norm": False},
            r"`compute_grad_norm` \(False\) .* must be left out, because .*clipped",
        ),
        (
            {"stage": 3, "offload_param": {"device": "nvme"}},
            r"`device` \('nvme'\) of `offload_param` must be .*cpu.*none",
        ),
    ],
)
def test_what_cannot_work_here(installed: None, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(settings).validate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stge": 1}, r"`stge` \(1\) of `deepspeed` .*zero_optimization"),
        ({"gradient_clipping": 1.0}, r"`gradient_clipping` \(1\.0\).*follow from"),
        ({"reduce_bucket_size": 0.5}, r"`reduce_bucket_size` \(0\.5\).*integer"),
        ({"overlap_comm": "often"}, r"`overlap_comm` \('often'\).*boolean"),
        ({"offload_optimizer": "cpu"}, r"`offload_optimizer` \('cpu'\).*dictionary"),
        (
            {"offload_optimizer": {"device": "cpu", "pin": 1}},
            r"`offload_optimizer\.pin` \(1\)",
        ),
    ],
)
def test_what_deepspeed_refuses(
    really_installed: None, settings: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config({"stage": 2, **settings}).validate()


def test_other_settings_are_handed_on(really_installed: None) -> None:
    settings = {"stage": 2, "reduce_bucket_size": 5e8, "parameter_alignment": True}
    config(settings).validate()
    made = engine_config(settings, num_parameters=1, grad_clip=1.0, is_bfloat16=False)
    assert made["zero_optimization"].items() >= settings.items()


def test_a_local_learner_cannot_partition(installed: None) -> None:
    with pytest.raises(ValueError, match=r"`num_learners` \(0\) must be >= 1 with"):
        config({"stage": 2}, num_learners=0).validate()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_settings, "find_spec", lambda name: None)
    message = r"`pure-rllib\[deepspeed\]`, or run `make engines`"
    with pytest.raises(ValueError, match=message):
        config({"stage": 2}).validate()


def test_the_command_line_sets_a_stage(installed: None) -> None:
    experiment = load_experiment("arithmetic").with_overrides(
        ["learners.num_learners=2", "learners.deepspeed.stage=2"]
    )
    made = experiment.build_config()
    assert (made.num_learners, made.deepspeed) == (2, {"stage": 2})


def test_the_engine_follows_the_other_settings(really_installed: None) -> None:
    settings = {"stage": 2, "reduce_bucket_size": 1000, "offload_optimizer": None}
    made = engine_config(settings, num_parameters=1, grad_clip=None, is_bfloat16=True)
    assert made["gradient_clipping"] == 0.0
    assert made["bf16"]["enabled"] is True
    assert made["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 1000,
        "allgather_bucket_size": 1_000_000,
    }
    made = engine_config(settings, num_parameters=1, grad_clip=0.5, is_bfloat16=False)
    assert made["gradient_clipping"] == 0.5 and made["bf16"]["enabled"] is False


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sizes_follow_the_policy_up_to_deepspeeds_own(
    really_installed: None, stage: int
) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    assert set(default_sizes(stage, 100_000_000).values()) == {10_000_000}
    assert set(default_sizes(stage, 27_000_019).values()) == {2_700_000}
    own = DeepSpeedZeroConfig().model_dump(by_alias=True).items()
    assert default_sizes(stage, 10**12).items() <= own
