"""Settings: defaults, setters, presets, and every rule of validation."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from pure_rllib.algorithms import PURE, PUREConfig, RiskPOConfig
from pure_rllib.algorithms.config_rules import check_against_env
from pure_rllib.algorithms.llm_config import RLLIB_RULES
from pure_rllib.credit.presets import PRESETS
from pure_rllib.rollouts.env_runner import LLMEnvRunner
from pure_rllib.rollouts.env_summary import EnvSummary
from pure_rllib.testing import tiny_model_config

Change = Callable[[PUREConfig], Any]


def config() -> PUREConfig:
    return PUREConfig().environment("pure_rllib/Arithmetic-v0")


def test_defaults() -> None:
    made = config()
    made.validate()
    assert made.algo_class is PURE
    assert made.env_runner_cls is LLMEnvRunner
    assert (made.num_prompts, made.group_size, made.temperature) == (16, 8, 1.0)
    assert (made.credit_assignment, made.credit_temperature) == ("min", 0.1)
    assert (made.process_reward_coeff, made.verifiable_reward_coeff) == (1.0, 1.0)
    assert made.kl_coeff == 0.0 and made.normalize_advantages is False
    assert made.groups_per_step is None
    assert (made.sample_timeout_s, made.collective_timeout_s) == (3600.0, 1800.0)
    assert made.model_config["with_reference"] is False


@pytest.mark.parametrize(
    "setter", ["env_runners", "training", "evaluation", "rl_module", "learners"]
)
def test_setters_reject_unknown_names(setter: str) -> None:
    with pytest.raises(TypeError, match="group_sizes"):
        getattr(config(), setter)(group_sizes=4)


def test_setters_chain_and_set_what_they_are_given_only() -> None:
    made = config().env_runners(group_size=4).training(lr=2e-6, baseline="step")
    assert isinstance(made, PUREConfig)
    assert (made.group_size, made.num_prompts) == (4, 16)
    assert (made.lr, made.baseline, made.gamma) == (2e-6, "step", 1.0)
    # None is a value of its own, not "leave it".
    made.training(clip_param_high=0.3).training(clip_param_high=None)
    made.env_runners(sample_timeout_s=None).validate()
    assert made.clip_param_high is None and made.sample_timeout_s is None


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_the_published_settings(preset: str) -> None:
    made = config().training(preset=preset).env_runners(max_response_tokens=64)
    made.validate()
    credit, published = made.credit_config(), PRESETS[preset]
    for name in ("baseline", "kl_coeff", "mask_separators", "loss_aggregation"):
        assert getattr(credit, name) == getattr(published, name)
    assert credit.max_response_tokens == 64


def test_a_setting_beside_a_preset_wins_over_it() -> None:
    made = config().training(preset="pure_openrlhf", kl_coeff=0.5)
    assert made.kl_coeff == 0.5
    assert made.normalize_advantages == "pure_openrlhf"
    with pytest.raises(ValueError, match=r"`preset` .*must be one of.*paper"):
        config().training(preset="papers")


def test_a_kl_term_asks_for_a_reference_policy() -> None:
    assert config().training(kl_coeff=0.1).model_config["with_reference"] is True


def test_a_copy_is_independent() -> None:
    first = config().training(lr=1e-5)
    second = first.copy(copy_frozen=False).training(lr=2e-5)
    assert (first.lr, second.lr) == (1e-5, 2e-5)
    frozen = first.copy(copy_frozen=True)
    with pytest.raises(AttributeError):
        frozen.lr = 1.0


def test_overrides_reject_unknown_names() -> None:
    assert PUREConfig.overrides(credit_assignment="sum") == {"credit_assignment": "sum"}
    with pytest.raises(KeyError, match="credit_asignment"):
        PUREConfig.overrides(credit_asignment="sum")


def test_dict_and_state_round_trips() -> None:
    made = (
        config()
        .env_runners(group_size=4)
        .training(credit_temperature=0.2, adam_betas=(0.9, 0.95), minibatch_size=8)
    )
    from_dict = PUREConfig.from_dict(dict(made.to_dict()))
    from_state = PUREConfig.from_state(made.get_state())
    for other in (from_dict, from_state):
        assert isinstance(other, PUREConfig)
        other.validate()
        assert other.env == "pure_rllib/Arithmetic-v0"
        assert (other.group_size, other.groups_per_step) == (4, 2)
        assert other.credit_config() == made.credit_config()
        assert tuple(other.adam_betas) == (0.9, 0.95)
        assert other.env_runner_cls is LLMEnvRunner


def test_environment_gets_the_token_budget() -> None:
    made = config().environment(env_config={"task": "z"})
    assert made.full_env_config() == {"task": "z"}
    made.env_runners(max_response_tokens=32)
    assert made.full_env_config() == {"task": "z", "max_response_tokens": 32}


# Setter, setting, bad value, and how the message goes on behind "must be".
BAD_VALUES: list[tuple[str, str, Any, str]] = [
    ("env_runners", "group_size", 1, ">= 2, because the baseline compares"),
    ("env_runners", "group_size", 2.5, "a whole number"),
    ("env_runners", "num_prompts", 0, ">= 1"),
    ("env_runners", "num_env_runners", -1, ">= 0"),
    ("learners", "num_learners", -1, ">= 0"),
    ("env_runners", "num_prompts", 2.5, "a whole number"),
    ("env_runners", "temperature", 0.0, "> 0"),
    ("env_runners", "temperature", None, "a number"),
    ("env_runners", "top_p", 0.0, "> 0"),
    ("env_runners", "top_p", 1.1, "<= 1"),
    ("env_runners", "top_p", "1", "a number"),
    ("env_runners", "max_response_tokens", 0, ">= 1"),
    ("env_runners", "stop", "</a>", "a list"),
    ("env_runners", "stop", [""], "a text that is not empty"),
    ("env_runners", "stop", [5], "a text"),
    ("env_runners", "generator", "vllm2", "one of 'transformers' or 'vllm'"),
    ("env_runners", "generator_kwargs", ["a"], "a mapping"),
    ("env_runners", "sample_timeout_s", 0, "> 0"),
    ("env_runners", "sample_timeout_s", "60", "a number"),
    ("training", "credit_temperature", 0.0, "> 0, because it divides"),
    ("training", "credit_temperature", -0.1, "> 0, because it divides"),
    ("training", "credit_temperature", "0.1", "a number"),
    ("training", "credit_temperature", float("inf"), "a finite number"),
    ("training", "process_reward_coeff", -1.0, ">= 0"),
    ("training", "minibatch_size", 0, ">= 1"),
    ("training", "minibatch_size", 8.0, "a whole number"),
    ("training", "credit_assignment", "max", "one of 'min', 'strict_min' or 'sum'"),
    ("training", "baseline", "mean", "one of 'token'"),
    ("training", "loss_aggregation", "mean", "one of 'token_mean'"),
    ("training", "kl_estimator", "k4", "one of 'k1'"),
    ("training", "kl_placement", "obs", "one of 'reward' or 'loss'"),
    ("training", "kl_coeff", -0.1, ">= 0"),
    ("training", "normalize_advantages", "yes", "True or False, or one of 'tokens'"),
    ("training", "grad_clip", -1.0, "> 0"),
    ("training", "adam_betas", (2, 3), "< 1"),
    ("training", "adam_betas", (0.9,), "of length 2"),
    ("training", "no_signal_groups", "skip", "one of 'keep', 'drop' or 'refill'"),
    ("training", "clip_param", 0.0, "> 0"),
    ("training", "clip_param", None, "a number"),
    ("training", "clip_param_high", -0.1, "> 0"),
    ("training", "dual_clip", 1.0, "> 1"),
    ("training", "ratio_level", "word", "one of 'token' or 'sequence'"),
    ("training", "num_epochs", 0, ">= 1"),
    ("training", "micro_batch_tokens", 0, ">= 1"),
    ("training", "max_refill_rounds", 0, ">= 1"),
    ("training", "max_weight_lag", 5, "<= 4"),
    ("training", "max_weight_lag", True, "a whole number"),
    ("training", "rollout_correction", "mis", "one of 'none', 'token_truncated' or"),
    ("training", "rollout_correction_cap", 0.5, ">= 1"),
    ("training", "lr_warmup_updates", -1, ">= 0"),
    ("training", "entropy_coeff", -0.1, ">= 0"),
    ("training", "entropy_coeff", float("nan"), "a finite number"),
    ("training", "weight_decay", -0.1, ">= 0"),
    ("training", "mask_separators", "no", "True or False"),
    ("training", "mask_truncated", 1, "True or False"),
    ("training", "hack_caps", {"no_answer": 2.0}, "<= 1"),
    ("learners", "weight_transport", "mail", "one of 'auto', 'files' or 'broadcast'"),
    ("learners", "collective_timeout_s", 0, "> 0"),
    ("learners", "collective_timeout_s", None, "a number"),
    ("evaluation", "num_samples_per_problem", -1, ">= 0"),
    ("reporting", "hacking_monitor", "cry", "one of 'warn', 'stop' or 'go_back'"),
    ("debugging", "seed", -1, ">= 0, because NumPy takes no negative seeds"),
]


@pytest.mark.parametrize(("setter", "name", "value", "must"), BAD_VALUES)
def test_a_value_against_its_rule_is_refused(
    setter: str, name: str, value: Any, must: str
) -> None:
    message = re.escape(f"`{name}` ({value!r}) must be {must}")
    if name not in RLLIB_RULES:
        with pytest.raises(ValueError, match=message):
            getattr(config(), setter)(**{name: value})
    # Tune and `from_dict` do not ask the setters.
    made = config()
    setattr(made, name, value)
    with pytest.raises(ValueError, match=message):
        made.validate()


def test_a_search_space_is_no_value_yet() -> None:
    made = config().training(credit_temperature=tune.uniform(0.05, 0.2))
    made.training(clip_param=tune.grid_search([0.1, 0.2]))
    assert made.clip_param == {"grid_search": [0.1, 0.2]}
    made.training(hack_caps={"one_step": tune.uniform(-1, 1)})
    made.training(adam_betas=(0.9, tune.choice([0.99, 0.999])))


# The change, and what its message must hold: the setting, the value, the reason, the
# way out.
BAD: list[tuple[Change, str]] = [
    (
        lambda c: c.training(process_reward_coeff=0.0, verifiable_reward_coeff=0.0),
        r"`process_reward_coeff` \(0\) and `verifiable_reward_coeff` \(0\) must not "
        r"both be 0: nothing would be learned\. Set one of them to 1\.0",
    ),
    (
        lambda c: c.training(minibatch_size=12),
        r"`minibatch_size` \(12\) must be a multiple of `group_size` \(8\), because "
        r"groups are never split\. Set it to 64",
    ),
    (lambda c: c.training(lr=float("nan")), r"`lr` \(nan\) must be a finite number"),
    (lambda c: c.training(lr=True), r"`lr` \(True\) must be a number"),
    (
        lambda c: c.rl_module(
            algorithm_config_overrides_per_module={"default_policy": {"clip_param": 1}}
        ),
        r"`algorithm_config_overrides_per_module` .* must be left out, because there",
    ),
    (
        lambda c: c.env_runners(generator_kwargs={"foo": 1}),
        r"`generator_kwargs` has unknown keys \['foo'\].*max_batch_size",
    ),
    (
        lambda c: c.training(no_signal_groups="drop", kl_coeff=0.1),
        r"`no_signal_groups` \(\"drop\"\) must be \"keep\" with a `kl_coeff` \(0\.1\)"
        r".*still teach the KL term\. Set one of the two back",
    ),
    (
        lambda c: c.training(gamma=0.9),
        r"`gamma` \(0\.9\) has no effect with `credit_assignment` \(\"min\"\).*Set "
        r"gamma to 1\.0 or credit_assignment to \"sum\"",
    ),
    (
        lambda c: c.training(gamma=1.5, credit_assignment="sum"),
        r"`gamma` \(1\.5\) must be <= 1",
    ),
    (
        lambda c: c.training(formulas="pure_verl"),
        r"`baseline` \('token'\) must be 'response' with `formulas` 'pure_verl'",
    ),
    (
        lambda c: c.training(grad_clip_by="value"),
        r"`grad_clip_by` \(\"value\"\) must be \"global_norm\", because .*Leave it out",
    ),
    (
        lambda c: c.learners(num_learners=17),
        r"`num_prompts` \(16\) must be at least 17 with `num_learners` \(17\), because "
        r"each learner needs 1 whole group\(s\)\. Raise num_prompts",
    ),
    (
        lambda c: c.evaluation(evaluation_duration_unit="timesteps"),
        r"`evaluation_duration_unit` \(\"timesteps\"\) must be \"episodes\".*Leave",
    ),
    (
        lambda c: c.evaluation(evaluation_num_env_runners=1),
        r"`evaluation_num_env_runners` \(1\) must be 0, because .*Leave it out",
    ),
    (
        lambda c: c.rl_module(model_config={"modle": "folder", "dtyp": "float32"}),
        r"`model_config` has unknown keys \['dtyp', 'modle'\]; it may hold .*'model'",
    ),
    (
        lambda c: c.rl_module(model_config={"dtype": "fp8"}),
        r"`dtype` \(\"fp8\"\) must be one of \('float32'",
    ),
    (
        lambda c: c.rl_module(model_config={"autocast_dtype": "float16"}),
        r"`autocast_dtype` \('float16'\) must be None",
    ),
    (
        lambda c: c.rl_module(
            model_config={"autocast_dtype": "bfloat16", "dtype": "bfloat16"}
        ),
        r"`autocast_dtype` \(\"bfloat16\"\) has no effect with `dtype`",
    ),
    (
        lambda c: c.training(rollout_correction_cap=2.0),
        r"`rollout_correction_cap` \(2\.0\) must be None .*\"none\".*leave the cap out",
    ),
    (
        lambda c: c.training(
            rollout_correction="sequence_mask", rollout_correction_cap=1
        ),
        r"`rollout_correction_cap` \(1\) must be > 1 .*every response\..*1\.01",
    ),
    (
        lambda c: c.training(max_weight_lag=1),
        r"`max_weight_lag` \(1\) must be 0 with `num_env_runners` \(0\), because .*"
        r"Set `\.env_runners\(num_env_runners=1\)`",
    ),
    (
        lambda c: c.training(max_weight_lag=2, rollout_correction="none").env_runners(
            num_env_runners=1
        ),
        r"`rollout_correction` \(\"none\"\) must be another .*`max_weight_lag` \(2\)",
    ),
    (
        lambda c: c.training(
            max_weight_lag=2, no_signal_groups="refill", kl_coeff=0.0
        ).env_runners(num_env_runners=1),
        r"`no_signal_groups` \(\"refill\"\) must be .*`max_weight_lag` \(2\) over 1",
    ),
    (
        lambda c: c.env_runners(weight_update="in_flight", num_env_runners=1),
        r"`weight_update` \(\"in_flight\"\) needs `generator` \(\"transformers\"\)",
    ),
    (
        lambda c: c.training(max_weight_lag=1).env_runners(
            weight_update="in_flight",
            num_env_runners=1,
            generator="vllm",
            generator_kwargs={"tensor_parallel_size": 2},
        ),
        r"`tensor_parallel_size` \(2\) must be 1 with `weight_update`",
    ),
    (
        lambda c: (
            c.training(max_weight_lag=2)
            .env_runners(generator="vllm", num_env_runners=1)
            .learners(num_learners=1, weight_transport="broadcast")
        ),
        r"`weight_transport` .*needs a `max_weight_lag` \(2\) of at most 1",
    ),
]


@pytest.mark.parametrize(
    ("lora", "must"),
    [
        ({"r": 0}, "`r` (0) must be >= 1"),
        ({"r": 8.0}, "`r` (8.0) must be a whole number"),
        ({"lora_alpha": 0}, "`lora_alpha` (0) must be > 0"),
    ],
)
def test_an_adapter_that_would_learn_nothing_is_refused(
    lora: dict[str, Any], must: str
) -> None:
    made = config().rl_module(model_config={"lora": lora})
    with pytest.raises(ValueError, match=re.escape(must)):
        made.validate()


@pytest.mark.parametrize("change, message", BAD, ids=[message for _, message in BAD])
def test_a_setting_that_cannot_work_is_named_with_its_reason(
    change: Change, message: str
) -> None:
    made = config()
    change(made)
    with pytest.raises(ValueError, match=message):
        made.validate()


def env_summary(**facts: Any) -> EnvSummary:
    return EnvSummary(
        **{
            "num_problems": 10,
            "num_answers": 4,
            "num_eval_problems": 0,
            "num_dropped_prompts": 0,
            "tokenizer_size": 32,
            "max_prompt_tokens": 100,
            "max_response_tokens": 412,
            "has_step_scorer": True,
            "has_verifier": True,
            "default_policy": None,
            "probe_ids": ((1, 2),),
            **facts,
        }
    )


def test_sums_over_several_prompts_need_all_answers() -> None:
    with pytest.raises(ValueError, match="6 of 10 problems have no gold answer"):
        check_against_env(RiskPOConfig(), env_summary(), tiny_model_config(32))
    check_against_env(
        RiskPOConfig(), env_summary(num_answers=10), tiny_model_config(32)
    )


def test_an_environment_that_fits_is_accepted() -> None:
    # A context of 512 tokens: 100 + 412 just fits.
    check_against_env(config(), env_summary(), tiny_model_config(32))


@pytest.mark.parametrize(
    "facts, message",
    [
        (
            {"has_verifier": False},
            r"`verifiable_reward_coeff` \(1\.0\) must be 0, because the environment "
            r"has no verifier\. Set it to 0",
        ),
        (
            {"num_answers": 0},
            r"`verifiable_reward_coeff` \(1\.0\) must be 0, because none of the 10 "
            r"problems has a gold answer\. Set it to 0, or name the right",
        ),
        (
            {"has_step_scorer": False},
            r"`process_reward_coeff` \(1\.0\) must be 0, because the environment "
            r"has no step scorer\. Set it to 0, or set `env_config",
        ),
        (
            {"has_step_scorer": False, "has_turns": True},
            r"`process_reward_coeff` \(1\.0\) must be 0, .* judges no turns\. "
            r"Set it to 0, or set `env_config=\{'turn_rewards': 'process'\}",
        ),
        (
            {"has_turns": True},
            r"`mask_separators` \(True\) must be False, because a turn's last token",
        ),
        (
            {"tokenizer_size": 33},
            r"`model` \(vocabulary of 32\) must cover the tokenizer's 33 ids, because",
        ),
        (
            {"max_response_tokens": 413},
            r"`max_prompt_tokens` \(100\) plus `max_response_tokens` \(413\) must be "
            r"at most the model's context \(512\)\. Lower one",
        ),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(
    facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_against_env(config(), env_summary(**facts), tiny_model_config(32))


def test_with_turns_a_baseline_that_counts_them_is_warned_of() -> None:
    made, env = config().training(mask_separators=False), env_summary(has_turns=True)
    with pytest.warns(
        UserWarning, match=r'`baseline` \("token"\) should be "response"'
    ):
        check_against_env(made, env, tiny_model_config(32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.training(baseline="response")
        check_against_env(made, env, tiny_model_config(32))


def test_evaluation_needs_held_out_problems() -> None:
    made = config().evaluation(evaluation_interval=5)
    with pytest.raises(
        ValueError,
        match=r"`evaluation_interval` \(5\) needs held-out problems.*eval_problems",
    ):
        check_against_env(made, env_summary(), tiny_model_config(32))


def test_a_model_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match=r"`model` .*no \*\.safetensors weights.*Set"):
        check_against_env(config(), env_summary(), str(tmp_path))
    with pytest.raises(ValueError, match=r"`model` .*there is no such folder.*Set"):
        check_against_env(config(), env_summary(), str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"`model` .*must name a `model_type`.*Add"):
        check_against_env(config(), env_summary(), {"hidden_size": 8})
