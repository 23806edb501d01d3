"""What settings must fit: each other, the environment and the model's files."""

import warnings
from collections.abc import Mapping
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from pure_rllib.generation.make_generator import check_generator
from pure_rllib.hacking.flags import check_caps
from pure_rllib.hacking.monitor import check_monitor
from pure_rllib.learners.deepspeed_settings import check_deepspeed
from pure_rllib.learners.rollout_correction import correction_mode
from pure_rllib.models.loading import DTYPES, check_model_folder, policy_config
from pure_rllib.models.lora import check_lora
from pure_rllib.rewards.prm.actors import check_prm_actors
from pure_rllib.rollouts.env_summary import EnvSummary
from pure_rllib.setting_types import NonNegativeFloat, check_setting

EVALUATION_OVERRIDES = ("temperature", "top_p", "max_response_tokens")
"""What evaluation can have of its own, by `evaluation_config`."""

_COLOCATED = {
    "generator": ("env_runners", "vllm", "vLLM's engine can give its memory back"),
    "max_weight_lag": ("training", 0, "the engine sleeps while the learner updates"),
    "num_env_runners": ("env_runners", 0, "engine and learner share a process"),
    "num_learners": ("learners", 0, "engine and learner share a process"),
}
"""What settings must be with `colocate`: their setters, values and reasons."""


def check_config(config: Any) -> None:
    """Checks what settings must be to each other, each being of its type.

    Args:
        config: the `LLMConfig`.

    Raises:
        ValueError: naming the first setting that cannot work, and why.
    """
    if not isinstance(config.lr, list | tuple):
        check_setting("lr", config.lr, NonNegativeFloat)
    _check_kinds(config)
    _check_one_module(config._rl_module_spec)
    _check_evaluation(config)
    if config.no_signal_groups != "keep" and config.groups_together() > 1:
        raise ValueError(
            f'`no_signal_groups` ("{config.no_signal_groups}") must be "keep" with an '
            "algorithm that compares several groups, because their signal is that of "
            "all of them. Leave it out."
        )
    if config.no_signal_groups != "keep" and config.kl_coeff > 0:
        raise ValueError(
            f'`no_signal_groups` ("{config.no_signal_groups}") must be "keep" with a '
            f"`kl_coeff` ({config.kl_coeff}), because groups whose rewards are all "
            "equal still teach the KL term. Set one of the two back."
        )
    if config.colocate and not config.in_evaluation:
        _check_colocate(config)
    check_generator(
        config.generator,
        config.generator_kwargs,
        temperature=config.temperature,
        top_p=config.top_p,
    )
    check_weight_transport(config)
    check_prm_actors(config)
    check_caps(config)
    check_monitor(config)
    _check_correction(config)
    _check_lag(config)
    _check_sizes(config)
    _check_model_config(config.model_config)
    if config.deepspeed is not None:
        check_deepspeed(config)


def _check_colocate(config: Any) -> None:
    """Checks that an engine and a learner can have one GPU in turn."""
    for name, (setter, needed, because) in _COLOCATED.items():
        value = getattr(config, name)
        if value != needed:
            raise ValueError(
                f"`{name}` ({value!r}) must be {needed!r} with `colocate` (True), "
                f"because {because}. Set `.{setter}({name}={needed!r})`, or leave "
                "`colocate` out."
            )


def check_weight_transport(config: Any) -> None:
    """Checks that weights can be sent between learners and env runners, if they are to.

    Raises:
        ValueError: naming the setting that cannot work, and why.
    """
    # RLlib validates a copy for evaluation, whose env runners are never made.
    if config.weight_transport != "broadcast" or config.in_evaluation:
        return
    asked = '`weight_transport` ("broadcast")'
    else_files = 'or set `.learners(weight_transport="files")`'
    if config.generator != "vllm":
        raise ValueError(
            f'{asked} must be "auto" or "files" with `generator` '
            f'("{config.generator}"), because vLLM\'s engines receive what is sent. '
            f'Set `.env_runners(generator="vllm")`, {else_files}.'
        )
    for setter in ("env_runners", "learners"):
        name = f"num_{setter}"
        if not getattr(config, name):
            raise ValueError(
                f"{asked} needs a `{name}` ({getattr(config, name)}) of at least 1, "
                "because sender and receivers wait for each other in processes of "
                f"their own. Set `.{setter}({name}=1)`, {else_files}."
            )
    if config.weight_update == "in_flight":
        raise ValueError(
            f'{asked} must be "auto" or "files" with `weight_update` '
            '("in_flight"), because weights are sent between two batches. Set '
            '`.learners(weight_transport="files")`.'
        )
    if config.max_weight_lag > 1:
        raise ValueError(
            f"{asked} needs a `max_weight_lag` ({config.max_weight_lag}) of at most 1, "
            "because weights are sent between two batches, and with more the next one "
            f"is under way. Set it to 1, {else_files}."
        )
    if not config.has_own_gpus:
        raise ValueError(
            f"{asked} needs whole GPUs: `num_gpus_per_learner` "
            f"({config.num_gpus_per_learner}) and `num_gpus_per_env_runner` "
            f"({config.num_gpus_per_env_runner}) must both be at least 1, because NCCL "
            f"connects different GPUs only. Set them so, {else_files}."
        )


def _check_correction(config: Any) -> None:
    cap, mode = config.rollout_correction_cap, correction_mode(config)
    if cap is not None and mode == "none":
        raise ValueError(
            f"`rollout_correction_cap` ({cap!r}) must be None with "
            '`rollout_correction` "none", because nothing is capped then. Set '
            '`.training(rollout_correction="token_truncated")`, or leave the cap out.'
        )
    if cap == 1 and mode == "sequence_mask":
        raise ValueError(
            f"`rollout_correction_cap` ({cap!r}) must be > 1 with "
            '`rollout_correction` "sequence_mask", because the band [1/cap, cap] would '
            "leave out every response. Set it to 1.01, or to None."
        )


def _check_lag(config: Any) -> None:
    lag = config.max_weight_lag
    # RLlib validates a copy for evaluation, with `evaluation_num_env_runners` in place.
    if lag and not config.num_env_runners and not config.in_evaluation:
        raise ValueError(
            f"`max_weight_lag` ({lag}) must be 0 with "
            f"`num_env_runners` ({config.num_env_runners}), because the local env "
            "runner samples in the process that trains and cannot do so meanwhile. Set "
            "`.env_runners(num_env_runners=1)` or more."
        )
    if lag > 1 and correction_mode(config) == "none":
        raise ValueError(
            f'`rollout_correction` ("none") must be another with a `max_weight_lag` '
            f"({lag}) over 1, because PPO's clip would be taken to a policy that is "
            'several updates old. Set it to "token_truncated", or leave it out.'
        )
    is_in_flight = config.weight_update == "in_flight"
    if is_in_flight and (config.generator != "vllm" or not lag):
        raise ValueError(
            '`weight_update` ("in_flight") needs `generator` '
            f'("{config.generator}") "vllm" and a `max_weight_lag` ({lag}) of at least '
            "1, because vLLM's engines take over weights between two tokens while "
            'learners update. Set both, or `.env_runners(weight_update="drain")`.'
        )
    size = config.generator_kwargs.get("tensor_parallel_size", 1)
    if is_in_flight and size > 1:
        raise ValueError(
            f"`tensor_parallel_size` ({size}) must be 1 with `weight_update` "
            '("in_flight"), because an engine whose workers are processes is not '
            "stopped while they load weights. Set it so, or "
            '`.env_runners(weight_update="drain")`.'
        )
    if config.no_signal_groups == "refill" and (lag > 1 or is_in_flight):
        raise ValueError(
            f'`no_signal_groups` ("refill") must be "keep" or "drop" with a '
            f"`max_weight_lag` ({lag}) over 1 or weights in flight, because the "
            "prompts of further rounds would come after those that are already under "
            "way. Set it so, or the lag to 1."
        )


def _check_sizes(config: Any) -> None:
    size = config.minibatch_size
    if size is not None and size % config.group_size:
        raise ValueError(
            f"`minibatch_size` ({size}) must be a multiple of `group_size` "
            f"({config.group_size}), because groups are never split. Set it to "
            f"{config.group_size * max(1, config.num_prompts // 2)}, or to None for "
            "one optimiser step per iteration."
        )
    least = config.groups_together() * max(1, config.num_learners)
    if config.num_prompts < least:
        raise ValueError(
            f"`num_prompts` ({config.num_prompts}) must be at least {least} with "
            f"`num_learners` ({config.num_learners}), because each learner needs "
            f"{config.groups_together()} whole group(s). Raise num_prompts."
        )


def _check_kinds(config: Any) -> None:
    """Checks that classes derive from those that sample, judge and update here."""
    from pure_rllib.learners.torch_learner import LLMTorchLearner
    from pure_rllib.models.llm_rl_module import LLMRLModule
    from pure_rllib.rollouts.env_runner import LLMEnvRunner

    for name, given, base, does in (
        ("env_runner_cls", config.env_runner_cls, LLMEnvRunner, "samples responses"),
        ("learner_class", config.learner_class, LLMTorchLearner, "learns from them"),
        (
            "rl_module_spec.module_class",
            config.own_module_spec and config.own_module_spec.module_class,
            LLMRLModule,
            "holds a language model",
        ),
    ):
        if given is None or isinstance(given, str):
            continue  # RLlib imports a class that is named, when it is needed
        if not (isinstance(given, type) and issubclass(given, base)):
            raise ValueError(
                f"`{name}` ({getattr(given, '__name__', given)}) must be a subclass of "
                f"`{base.__name__}`, because that one {does}. Derive from it, or leave "
                "it out."
            )


def _check_one_module(spec: Any) -> None:
    names = set(spec.rl_module_specs) if isinstance(spec, MultiRLModuleSpec) else set()
    if names - {DEFAULT_MODULE_ID}:
        raise ValueError(
            f"`rl_module_spec` (modules {', '.join(sorted(names))}) must hold none but "
            f"`{DEFAULT_MODULE_ID}`, because there is one module, the policy. Give its "
            "RLModuleSpec alone."
        )


def _check_evaluation(config: Any) -> None:
    """Checks the settings that evaluation is to have of its own."""
    rules, own = config.rules(), config.evaluation_overrides()
    for name, value in own.items():
        if name not in EVALUATION_OVERRIDES:
            raise ValueError(
                f"`evaluation_config` must not change `{name}` ({value!r}), because "
                "the env runners that train evaluate as well, and no more than "
                f"{', '.join(EVALUATION_OVERRIDES)} can differ. Leave it out; a greedy "
                "response to each problem is asked for anyway."
            )
        check_setting(f"evaluation_config.{name}", value, rules[name])
    top_p = own.get("top_p", config.top_p)
    check_generator(
        config.generator,
        config.generator_kwargs,
        temperature=own.get("temperature", config.temperature),
        top_p=top_p,
    )
    if config.generator == "vllm" and (top_p < 1) != (config.top_p < 1):
        raise ValueError(
            f"`evaluation_config.top_p` ({top_p}) and `top_p` ({config.top_p}) must "
            "both be 1.0 or both below it, because an engine of vLLM tells "
            "log-probabilities of one kind only. Change both, or neither."
        )


def _check_model_config(model_config: Mapping[str, Any]) -> None:
    from pure_rllib.models.llm_rl_module import MODEL_CONFIG_DEFAULTS

    added = {"temperature", "with_reference", "packing", "seed"}
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
        config: the `LLMConfig`.
        env: facts about the environment.
        model: folder, hub id or config of the policy.

    Raises:
        ValueError: naming the setting, its value, the reason and the way out.
    """
    has_verdicts = config.verifiable_reward_coeff and not env.has_reward_model
    if has_verdicts and not env.has_verifier:
        raise ValueError(
            f"`verifiable_reward_coeff` ({config.verifiable_reward_coeff}) must be 0, "
            "because the environment has no verifier. Set it to 0, or give the "
            "environment one."
        )
    if has_verdicts and not env.num_answers:
        raise ValueError(
            f"`verifiable_reward_coeff` ({config.verifiable_reward_coeff}) must be 0, "
            f"because none of the {env.num_problems} problems has a gold answer. Set "
            "it to 0, or name the right `answer_field` in `env_config`."
        )
    is_partly = env.num_answers < env.num_problems
    if has_verdicts and is_partly and config.groups_together() > 1:
        raise ValueError(
            f"`verifiable_reward_coeff` ({config.verifiable_reward_coeff}) must be 0, "
            f"because {env.num_problems - env.num_answers} of {env.num_problems} "
            "problems have no gold answer, and what they earn is added to others'. Set "
            "it to 0, or train on problems with answers."
        )
    is_unbounded = env.has_reward_model and env.reward_map is None
    if is_unbounded and not config.takes_any_reward:
        raise ValueError(
            f'`reward_model_kwargs.map` (None) must be "sigmoid" with '
            f"{config.algo_class.__name__}, because rewards of whole responses lie in "
            "[0, 1] there, beside process rewards in [-1, 1]. Set it, or train with "
            "GRPO or RLOO."
        )
    if config.process_reward_coeff and not env.has_step_scorer:
        reason, other = "has no step scorer", "'prm': ..."
        if env.has_turns:
            reason, other = "judges no turns", "'turn_rewards': 'process'"
        raise ValueError(
            f"`process_reward_coeff` ({config.process_reward_coeff}) must be 0, "
            f"because the environment {reason}. Set it to 0, or set "
            f"`env_config={{{other}}}`."
        )
    if env.has_turns and config.weight_update == "in_flight":
        raise ValueError(
            '`weight_update` ("in_flight") must be "drain" with an environment of '
            "turns, which are played whole. Set "
            '`.env_runners(weight_update="drain")`.'
        )
    if env.has_turns and getattr(config, "mask_separators", False):
        raise ValueError(
            "`mask_separators` (True) must be False, because a turn's last token is "
            "the policy's own word and no separator. Set "
            '`.training(mask_separators=False, baseline="response")`.'
        )
    baseline = getattr(config, "baseline", "response")
    if env.has_turns and baseline != "response":
        warnings.warn(
            f'`baseline` ("{baseline}") should be "response" with turns, because it '
            "takes off what depends on how many turns or tokens there are, which the "
            'policy chooses. Set `.training(baseline="response")`.',
            stacklevel=2,
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
    budget = config.longest_response(env.max_response_tokens)
    if context is not None and env.max_prompt_tokens + budget > context:
        raise ValueError(
            f"`max_prompt_tokens` ({env.max_prompt_tokens}) plus "
            f"`max_response_tokens` ({budget}) must be at most the "
            f"model's context ({context}). Lower one of them."
        )
