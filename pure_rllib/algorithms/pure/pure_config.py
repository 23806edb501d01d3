"""Settings of PURE, in RLlib's own form."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms.config_rules import check_config
from pure_rllib.algorithms.hacking_settings import HackingSettings
from pure_rllib.algorithms.learner_settings import LearnerSettings
from pure_rllib.credit.presets import PRESETS, CreditConfig
from pure_rllib.models.loading import resolve_model

# How blank steps end is the step splitter's matter, not a setting.
_CREDIT_SETTINGS = tuple(
    field.name for field in fields(CreditConfig) if field.name != "blank_steps"
)
# Two implementations of a forward pass differ by rounding: by some 1e-6 nats in
# float32, by tenths on improbable tokens in bfloat16. A stale tensor costs more.
_MAX_LOGP_GAP = 0.01
_MAX_LOGP_GAP_HALF = 1.0
# What a preset leaves alone: it belongs to the run and not to the variant.
_NOT_IN_PRESETS = ("gamma", "max_response_tokens")


class PUREConfig(LearnerSettings, HackingSettings):
    """Defines a configuration from which a PURE algorithm can be built.

    .. code-block:: python

        from pure_rllib.algorithms import PUREConfig

        config = (
            PUREConfig()
            .environment("pure_rllib/Arithmetic-v0")
            .env_runners(num_prompts=16, group_size=8, max_response_tokens=96)
            .training(credit_assignment="min", credit_temperature=0.1, lr=6.0e-4)
        )
        algo = config.build_algo()
        algo.train()

    Settings that are RLlib's keep RLlib's names and meaning.
    """

    def __init__(self, algo_class: Any = None):
        """Lists every setting of PURE with its default, by setter."""
        if algo_class is None:
            from pure_rllib.algorithms.pure.pure import PURE as algo_class  # noqa: N811
        super().__init__(algo_class=algo_class)
        from pure_rllib.rollouts.env_runner import LLMEnvRunner

        # .env_runners()
        self.env_runner_cls = LLMEnvRunner
        self.num_env_runners = 0
        self.sample_timeout_s: float | None = 3600.0
        self.num_prompts = 16
        self.group_size = 8
        self.temperature = 1.0
        self.top_p = 1.0
        self.max_response_tokens: int | None = None
        self.generator = "transformers"
        self.generator_kwargs: dict[str, Any] = {}
        self.num_prm_actors = 0
        self.prm_actor_kwargs: dict[str, Any] = {}
        self.max_logp_gap: float | None = None
        # .training()
        self.lr = 1.0e-6
        self.grad_clip = 1.0
        self.grad_clip_by = "global_norm"
        self.num_epochs = 1
        self.minibatch_size: int | None = None
        self.preset: str | None = None
        self.formulas = "ours"
        self.credit_assignment = "min"
        self.credit_temperature = 0.1
        self.gamma = 1.0
        self.baseline = "token"
        self.process_reward_coeff = 1.0
        self.verifiable_reward_coeff = 1.0
        self.mask_separators = True
        self.mask_truncated = False
        self.normalize_advantages: bool | str = False
        self.no_signal_groups = "keep"
        self.max_refill_rounds = 4
        self.clip_param = 0.2
        self.clip_param_high: float | None = None
        self.loss_aggregation = "token_mean"
        self.kl_coeff = 0.0
        self.kl_estimator = "k1"
        self.kl_placement = "reward"
        self.entropy_coeff = 0.0
        self.micro_batch_tokens = 16_384
        self.lr_warmup_updates = 0
        self.adam_betas: tuple[float, float] = (0.9, 0.999)
        self.adam_epsilon = 1.0e-8
        self.weight_decay = 0.0
        self.rollout_correction: str | None = None
        self.rollout_correction_cap: float | None = None
        self.max_weight_lag = 0
        self.hack_caps: dict[str, float] = {}
        self.hack_limits: dict[str, float] = {}
        # .evaluation()
        self.evaluation_duration = 200
        self.evaluation_duration_unit = "episodes"
        self.num_samples_per_problem = 4
        # .reporting()
        self.hacking_monitor: str | None = None
        self.hacking_thresholds: dict[str, float] = {}
        # RLlib would find this out by making the environment, without its settings.
        self._is_atari = False
        # RLlib's own pieces expect one row per timestep; ours are whole responses.
        self.add_default_connectors_to_learner_pipeline = False
        # Nothing that RLlib would synchronise after each iteration exists here.
        self._dont_auto_sync_env_runner_states = True

    @override(AlgorithmConfig)
    def env_runners(
        self,
        *,
        num_prompts: int = NotProvided,
        group_size: int = NotProvided,
        temperature: float = NotProvided,
        top_p: float = NotProvided,
        max_response_tokens: int | None = NotProvided,
        generator: str = NotProvided,
        generator_kwargs: Mapping[str, Any] = NotProvided,
        max_logp_gap: float | None = NotProvided,
        num_prm_actors: int = NotProvided,
        prm_actor_kwargs: Mapping[str, Any] = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets how responses are sampled.

        Args:
            num_prompts: prompts per iteration, over all env runners; >= 1.
            group_size: G, responses per prompt; >= 2.
            temperature: of sampling, > 0; also of all log-probabilities.
            top_p: nucleus size in (0, 1].
            max_response_tokens: token budget of a response; None: the environment's.
            generator: "transformers", or "vllm" (an extra; see docs/engines.md).
            generator_kwargs: further arguments of the generator; those of vLLM have
                vLLM's names.
            max_logp_gap: by how much, in nats, the generator's log-probabilities of a
                few fixed tokens may differ from the learner's after it took over
                weights; more is an error. None: 0.01 in float32, else 1.0.
            num_prm_actors: processes that score steps for all env runners; 0: each env
                runner scores its own.
            prm_actor_kwargs: the fields of `PRMPoolSettings`.
            **kwargs: RLlib's own. `sample_timeout_s` is 3600 here, because RLlib's 60
                seconds are too short for language models; the driver kills an env
                runner that it waits for any longer. None: no limit.
        """
        super().env_runners(**kwargs)
        return self._set(
            num_prompts=num_prompts,
            group_size=group_size,
            temperature=temperature,
            top_p=top_p,
            max_response_tokens=max_response_tokens,
            generator=generator,
            generator_kwargs=generator_kwargs,
            max_logp_gap=max_logp_gap,
            num_prm_actors=num_prm_actors,
            prm_actor_kwargs=prm_actor_kwargs,
        )

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        preset: str | None = NotProvided,
        formulas: str = NotProvided,
        credit_assignment: str = NotProvided,
        credit_temperature: float = NotProvided,
        baseline: str = NotProvided,
        process_reward_coeff: float = NotProvided,
        verifiable_reward_coeff: float = NotProvided,
        mask_separators: bool = NotProvided,
        mask_truncated: bool = NotProvided,
        normalize_advantages: bool | str = NotProvided,
        no_signal_groups: str = NotProvided,
        max_refill_rounds: int = NotProvided,
        clip_param: float = NotProvided,
        clip_param_high: float | None = NotProvided,
        loss_aggregation: str = NotProvided,
        kl_coeff: float = NotProvided,
        kl_estimator: str = NotProvided,
        kl_placement: str = NotProvided,
        entropy_coeff: float = NotProvided,
        micro_batch_tokens: int = NotProvided,
        lr_warmup_updates: int = NotProvided,
        adam_betas: Sequence[float] = NotProvided,
        adam_epsilon: float = NotProvided,
        weight_decay: float = NotProvided,
        rollout_correction: str | None = NotProvided,
        rollout_correction_cap: float | None = NotProvided,
        max_weight_lag: int = NotProvided,
        hack_caps: Mapping[str, float] = NotProvided,
        hack_limits: Mapping[str, float] = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets credit assignment, loss and optimiser.

        Args:
            preset: "paper", "pure_openrlhf" or "pure_verl": sets the settings in which
                PURE's published variants differ; the others of this call win over it.
            formulas: "ours", or "pure_openrlhf" or "pure_verl" for those of PURE's two
                published implementations; presets set it.
            credit_assignment: "min" (soft minimum), "strict_min" or "sum".
            credit_temperature: of the soft minimum, > 0, in reward units.
            baseline: "token", "step", "length" or "response".
            process_reward_coeff: weight of the PRM's rewards, >= 0.
            verifiable_reward_coeff: weight of the verifier's reward, >= 0.
            mask_separators: no advantage for the last token of a step.
            mask_truncated: no loss for responses that ran out of tokens.
            normalize_advantages: False, True (over all loss tokens of the batch), or
                "pure_openrlhf" or "pure_verl".
            no_signal_groups: "keep", "drop", or "refill" (dynamic sampling: drop, and
                sample further prompts until `num_prompts` groups teach something).
            max_refill_rounds: limit of such further rounds; >= 1.
            clip_param: the ratio is clipped below at 1 - clip_param.
            clip_param_high: and above at 1 + this; None: the same.
            loss_aggregation: "token_mean", "sequence_mean" or "fixed_length".
            kl_coeff: weight of the KL to the reference policy; 0.0 loads none.
            kl_estimator: "k1", "k2" or "k3".
            kl_placement: "reward" or "loss".
            entropy_coeff: weight of an entropy bonus.
            micro_batch_tokens: tokens, padding included, per forward and backward pass.
            lr_warmup_updates: optimiser steps over which `lr` rises from 0.
            adam_betas: of AdamW.
            adam_epsilon: of AdamW.
            weight_decay: of AdamW.
            rollout_correction: for generators that are not quite the learner's policy:
                "none", "token_truncated" (importance weights, cut to the cap) or
                "sequence_mask" (no loss for responses that are too far off); None:
                "token_truncated" with a lag or with LoRA on weights of low
                precision, else "none".
            rollout_correction_cap: largest weight; for "sequence_mask", largest factor
                by which the ratio's geometric mean may be off. None: 2.0 or 1.01.
            max_weight_lag: 0, or 1 to sample the next batch while learners update; its
                weights are one version old then.
            hack_caps: flag (see docs/reward_hacking.md) -> largest process reward, in
                [-1, 1], of the steps of a response that bears it; {} changes nothing.
            hack_limits: the fields of `HackLimits`, where flags begin.
            **kwargs: RLlib's own. `minibatch_size` counts responses per optimiser step
                (None: all of an iteration), a multiple of `group_size`.
        """
        super().training(**kwargs)
        if preset is not NotProvided and preset is not None:
            self._apply_preset(preset)
        return self._set(
            preset=preset,
            formulas=formulas,
            credit_assignment=credit_assignment,
            credit_temperature=credit_temperature,
            baseline=baseline,
            process_reward_coeff=process_reward_coeff,
            verifiable_reward_coeff=verifiable_reward_coeff,
            mask_separators=mask_separators,
            mask_truncated=mask_truncated,
            normalize_advantages=normalize_advantages,
            no_signal_groups=no_signal_groups,
            max_refill_rounds=max_refill_rounds,
            clip_param=clip_param,
            clip_param_high=clip_param_high,
            loss_aggregation=loss_aggregation,
            kl_coeff=kl_coeff,
            kl_estimator=kl_estimator,
            kl_placement=kl_placement,
            entropy_coeff=entropy_coeff,
            micro_batch_tokens=micro_batch_tokens,
            lr_warmup_updates=lr_warmup_updates,
            adam_betas=adam_betas,
            adam_epsilon=adam_epsilon,
            weight_decay=weight_decay,
            rollout_correction=rollout_correction,
            rollout_correction_cap=rollout_correction_cap,
            max_weight_lag=max_weight_lag,
            hack_caps=hack_caps,
            hack_limits=hack_limits,
        )

    @override(AlgorithmConfig)
    def evaluation(
        self, *, num_samples_per_problem: int = NotProvided, **kwargs: Any
    ) -> Self:
        """Sets how the policy is evaluated on held-out problems.

        Args:
            num_samples_per_problem: responses sampled at `temperature` to each problem,
                beside the greedy one; 0 for none.
            **kwargs: RLlib's own. `evaluation_duration` counts problems.
        """
        super().evaluation(**kwargs)
        return self._set(num_samples_per_problem=num_samples_per_problem)

    def _apply_preset(self, preset: str) -> None:
        if preset not in PRESETS:
            raise ValueError(
                f'`preset` ("{preset}") must be one of {sorted(PRESETS)}. Or set the '
                "credit settings one by one."
            )
        for name in set(_CREDIT_SETTINGS) - set(_NOT_IN_PRESETS):
            setattr(self, name, getattr(PRESETS[preset], name))

    def credit_config(self) -> CreditConfig:
        """Returns the settings of credit assignment.

        Raises:
            ValueError: a setting cannot work.
        """
        return CreditConfig(**{name: getattr(self, name) for name in _CREDIT_SETTINGS})

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Checks types, ranges and combinations; nothing is loaded for it."""
        super().validate()
        check_config(self)
        self.add_hacking_monitor()

    @property
    def groups_per_step(self) -> int | None:
        """Groups per optimiser step; None means all of an iteration."""
        return self.minibatch_size and self.minibatch_size // self.group_size

    @property
    def logp_gap_limit(self) -> float:
        """`max_logp_gap`, or what the dtype allows."""
        if self.max_logp_gap is not None:
            return self.max_logp_gap
        is_exact = self.full_model_config()["dtype"] == "float32"
        return _MAX_LOGP_GAP if is_exact else _MAX_LOGP_GAP_HALF

    def full_env_config(self) -> dict[str, Any]:
        """Returns `env_config` with `max_response_tokens`, where that is set."""
        settings = dict(self.env_config)
        if self.max_response_tokens is not None:
            settings["max_response_tokens"] = self.max_response_tokens
        return settings

    def full_model_config(self) -> dict[str, Any]:
        """Returns `model_config` with defaults, and `embedded:` names as folders."""
        from pure_rllib.models.llm_rl_module import MODEL_CONFIG_DEFAULTS

        settings = {**MODEL_CONFIG_DEFAULTS, **self.model_config}
        if isinstance(settings["model"], str):
            settings["model"] = resolve_model(settings["model"])
        return settings

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {
            **super()._model_config_auto_includes,
            "temperature": self.temperature,
            "with_reference": self.kl_coeff > 0.0,
            "seed": self.seed or 0,
        }

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Returns the spec of `LLMRLModule`."""
        from pure_rllib.models.llm_rl_module import LLMRLModule

        return RLModuleSpec(
            module_class=LLMRLModule, model_config=self.full_model_config()
        )

    @override(AlgorithmConfig)
    def build_learner_group(self, *, placement_group: Any = None, **kwargs: Any) -> Any:
        """Builds the learners, packed on as few nodes as possible."""
        from pure_rllib.algorithms.placement import pack_learners

        places = placement_group or pack_learners(self)
        return super().build_learner_group(placement_group=places, **kwargs)

    @override(AlgorithmConfig)
    def build_learner_connector(
        self,
        input_observation_space: Any,
        input_action_space: Any,
        device: Any = None,
    ) -> ConnectorV2:
        """Returns the pipeline from episodes to advantages, then the user's pieces."""
        from pure_rllib.connectors.pipeline import add_pure_connectors

        pipeline = super().build_learner_connector(
            input_observation_space, input_action_space, device
        )
        add_pure_connectors(pipeline, self)
        return pipeline
