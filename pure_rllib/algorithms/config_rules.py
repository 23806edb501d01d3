"""Checks of a PURE configuration, all made before any model is loaded."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from pure_rllib.credit.rollout_correction import ROLLOUT_CORRECTIONS
from pure_rllib.generation.make_generator import GENERATORS, check_generator
from pure_rllib.hacking.flags import check_caps
from pure_rllib.hacking.monitor import check_monitor
from pure_rllib.learners.deepspeed_settings import check_deepspeed
from pure_rllib.learners.rollout_correction import correction_mode
from pure_rllib.models.loading import DTYPES, check_model_folder, policy_config
from pure_rllib.models.lora import check_lora
from pure_rllib.rewards.prm.pool import check_prm_actors
from pure_rllib.rollouts.env_summary import EnvSummary
from pure_rllib.weight_sync.transport import (
    WEIGHT_TRANSPORTS,
    check_weight_transport,
)

_CHOICES: dict[str, tuple[Any, ...]] = {
    "no_signal_groups": ("keep", "drop", "refill"),
    "rollout_correction": (None, *ROLLOUT_CORRECTIONS),
    "max_weight_lag": (0, 1),
    "generator": GENERATORS,
    "weight_transport": WEIGHT_TRANSPORTS,
}
_AT_LEAST: dict[str, float] = {
    "num_prompts": 1,
    "num_prm_actors": 0,
    "num_epochs": 1,
    "max_refill_rounds": 1,
    "micro_batch_tokens": 1,
    "lr_warmup_updates": 0,
    "num_samples_per_problem": 0,
    "entropy_coeff": 0.0,
    "weight_decay": 0.0,
}
_NUMBERS = (
    "credit_temperature",
    "gamma",
    "process_reward_coeff",
    "verifiable_reward_coeff",
    "kl_coeff",
)
_WITHOUT_EFFECT = (
    "min_time_s_per_iteration",
    "min_sample_timesteps_per_iteration",
    "min_train_timesteps_per_iteration",
    "custom_evaluation_function",
)
_POSITIVE = (
    "adam_epsilon",
    "grad_clip",
    "temperature",
    "clip_param",
    "clip_param_high",
    "max_response_tokens",
    "max_logp_gap",
    "collective_timeout_s",
    "sample_timeout_s",
)
_MAY_BE_NONE = (
    "max_logp_gap",
    "sample_timeout_s",
    "grad_clip",
    "clip_param_high",
    "max_response_tokens",
    "minibatch_size",
    "seed",
)
_WHOLE = (
    "num_prompts",
    "num_prm_actors",
    "group_size",
    "num_epochs",
    "max_refill_rounds",
    "micro_batch_tokens",
    "lr_warmup_updates",
    "max_weight_lag",
    "num_samples_per_problem",
    "max_response_tokens",
    "minibatch_size",
    "seed",
)
_SWITCHES = ("mask_separators", "mask_truncated")


def check_config(config: Any) -> None:
    """Raises a ValueError that names the first setting that cannot work, and why."""
    for name, choices in _CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            raise ValueError(f"`{name}` ({value!r}) must be one of {choices}.")
    for name, least in _AT_LEAST.items():
        value = getattr(config, name)
        # Asked this way round, NaN fails too.
        if not (_is_number(value) and value >= least):
            raise ValueError(f"`{name}` ({value!r}) must be a number >= {least}.")
    for name in _POSITIVE:
        value = getattr(config, name)
        is_left_out = value is None and name in _MAY_BE_NONE
        if not is_left_out and not (_is_number(value) and value > 0):
            raise ValueError(f"`{name}` ({value!r}) must be a number > 0.")
    for name in _SWITCHES:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` ({value!r}) must be True or False.")
    if not isinstance(config.lr, list | tuple) and not (
        _is_number(config.lr) and config.lr >= 0
    ):
        raise ValueError(
            f"`lr` ({config.lr!r}) must be a number >= 0 or a schedule, because the "
            "policy follows its gradient. Set `.training(lr=1.0e-6)`."
        )
    _check_credit(config)
    check_generator(
        config.generator,
        config.generator_kwargs,
        temperature=config.temperature,
        top_p=config.top_p,
    )
    check_weight_transport(config)
    _check_whole_numbers(config)
    check_prm_actors(config)
    check_caps(config)
    check_monitor(config)
    _check_correction(config)
    _check_sizes(config)
    _check_model_config(config.model_config)
    if config.deepspeed is not None:
        check_deepspeed(config)


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and math.isfinite(float(value))


def _check_whole_numbers(config: Any) -> None:
    for name in _WHOLE:
        value = getattr(config, name)
        if value is None and name in _MAY_BE_NONE:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ValueError(
                f"`{name}` ({value!r}) must be a whole number, because it counts. "
                "Write it as one."
            )
    if config.seed is not None and config.seed < 0:
        raise ValueError(
            f"`seed` ({config.seed}) must be None or >= 0, because NumPy takes no "
            "negative seeds. Set `.debugging(seed=0)`."
        )


def _check_credit(config: Any) -> None:
    if not _is_number(config.group_size) or config.group_size < 2:
        raise ValueError(
            f"`group_size` ({config.group_size}) must be >= 2: the leave-one-out "
            "baseline averages the other responses. Set "
            "`.env_runners(group_size=4)`."
        )
    if not (_is_number(config.top_p) and 0.0 < config.top_p <= 1.0):
        raise ValueError(f"`top_p` ({config.top_p!r}) must be in (0, 1].")
    for name in _NUMBERS:
        if not _is_number(getattr(config, name)):
            raise ValueError(f"`{name}` ({getattr(config, name)!r}) must be a number.")
    config.credit_config()
    if config.gamma != 1.0 and config.credit_assignment != "sum":
        raise ValueError(
            f"`gamma` ({config.gamma}) has no effect with `credit_assignment` "
            f'("{config.credit_assignment}"), which takes a minimum. Set gamma to 1.0 '
            'or credit_assignment to "sum".'
        )
    if config.no_signal_groups != "keep" and config.kl_coeff > 0:
        raise ValueError(
            f'`no_signal_groups` ("{config.no_signal_groups}") must be "keep" with a '
            f"`kl_coeff` ({config.kl_coeff}), because groups whose rewards are all "
            "equal still teach the KL term. Set one of the two back."
        )


def _check_correction(config: Any) -> None:
    cap, mode = config.rollout_correction_cap, correction_mode(config)
    if cap is not None and mode == "none":
        raise ValueError(
            f"`rollout_correction_cap` ({cap!r}) must be None with "
            '`rollout_correction` "none", because nothing is capped then. Set '
            '`.training(rollout_correction="token_truncated")`, or leave the cap out.'
        )
    if cap is not None and not (_is_number(cap) and cap >= 1):
        raise ValueError(
            f"`rollout_correction_cap` ({cap!r}) must be a number >= 1, because the "
            "ratio of equal policies is 1. Set it to None for the default."
        )
    if cap == 1 and mode == "sequence_mask":
        raise ValueError(
            f"`rollout_correction_cap` ({cap!r}) must be > 1 with "
            '`rollout_correction` "sequence_mask", because the band [1/cap, cap] would '
            "leave out every response. Set it to 1.01, or to None."
        )
    # RLlib validates a copy for evaluation, with `evaluation_num_env_runners` in place.
    is_local = not config.num_env_runners and not config.in_evaluation
    if config.max_weight_lag and is_local:
        raise ValueError(
            f"`max_weight_lag` ({config.max_weight_lag}) must be 0 with "
            f"`num_env_runners` ({config.num_env_runners}), because the local env "
            "runner samples in the process that trains and cannot do so meanwhile. Set "
            "`.env_runners(num_env_runners=1)` or more."
        )


def _check_sizes(config: Any) -> None:
    size = config.minibatch_size
    if size is not None and (
        not _is_number(size) or size < 1 or size % config.group_size
    ):
        raise ValueError(
            f"`minibatch_size` ({size}) must be a multiple of `group_size` "
            f"({config.group_size}), because groups are never split. Set it to "
            f"{config.group_size * max(1, config.num_prompts // 2)}, or to None for "
            "one optimiser step per iteration."
        )
    if config.num_prompts < max(1, config.num_learners):
        raise ValueError(
            f"`num_prompts` ({config.num_prompts}) must be at least `num_learners` "
            f"({config.num_learners}), because each learner needs a whole group. Raise "
            "num_prompts."
        )
    betas = config.adam_betas
    if len(betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in betas):
        raise ValueError(
            f"`adam_betas` ({betas}) must be two numbers in [0, 1), because they are "
            "decay rates of running means. Set `.training(adam_betas=(0.9, 0.999))`."
        )
    for name in _WITHOUT_EFFECT:
        if getattr(config, name):
            raise ValueError(
                f"`{name}` ({getattr(config, name)}) must be left out, because an "
                "iteration of PURE is one batch of groups and evaluation asks whole "
                "problems. Set `num_prompts` or `evaluation_duration` instead."
            )
    if not _is_number(config.evaluation_duration) or config.evaluation_duration < 1:
        raise ValueError(
            f"`evaluation_duration` ({config.evaluation_duration!r}) must be a number "
            ">= 1, because it counts held-out problems. Set it to 200."
        )
    if config.grad_clip_by != "global_norm":
        raise ValueError(
            f'`grad_clip_by` ("{config.grad_clip_by}") must be "global_norm", because '
            "gradients are clipped by their norm over all learners. Leave it out."
        )
    if config.evaluation_duration_unit != "episodes":
        raise ValueError(
            f'`evaluation_duration_unit` ("{config.evaluation_duration_unit}") must be '
            '"episodes", because evaluation asks whole problems. Leave it out.'
        )
    if config.evaluation_num_env_runners:
        raise ValueError(
            f"`evaluation_num_env_runners` ({config.evaluation_num_env_runners}) must "
            "be 0, because the training env runners evaluate as well: they hold the "
            "generator. Leave it out."
        )


def _check_model_config(model_config: Mapping[str, Any]) -> None:
    from pure_rllib.models.llm_rl_module import MODEL_CONFIG_DEFAULTS

    added = {"temperature", "with_reference", "seed"}
    unknown = set(model_config) - set(MODEL_CONFIG_DEFAULTS) - added
    if unknown:
        raise ValueError(
            f"`model_config` has unknown keys {sorted(unknown)}; it may hold "
            f"{sorted(MODEL_CONFIG_DEFAULTS)}."
        )
    dtype = model_config.get("dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f'`dtype` ("{dtype}") must be one of {DTYPES}.')
    autocast = model_config.get("autocast_dtype")
    if autocast not in (None, "bfloat16"):
        raise ValueError(
            f'`autocast_dtype` ({autocast!r}) must be None or "bfloat16", because '
            "float16 would need its losses scaled. Set "
            '`.rl_module(model_config={"autocast_dtype": "bfloat16"})`.'
        )
    if autocast is not None and dtype != "float32":
        raise ValueError(
            f'`autocast_dtype` ("{autocast}") has no effect with `dtype` ("{dtype}"): '
            'it is for weights in float32. Set `dtype` to "float32", or leave '
            "`autocast_dtype` out."
        )
    check_lora(model_config.get("lora"))


def check_against_env(config: Any, env: EnvSummary, model: Any) -> None:
    """Checks a configuration against its environment and its policy's files.

    Args:
        config: the `PUREConfig`.
        env: facts about the environment.
        model: folder, hub id or config of the policy.

    Raises:
        ValueError: naming the setting, its value, the reason and the way out.
    """
    if config.verifiable_reward_coeff and not env.has_verifier:
        raise ValueError(
            f"`verifiable_reward_coeff` ({config.verifiable_reward_coeff}) must be 0, "
            "because the environment has no verifier. Set it to 0, or give the "
            "environment one."
        )
    if config.verifiable_reward_coeff and not env.num_answers:
        raise ValueError(
            f"`verifiable_reward_coeff` ({config.verifiable_reward_coeff}) must be 0, "
            f"because none of the {env.num_problems} problems has a gold answer. Set "
            "it to 0, or name the right `answer_field` in `env_config`."
        )
    if config.process_reward_coeff and not env.has_step_scorer:
        raise ValueError(
            f"`process_reward_coeff` ({config.process_reward_coeff}) must be 0, "
            "because the environment has no step scorer. Set it to 0, or set "
            "`env_config={'prm': ...}`."
        )
    if config.evaluation_interval and not env.num_eval_problems:
        raise ValueError(
            f"`evaluation_interval` ({config.evaluation_interval}) needs held-out "
            "problems, and the environment has no `eval_problems`. Set "
            "`env_config={'eval_problems': ...}`, or leave the interval out."
        )
    if isinstance(model, str):
        check_model_folder(model, setting="model")
    trust = bool(config.model_config.get("trust_remote_code", False))
    policy = policy_config(model, trust_remote_code=trust).get_text_config()
    if policy.vocab_size < env.tokenizer_size:
        raise ValueError(
            f"`model` (vocabulary of {policy.vocab_size}) must cover the tokenizer's "
            f"{env.tokenizer_size} ids, because the policy reads and writes them. Use "
            "the model's own tokenizer."
        )
    context = getattr(policy, "max_position_embeddings", None)
    needed = env.max_prompt_tokens + env.max_response_tokens
    if context is not None and needed > context:
        raise ValueError(
            f"`max_prompt_tokens` ({env.max_prompt_tokens}) plus "
            f"`max_response_tokens` ({env.max_response_tokens}) must be at most the "
            f"model's context ({context}). Lower one of them."
        )
