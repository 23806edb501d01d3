"""Which methods of RLlib's classes a subclass may not override here."""

from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils import force_list

from pure_rllib.learners.torch_learner import LLMTorchLearner
from pure_rllib.models.llm_rl_module import LLMRLModule

NEVER_CALLED = frozenset(
    {
        "compute_gradients",
        "get_parameters",
        "should_module_be_updated",
        "add_module",
        "remove_module",
        "_update",
        "_uncompiled_update",
        "_convert_batch_type",
        "_create_iterator_if_necessary",
        "_make_batch_if_necessary",
        "_set_slicing_by_batch_id",
        "_log_metrics",
        "_log_steps_trained_metrics",
        "_compute_off_policyness",
        "_get_clip_function",
        "_get_global_norm_function",
    }
)
"""Of RLlib's learners: an update goes through micro-batches of whole responses."""

NEVER_CALLED_BY_DEEPSPEED = frozenset(
    {"postprocess_gradients", "postprocess_gradients_for_module", "apply_gradients"}
)
"""And with `deepspeed`, which holds gradients in parts and steps by itself."""

NEVER_CALLED_OF_MODULE = frozenset(
    {
        "forward",
        "forward_inference",
        "forward_exploration",
        "_forward",
        "_forward_inference",
        "_forward_exploration",
        "get_inference_action_dist_cls",
        "get_exploration_action_dist_cls",
        "get_train_action_dist_cls",
        "get_initial_state",
        "is_stateful",
        "compile",
    }
)
"""Of RLlib's modules: a generator samples responses, from the module's `policy`."""

NEVER_CALLED_OF_CALLBACKS = frozenset(
    {
        "on_env_runners_recreated",
        "on_evaluate_offline_start",
        "on_evaluate_offline_end",
        "on_offline_eval_runners_recreated",
        # of RLlib's old API stack
        "on_create_policy",
        "on_learn_on_batch",
        "on_postprocess_trajectory",
        "on_sub_environment_created",
        "on_workers_recreated",
    }
)
"""Of RLlib's callbacks: env runners come back one by one, and nothing is offline."""


def check_hooks(config: Any) -> None:
    """Checks that what own classes override will be called.

    Args:
        config: the `LLMConfig`; its classes are of the right kind.

    Raises:
        ValueError: naming the class, its methods and the hooks that act.
    """
    base: type = LLMTorchLearner
    unused = NEVER_CALLED
    if config.deepspeed is not None:
        from pure_rllib.learners.deepspeed_learner import DeepSpeedLearner

        base, unused = DeepSpeedLearner, unused | NEVER_CALLED_BY_DEEPSPEED
        own = config.learner_class
        if isinstance(own, type) and not issubclass(own, base):
            raise ValueError(
                f"`learner_class` ({own.__name__}) must be a subclass "
                "of `DeepSpeedLearner` with `deepspeed`, because another one would not "
                "partition anything. Derive it from that class, or leave `deepspeed` "
                "out."
            )
    _check(
        "learner_class",
        config.learner_class,
        base,
        unused,
        "an update never calls that. Override `compute_loss_for_module` or "
        "`compute_losses` for the loss, `postprocess_gradients` or `apply_gradients` "
        "(not with `deepspeed`), `configure_optimizers_for_module`, or "
        "`before_gradient_based_update` and `after_gradient_based_update`; give "
        "`learner_connector` to change the batch.",
    )
    _check(
        "rl_module_spec.module_class",
        config.own_module_spec and config.own_module_spec.module_class,
        LLMRLModule,
        NEVER_CALLED_OF_MODULE,
        "responses are sampled by the generator, which takes the weights of the "
        "module's `policy`. Override `setup` for another policy, or `_forward_train` "
        "for what the loss gets.",
    )
    for own in force_list(config.callbacks_class):
        _check(
            "callbacks_class",
            own,
            RLlibCallback,
            NEVER_CALLED_OF_CALLBACKS,
            "nothing here calls that. Override `on_train_result`, `on_sample_end` or "
            "another event that acts; docs/rllib.md lists them.",
        )


def _check(
    setting: str, cls: Any, base: type, unused: frozenset[str], why: str
) -> None:
    if not isinstance(cls, type):
        return  # none of one's own, or one that is named and imported later
    names = [
        name
        for name in sorted(unused)
        if getattr(cls, name, None) is not getattr(base, name, None)
    ]
    if names:
        raise ValueError(
            f"`{setting}` ({cls.__name__}) must not override "
            f"{', '.join(f'`{name}`' for name in names)}, because {why}"
        )
