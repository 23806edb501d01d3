"""What becomes of RLlib's settings: each acts, is refused, or means nothing to RLlib.

`validate()` refuses by this table what would be ignored. A test walks over the
arguments of all of RLlib's setters, so that one of a new version has to be put here.
`table()` writes the table of docs/rllib.md.
"""

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray._common.deprecation import DEPRECATED_VALUE
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided

_LEAVE = "Leave it out"


@dataclass(frozen=True)
class Refusal:
    """Settings that must stay as they are, for one reason.

    Attributes:
        names: arguments of RLlib's setters, parted by blanks.
        because: the reason, without "because" and without a period.
        instead: the way out, a sentence without its period.
    """

    names: str
    because: str
    instead: str = _LEAVE


REFUSALS = (
    Refusal(
        "train_batch_size train_batch_size_per_learner rollout_fragment_length "
        "min_time_s_per_iteration min_train_timesteps_per_iteration "
        "min_sample_timesteps_per_iteration",
        "an iteration is one batch of whole groups",
        "Set `.env_runners(num_prompts=...)`",
    ),
    Refusal(
        "num_envs_per_env_runner gym_env_vectorize_mode remote_worker_envs",
        "one environment of each env runner judges all responses of a call at once",
        "Set `.env_runners(num_prompts=...)`, or `num_env_runners` for more processes",
    ),
    Refusal(
        "explore",
        "the responses to a prompt would all be the same, and such a group teaches "
        "nothing; evaluation asks for a greedy response beside the sampled ones",
        "Lower `temperature`, or set `num_samples_per_problem` to 0 to evaluate "
        "greedily only",
    ),
    Refusal(
        "env_to_module_connector module_to_env_connector "
        "add_default_connectors_to_env_to_module_pipeline "
        "add_default_connectors_to_module_to_env_pipeline",
        "a generator turns whole prompts into whole responses, and no connectors run "
        "between it and the environment",
        "Change prompts in the environment, and batches by "
        "`.learners(learner_connector=...)`",
    ),
    Refusal(
        "episode_lookback_horizon episodes_to_numpy",
        "an episode is one whole response in NumPy arrays",
    ),
    Refusal(
        "merge_env_runner_states broadcast_env_runner_states "
        "use_env_runner_state_server env_runner_state_server_max_concurrency "
        "env_runner_restore_timeout_s",
        "env runners have no state but the weights that they are sent",
    ),
    Refusal(
        "max_requests_in_flight_per_env_runner max_requests_in_flight_per_learner "
        "num_aggregator_actors_per_learner max_requests_in_flight_per_aggregator_actor",
        "an iteration calls each env runner and each learner once",
        "Set `.training(max_weight_lag=1)` to sample while learners update",
    ),
    Refusal(
        "ignore_env_runner_failures delay_between_env_runner_restarts_s "
        "restart_failed_sub_environments "
        "num_consecutive_env_runner_failures_tolerance",
        "other env runners sample the groups of one that is lost at once, and an error "
        "that it raises ends the run",
        "Set `restart_failed_env_runners` or `max_num_env_runner_restarts`",
    ),
    Refusal(
        "clip_rewards is_atari",
        "verified rewards are 0 or 1 and process rewards bounded by their step scorer",
        "Cap process rewards by `.training(hack_caps=...)`, weigh them by "
        "`process_reward_coeff`, or change them in the step scorer",
    ),
    Refusal(
        "_use_msgpack_checkpoints",
        "an optimiser's state is PyTorch's tensors, which msgpack does not write",
    ),
    Refusal(
        "on_env_runners_recreated",
        "a lost env runner comes back while others sample its groups",
        "Read the metric `groups/resampled` in `on_train_result`",
    ),
    Refusal(
        "observation_space action_space",
        "the environment makes them of its tokenizer and its token budgets",
    ),
    Refusal(
        "optimizer",
        "the optimiser is AdamW",
        "Set `.training(adam_betas=..., adam_epsilon=..., weight_decay=...)`",
    ),
    Refusal(
        "_torch_grad_scaler_class",
        "float16 alone would need its losses scaled, and gradients are float32 sums",
        'Set `.rl_module(model_config={"autocast_dtype": "bfloat16"})`',
    ),
    Refusal(
        "_torch_lr_scheduler_classes",
        "each step sets the learning rate that `lr` says",
        "Give `lr` a schedule, `[[timestep, lr], ...]`, or set `lr_warmup_updates`",
    ),
    Refusal("shuffle_batch_per_epoch", "each epoch shuffles its groups anyway"),
    Refusal("grad_clip_by", "gradients are clipped by their norm over all learners"),
    Refusal(
        "model _disable_preprocessor_api _disable_action_flattening",
        "the policy is a language model, and reads and writes tokens",
        "Set `.rl_module(model_config=...)`",
    ),
    Refusal(
        "torch_compile_learner torch_compile_learner_what_to_compile "
        "torch_compile_learner_dynamo_mode torch_compile_learner_dynamo_backend "
        "torch_compile_worker torch_compile_worker_dynamo_backend "
        "torch_compile_worker_dynamo_mode",
        "almost every micro-batch has another shape, and would be compiled anew; "
        "generators bring kernels of their own",
        'Set `.env_runners(generator="vllm")` for faster sampling',
    ),
    Refusal("torch_ddp_kwargs", "gradients are summed over the learners without DDP"),
    Refusal(
        "torch_skip_nan_gradients",
        "a loss or gradient that is not finite ends the run before it changes weights, "
        "with an error that names its groups",
        "Set `grad_clip`, or lower `lr`",
    ),
    Refusal("framework", "the policy is a PyTorch model"),
    Refusal(
        "enable_rl_module_and_learner enable_env_runner_and_connector_v2",
        "the old API stack has no place for whole responses",
    ),
    Refusal(
        "add_default_connectors_to_learner_pipeline",
        "RLlib's own pieces expect one row per timestep, and rows are whole responses",
        "Add pieces by `.learners(learner_connector=...)`",
    ),
    Refusal(
        "evaluation_duration_unit evaluation_auto_duration_min_env_steps_per_sample "
        "evaluation_auto_duration_max_env_steps_per_sample "
        "evaluation_force_reset_envs_before_iteration custom_evaluation_function",
        "an evaluation asks `evaluation_duration` whole problems, always the same ones",
        "Leave it out, and read `Algorithm.evaluate()` or `on_evaluate_end` for "
        "figures of your own",
    ),
    Refusal(
        "evaluation_num_env_runners evaluation_parallel_to_training "
        "evaluation_sample_timeout_s evaluation_unhealthy_workers_timeout_s "
        "evaluation_error_after_n_consecutive_skips",
        "the training env runners evaluate as well: they hold the generator",
        "Leave it out; `num_env_runners` and `sample_timeout_s` hold for both",
    ),
    Refusal(
        "off_policy_estimation_methods ope_split_batch_by_episode "
        "offline_evaluation_interval num_offline_eval_runners offline_evaluation_type "
        "offline_eval_runner_class offline_loss_for_module_fn "
        "offline_eval_batch_size_per_runner dataset_num_iters_per_offline_eval_runner "
        "offline_eval_rl_module_inference_only num_cpus_per_offline_eval_runner "
        "num_gpus_per_offline_eval_runner custom_resources_per_offline_eval_runner "
        "offline_evaluation_timeout_s max_requests_in_flight_per_offline_eval_runner "
        "broadcast_offline_eval_runner_states "
        "validate_offline_eval_runners_after_construction "
        "restart_failed_offline_eval_runners ignore_offline_eval_runner_failures "
        "max_num_offline_eval_runner_restarts "
        "offline_eval_runner_health_probe_timeout_s "
        "offline_eval_runner_restore_timeout_s "
        "on_evaluate_offline_start on_evaluate_offline_end "
        "on_offline_eval_runners_recreated",
        "the policy is evaluated on responses of its own, never on recorded ones",
        "Set `.evaluation(evaluation_interval=...)`",
    ),
    Refusal(
        "input_ offline_data_class input_read_method input_read_method_kwargs "
        "input_read_schema input_read_episodes input_read_sample_batches "
        "input_read_batch_size input_filesystem input_filesystem_kwargs "
        "input_compress_columns materialize_data materialize_mapped_data "
        "map_batches_kwargs iter_batches_kwargs ignore_final_observation "
        "prelearner_class prelearner_buffer_class prelearner_buffer_kwargs "
        "prelearner_module_synch_period prelearner_use_recorded_module_states "
        "dataset_num_iters_per_learner input_config actions_in_input_normalized "
        "postprocess_inputs shuffle_buffer_size offline_sampling",
        "the policy learns from responses that it has just sampled itself",
        'Give problems by `.environment(env_config={"dataset": ...})`',
    ),
    Refusal(
        "output output_config output_compress_columns output_max_file_size "
        "output_max_rows_per_file output_write_remaining_data output_write_method "
        "output_write_method_kwargs output_filesystem output_filesystem_kwargs "
        "output_write_episodes",
        "nothing here writes RLlib's recordings of episodes",
        "Read `Algorithm.rollouts()`, or the run's folder of `pure-rllib train`",
    ),
    Refusal(
        "policies policy_mapping_fn policies_to_train observation_fn "
        "policy_states_are_swappable algorithm_config_overrides_per_module",
        "there is one module, the policy, and it is trained",
        "Set what it overrides by the setters",
    ),
    Refusal(
        "metrics_num_episodes_for_smoothing",
        "figures are those of one iteration",
        "Smooth them where they are plotted",
    ),
)
"""Settings that nothing reads here. What differs from the default is an error."""

NEUTRAL = {
    "whole responses are complete episodes, which either value gives": "batch_mode",
    "the local env runner always has its environment": "create_env_on_local_worker",
    "of Box actions only; tokens are Discrete": "normalize_actions clip_actions",
    "of multi-agent environments only": (
        "disable_env_checking count_steps_by policy_map_capacity"
    ),
    "read by nothing in RLlib's new API stack": (
        "action_mask_key render_env compress_observations use_worker_filter_stats "
        "update_worker_filter_stats exploration_config sample_collector "
        "remote_env_batch_wait_ms preprocessor_pref observation_filter "
        "sampler_perf_stats_ema_coef keep_per_episode_custom_metrics "
        "metrics_episode_collection_timeout_s export_native_model_files "
        "checkpoint_trainable_policies_only fake_sampler num_gpus _fake_gpus "
        "extra_python_environs_for_driver extra_python_environs_for_worker "
        "_disable_initialize_loss_from_dummy_batch"
    ),
    "of TensorFlow only": (
        "enable_tf1_exec_eagerly eager_tracing eager_max_retraces tf_session_args "
        "local_tf_session_args _tf_policy_handles_more_than_one_loss"
    ),
}
"""Settings that RLlib's own new API stack does not act on either, by the reason."""

_UNIT, _RUN = "unit/test_rllib_settings.py", "integration/test_rllib_settings.py"
_RESOURCES = f"{_UNIT}::test_resources_are_what_a_trial_asks_for"
_CHANGES = f"{_RUN}::test_what_acts_on_updates_changes_them"
_REPORTS = f"{_RUN}::test_what_is_reported"
_CALLBACKS = (
    "integration/test_callbacks.py"
    "::test_evaluation_and_training_call_the_users_callbacks"
)
_LEARNER = (
    "integration/test_algorithms.py::test_a_custom_loss_in_rllibs_form_acts_and_logs"
)
ACTS = {
    _RUN + "::test_an_environment_given_as_a_class_trains": "env",
    "unit/test_pure_config.py::test_environment_gets_the_token_budget": "env_config",
    _UNIT + "::test_classes_of_another_kind_are_refused": "env_runner_cls",
    "integration/test_pure.py"
    "::test_two_env_runners_and_two_learners_make_the_same_updates": "num_env_runners",
    _RUN + "::test_env_runners_are_made_watched_and_restarted": (
        "create_local_env_runner validate_env_runners_after_construction "
        "restart_failed_env_runners max_num_env_runner_restarts "
        "env_runner_health_probe_timeout_s"
    ),
    "integration/test_hung_env_runner.py"
    "::test_a_stopped_env_runner_is_replaced_and_its_prompts_asked_again": (
        "sample_timeout_s"
    ),
    _RESOURCES: (
        "num_cpus_per_env_runner num_gpus_per_env_runner "
        "custom_resources_per_env_runner num_cpus_for_main_process "
        "custom_resources_for_main_process placement_strategy num_learners "
        "num_cpus_per_learner num_gpus_per_learner custom_resources_per_learner"
    ),
    _UNIT + "::test_a_gpu_is_chosen_by_its_index": "local_gpu_idx",
    _LEARNER: "learner_class learner_config_dict",
    "integration/test_learners.py"
    "::test_what_one_learner_raises_is_raised_within_seconds": "learner_connector",
    _CHANGES: "gamma lr grad_clip num_epochs minibatch_size seed",
    _CALLBACKS: (
        "callbacks_class on_algorithm_init on_train_result on_evaluate_start "
        "on_evaluate_end on_checkpoint_loaded"
    ),
    "integration/test_callbacks.py"
    "::test_sampling_calls_the_users_callbacks_in_rllibs_order": (
        "on_environment_created on_episode_created on_episode_start on_episode_step "
        "on_episode_end on_sample_end"
    ),
    _RUN + "::test_evaluation_has_settings_of_its_own": (
        "evaluation_config evaluation_interval evaluation_duration"
    ),
    _RUN + "::test_a_model_in_the_modules_spec_is_everyones": (
        "model_config rl_module_spec"
    ),
    _REPORTS: "log_gradients custom_stats_cls_lookup log_level log_sys_usage",
    _UNIT + "::test_validation_can_be_switched_off": "_validate_config",
}
"""Settings that act, by the tests, in tests/, that show it."""

_STORED = {
    "framework": "framework_str",
    "custom_stats_cls_lookup": "stats_cls_lookup",
    "dataset_num_iters_per_offline_eval_runner": "dataset_num_iters_per_eval_runner",
}
"""Attributes of a config whose name does not follow from the argument's."""
_REFUSED = {name: refusal for refusal in REFUSALS for name in refusal.names.split()}


def is_refused(name: str) -> bool:
    """Whether an argument of RLlib's setters must stay as it is."""
    return name in _REFUSED


def check_rllib_settings(config: Any, defaults: Any) -> None:
    """Checks that no setting of RLlib's was changed that nothing here reads.

    Args:
        config: the `LLMConfig`.
        defaults: another one, as it was made.

    Raises:
        ValueError: naming the first such setting, the reason and the way out.
    """
    values, known = vars(config), vars(defaults)
    for name, refusal in _REFUSED.items():
        key = attribute(name, known)
        # A config of an earlier version may lack it.
        value, default = values.get(key, known[key]), known[key]
        if name == "policies":
            # Their specs are the old API stack's, and have several forms.
            value, default = set(value), set(default)
        elif isinstance(value, dict) and isinstance(default, dict):
            value = {k: v for k, v in value.items() if differs(v, default.get(k))}
            default = {}
        if differs(value, default):
            raise ValueError(
                f"`{name}` ({_shown(value)}) must be {_must(default)}, because "
                f"{refusal.because}. {refusal.instead}."
            )


def attribute(name: str, attributes: Mapping[str, Any]) -> str:
    """Returns under which name a config stores an argument of RLlib's setters.

    Args:
        name: the argument.
        attributes: of a config.
    """
    names = (_STORED.get(name, name), f"_{name}", f"callbacks_{name}")
    return next(name for name in names if name in attributes)


def differs(value: Any, default: Any) -> bool:
    """Whether a setting has been changed."""
    return value is not default and bool(value != default)


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _must(default: Any) -> str:
    is_plain = isinstance(default, bool | int | float | str)
    return _shown(default) if is_plain else "left out"


def setters() -> dict[str, dict[str, inspect.Parameter]]:
    """Returns RLlib's setters with their arguments, by inspection."""
    return {
        name: {
            argument.name: argument
            for argument in inspect.signature(method).parameters.values()
            if argument.default is NotProvided or argument.kind == argument.KEYWORD_ONLY
        }
        for name, method in inspect.getmembers(AlgorithmConfig, inspect.isfunction)
        if inspect.signature(method).return_annotation is typing.Self
        and name not in ("copy", "update_from_dict", "get_config_for_module")
    }


def is_deprecated(argument: inspect.Parameter) -> bool:
    """Whether RLlib itself raises, or warns and sets another, for an argument."""
    return bool(argument.default == DEPRECATED_VALUE)


def table() -> str:
    """Returns the table of docs/rllib.md: each setting, and what becomes of it."""
    by_name = {name: f"refused: {r.because}" for name, r in _REFUSED.items()}
    for reason, names in NEUTRAL.items():
        by_name |= dict.fromkeys(names.split(), f"neutral: {reason}")
    for test, names in ACTS.items():
        by_name |= dict.fromkeys(names.split(), f"acts (`{test}`)")
    lines = ["| Setter | Setting | Here |", "|---|---|---|"]
    for setter, arguments in setters().items():
        for name, argument in arguments.items():
            here = "neutral: RLlib names its successor"
            if not is_deprecated(argument):
                here = by_name[name]
            lines.append(f"| `{setter}` | `{name}` | {here} |")
    return "\n".join(lines)
