"""Every setting of RLlib's acts, is refused by name, or is neutral in RLlib itself."""

import re
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.framework import get_device

from pure_rllib.algorithms import GRPOConfig, PUREConfig
from pure_rllib.algorithms.rllib_settings import (
    ACTS,
    NEUTRAL,
    REFUSALS,
    attribute,
    is_deprecated,
    setters,
    table,
)
from pure_rllib.cli.settings import SECTIONS, make_config

TESTS = Path(__file__).resolve().parents[1]
REFUSED = [name for refusal in REFUSALS for name in refusal.names.split()]
# Their setters take values of some kinds only.
VALUES: dict[str, Any] = {
    "batch_mode": "complete_episodes",
    "policies": {"a": (None, None, None, {})},
    "policies_to_train": ["default_policy"],
    "grad_clip_by": "value",
    "rollout_fragment_length": 10,
    "evaluation_duration_unit": "timesteps",
    "gym_env_vectorize_mode": "async",
    "framework": "tf2",
    "is_atari": True,
    "model": {"fcnet_hiddens": [8]},
    "optimizer": {"type": "sgd"},
    "input_config": {"paths": "folder"},
    "algorithm_config_overrides_per_module": {"default_policy": {"lr": 1.0}},
}


def config() -> PUREConfig:
    return PUREConfig().environment("pure_rllib/Arithmetic-v0")


def arguments() -> dict[str, str]:
    """Every argument of RLlib's setters that is not deprecated, with its setter."""
    return {
        name: setter
        for setter, found in setters().items()
        for name, argument in found.items()
        if not is_deprecated(argument)
    }


def test_every_argument_of_every_setter_is_in_the_table_once() -> None:
    neutral = [name for names in NEUTRAL.values() for name in names.split()]
    acts = [name for names in ACTS.values() for name in names.split()]
    listed = [*REFUSED, *neutral, *acts]
    assert sorted(listed) == sorted(arguments()), "say what becomes of it"
    assert {"environment", "training", "offline_data", "experimental"} <= set(setters())


@pytest.mark.parametrize("test", ACTS)
def test_what_acts_names_a_test_that_exists(test: str) -> None:
    file, _, function = test.partition("::")
    assert f"\ndef {function}(" in (TESTS / file).read_text()


def changed(name: str) -> Any:
    """Another value than the default of a setting."""
    default = vars(config())[attribute(name, vars(config()))]
    if name in VALUES:
        return VALUES[name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    return "changed"


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_nothing_reads_is_refused_by_name(name: str) -> None:
    made, value = config(), changed(name)
    key, message = attribute(name, vars(made)), rf"^`{name}` \(.*\) must be .*because "
    # As Tune and `from_dict` set them; the setters check some themselves.
    setattr(made, key, value)
    with pytest.raises(ValueError, match=message):
        made.validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"env_runners": {"explore": False}},
            r"`explore` \(False\) must be True, because .* teaches nothing.*Lower `",
        ),
        (
            {"training": {"optimizer": {"type": "sgd"}}},
            r"`optimizer` \({'type': 'sgd'}\) must be left out, .*AdamW\. Set `",
        ),
        (
            {"environment": {"clip_rewards": True}},
            r"`clip_rewards` \(True\) must be left out, because .*hack_caps",
        ),
        (
            {"env_runners": {"num_envs_per_env_runner": 4}},
            r"`num_envs_per_env_runner` \(4\) must be 1, because .*num_prompts",
        ),
        (
            {"env_runners": {"env_to_module_connector": "foo"}},
            r"`env_to_module_connector` \(\"foo\"\) must be left out.*learner_conn",
        ),
    ],
)
@pytest.mark.parametrize("made", [config, GRPOConfig])
def test_the_message_says_why_and_what_to_do(
    made: Any, change: dict[str, dict[str, Any]], message: str
) -> None:
    in_python = made()
    for setter, values in change.items():
        getattr(in_python, setter)(**values)
    with pytest.raises(ValueError, match=message):
        in_python.validate()
    with pytest.raises(ValueError, match=message):
        make_config("PURE", change, validate=True)


def test_what_is_neutral_is_accepted() -> None:
    for names in NEUTRAL.values():
        for name in names.split():
            if name == "exploration_config":
                continue  # RLlib refuses it
            made, value = config(), changed(name)
            if value != "changed":
                setattr(made, attribute(name, vars(made)), value)
                made.validate()


def test_defaults_may_be_written_down() -> None:
    written = {
        section: {
            name: vars(config())[attribute(name, vars(config()))]
            for name, argument in setters()[section].items()
            if name in REFUSED and not is_deprecated(argument)
        }
        for section in SECTIONS
    }
    for section in SECTIONS:
        made = config()
        getattr(made, section)(**written[section])
        made.validate()


@pytest.mark.parametrize(
    ("setter", "values", "message"),
    [
        (
            "env_runners",
            {"env_runner_cls": SingleAgentEnvRunner},
            r"`env_runner_cls` \(SingleAgentEnvRunner\) must be a subclass of "
            r"`LLMEnvRunner`, because",
        ),
        (
            "learners",
            {"learner_class": TorchLearner},
            r"`learner_class` \(TorchLearner\) must be a subclass of `LLMTorchLearner`",
        ),
        (
            "rl_module",
            {"rl_module_spec": RLModuleSpec(module_class=TorchRLModule)},
            r"`rl_module_spec.module_class` \(TorchRLModule\) must be a subclass of",
        ),
        (
            "rl_module",
            {
                "rl_module_spec": MultiRLModuleSpec(
                    rl_module_specs={"p0": RLModuleSpec()}
                )
            },
            r"`rl_module_spec` \(modules p0\) must hold none but `default_policy`",
        ),
    ],
)
def test_classes_of_another_kind_are_refused(
    setter: str, values: dict[str, Any], message: str
) -> None:
    made = config()
    getattr(made, setter)(**values)
    with pytest.raises(ValueError, match=message):
        made.validate()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"lr": 1.0}, r"`evaluation_config` must not change `lr` \(1\.0\), because"),
        ({"explore": False}, r"must not change `explore` \(False\).* greedy response"),
        (
            {"temperature": 0.0},
            r"`evaluation_config\.temperature` \(0\.0\) must be > 0",
        ),
        ({"top_p": 2}, r"`evaluation_config\.top_p` \(2\) must be <= 1"),
    ],
)
def test_evaluation_differs_in_sampling_only(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config().evaluation(evaluation_config=own).validate()
    with pytest.raises(ValueError, match=message):
        settings = {"evaluation": {"evaluation_config": own}}
        make_config("PURE", settings, validate=True)


def test_settings_for_evaluation_that_are_trainings_change_nothing() -> None:
    made = config().evaluation(
        evaluation_config=PUREConfig.overrides(temperature=0.3, lr=1e-6, explore=True)
    )
    made.validate()
    assert made.evaluation_overrides() == {"temperature": 0.3}
    assert made.get_evaluation_config_object().temperature == 0.3


def test_validation_can_be_switched_off() -> None:
    made = config().env_runners(explore=False).experimental(_validate_config=False)
    made.validate()


def test_resources_are_what_a_trial_asks_for() -> None:
    made = (
        config()
        .env_runners(
            num_env_runners=1,
            num_cpus_per_env_runner=2,
            num_gpus_per_env_runner=0.5,
            custom_resources_per_env_runner={"sampling": 1},
        )
        .learners(
            num_learners=1,
            num_cpus_per_learner=3,
            num_gpus_per_learner=1,
            custom_resources_per_learner={"learning": 1},
        )
        .resources(
            num_cpus_for_main_process=4,
            custom_resources_for_main_process={"main": 1},
            placement_strategy="SPREAD",
        )
    )
    request = made.algo_class.default_resource_request(made)
    assert request.strategy == "SPREAD"
    assert request.bundles == [
        {"CPU": 4, "main": 1},
        {"CPU": 2, "GPU": 0.5, "sampling": 1},
        {"CPU": 3, "GPU": 1, "learning": 1},
    ]


@pytest.mark.slow
def test_a_gpu_is_chosen_by_its_index() -> None:
    made = config().learners(local_gpu_idx=99)
    with pytest.raises(AssertionError, match="local_gpu_idx 99 is not a valid GPU"):
        get_device(made, num_gpus_requested=1)


def test_the_page_has_the_table() -> None:
    page = (TESTS.parent / "docs" / "rllib.md").read_text("utf-8")
    assert table() in page, "write `rllib_settings.table()` there"
    assert re.search(r"\| `explore` \| refused: ", page)
