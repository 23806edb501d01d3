"""Settings that all algorithms share, in RLlib's own form, each with its rule."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override

from pure_rllib.algorithms.config_rules import check_config
from pure_rllib.algorithms.rllib_settings import check_rllib_settings, differs
from pure_rllib.connectors.group_advantages import GroupAdvantages
from pure_rllib.credit.kl import KLEstimator
from pure_rllib.credit.normalize import NormalizeStyle
from pure_rllib.credit.policy_loss import LossAggregation, RatioLevel
from pure_rllib.credit.rollout_correction import RolloutCorrection
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.generation.make_generator import GeneratorName
from pure_rllib.learners.rollout_correction import correction_mode
from pure_rllib.models.loading import resolve_model
from pure_rllib.models.logprobs import LOGP
from pure_rllib.reporting.records import ResponseNumbers
from pure_rllib.setting_types import (
    Count,
    NaturalNumber,
    NonEmptyText,
    NonNegativeFloat,
    PositiveFloat,
    Why,
    check_setting,
    is_search_space,
    rules_of,
)
from pure_rllib.weight_sync.nccl import NCCLBackend

# Two implementations of a forward pass differ by rounding: by some 1e-6 nats in
# float32, by tenths on improbable tokens in bfloat16. A stale tensor costs more.
_MAX_LOGP_GAP = 0.01
_MAX_LOGP_GAP_HALF = 1.0

WeightTransport = Literal["auto", "files", "broadcast"]
"""How weights get to env runners; "files" is the object store."""

WeightUpdate = Literal["drain", "in_flight"]
"""When env runners take over newer weights."""

MonitorAction = Literal["warn", "stop", "go_back"]
"""What the monitor of reward hacking does about an alarm."""

SETTERS = ("env_runners", "training", "learners", "evaluation", "reporting")
"""The setters that settings of ours were added to."""

RLLIB_RULES: dict[str, Any] = {
    "num_env_runners": NaturalNumber,
    "num_learners": NaturalNumber,
    "gamma": FiniteFloat,
    "grad_clip": PositiveFloat | None,
    "num_epochs": Count,
    "minibatch_size": Count | None,
    "sample_timeout_s": PositiveFloat | None,
    "seed": Annotated[
        NaturalNumber | None, Why("because NumPy takes no negative seeds")
    ],
}
"""What RLlib's own settings must be here, beside what RLlib asks."""


class LLMConfig(AlgorithmConfig):
    """What every algorithm for language models can be set to.

    An algorithm derives from it, adds its own settings to the setters, and says in
    `advantage_connectors` how the rewards of whole groups become advantages. Settings
    that are RLlib's keep RLlib's names and meaning.
    """

    takes_any_reward = True
    """Whether a response may earn any number, and not only one in [0, 1]."""

    def __init__(self, algo_class: Any = None):
        """Lists every setting with its default, by setter."""
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
        self.stop: Sequence[str] = ()
        self.generator = "transformers"
        self.generator_kwargs: dict[str, Any] = {}
        self.weight_update = "drain"
        self.num_prm_actors = 0
        self.prm_actor_kwargs: dict[str, Any] = {}
        self.colocate = False
        self.max_logp_gap: float | None = None
        # .training()
        self.lr = 1.0e-6
        self.grad_clip = 1.0
        self.grad_clip_by = "global_norm"
        self.num_epochs = 1
        self.minibatch_size: int | None = None
        self.gamma = 1.0
        self.mask_truncated = False
        self.normalize_advantages: bool | str = False
        self.no_signal_groups = "keep"
        self.max_refill_rounds = 4
        self.clip_param = 0.2
        self.clip_param_high: float | None = None
        self.dual_clip: float | None = None
        self.ratio_level = "token"
        self.loss_aggregation = "token_mean"
        self.kl_coeff = 0.0
        self.kl_estimator = "k1"
        self.entropy_coeff = 0.0
        self.micro_batch_tokens = 16_384
        self.lr_warmup_updates = 0
        self.adam_betas: Sequence[float] = (0.9, 0.999)
        self.adam_epsilon = 1.0e-8
        self.weight_decay = 0.0
        self.rollout_correction: str | None = None
        self.rollout_correction_cap: float | None = None
        self.max_weight_lag = 0
        # .learners()
        self.deepspeed: Mapping[str, Any] | None = None
        self.packing: bool | str = "auto"
        self.collective_timeout_s = 1800.0
        self.weight_transport = "auto"
        # .evaluation()
        self.evaluation_duration = 200
        self.evaluation_duration_unit = "episodes"
        self.num_samples_per_problem = 4
        # .reporting()
        self.hacking_monitor: str | None = None
        self.hacking_thresholds: Mapping[str, float] = {}
        # What is rewarded: an algorithm that can be told otherwise has settings for it.
        self.process_reward_coeff = 0.0
        self.verifiable_reward_coeff = 1.0
        self.kl_placement = "loss"
        self.hack_caps: Mapping[str, float] = {}
        self.hack_limits: Mapping[str, float] = {}
        # RLlib would find this out by making the environment, without its settings.
        self._is_atari = False
        # RLlib's own pieces expect one row per timestep; ours are whole responses.
        self.add_default_connectors_to_learner_pipeline = False
        # Nothing that RLlib would synchronise after each iteration exists here.
        self._dont_auto_sync_env_runner_states = True

    # What an algorithm says of itself

    def advantage_connectors(self) -> list[ConnectorV2]:
        """Returns the learner connectors from whole groups' rewards to advantages.

        They read the columns of `EpisodesToRows`, and `REF_LOGP` where there is a KL;
        the last one has written `ADVANTAGES` `[B, T]`, and may have written `RETURNS`
        `[B, T]`, for reports. `algo.rollouts()` calls them, too, without a module. By
        default the verified reward is compared with the others' mean.
        """
        return [GroupAdvantages(baseline="leave_one_out")]

    def groups_together(self) -> int:
        """Returns how many consecutive groups one learner must hold at once."""
        return 1

    def old_outputs(self) -> Sequence[str]:
        """Returns what the loss reads of the policy before the first update.

        Names of `models.logprobs`, `[B, T]` each, which cost one forward pass: columns
        `OLD_LOGP` and `OLD_MEAN_LOGP`. By default the generator's log-probabilities
        stand for the first, unless they are corrected.
        """
        return () if correction_mode(self) == "none" else (LOGP,)

    def total_rewards(self, judged: Sequence[JudgedResponse]) -> list[float]:
        """Returns what each response of a group earns in all, for reports."""
        coeff = self.verifiable_reward_coeff
        return [coeff * (j.outcome_reward or 0.0) for j in judged]

    def earned(self, response: ResponseNumbers) -> Hashable:
        """Returns what a response's advantages follow from.

        A group whose responses have all earned the same has no signal.
        """
        return response.outcome_reward

    # Setters

    @override(AlgorithmConfig)
    def env_runners(
        self,
        *,
        num_prompts: Count = NotProvided,
        group_size: Annotated[
            int,
            Field(ge=2),
            Why(
                "because the baseline compares a response with the others to its "
                "prompt; set `.env_runners(group_size=4)`"
            ),
        ] = NotProvided,
        temperature: PositiveFloat = NotProvided,
        top_p: Annotated[FiniteFloat, Field(gt=0, le=1)] = NotProvided,
        max_response_tokens: Count | None = NotProvided,
        stop: Sequence[NonEmptyText] = NotProvided,
        generator: GeneratorName = NotProvided,
        generator_kwargs: Mapping[str, Any] = NotProvided,
        colocate: bool = NotProvided,
        weight_update: WeightUpdate = NotProvided,
        max_logp_gap: PositiveFloat | None = NotProvided,
        num_prm_actors: NaturalNumber = NotProvided,
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
            stop: strings that end a response (over turns: a turn) beside EOS; see
                docs/engines.md. The token that completes one is the last.
            generator: "transformers", or "vllm" (an extra; see docs/engines.md).
            generator_kwargs: further arguments of the generator; those of vLLM have
                vLLM's names.
            colocate: vLLM's engine and the learner have one GPU in turn: the engine
                sleeps while the policy is updated. Both are in this process then.
            weight_update: with a `max_weight_lag`, when env runners take over newer
                weights: "drain": between two batches; "in_flight" (vLLM): between two
                tokens, so that responses under way go on with them.
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
        return self._set(locals())

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        mask_truncated: bool = NotProvided,
        normalize_advantages: bool | NormalizeStyle = NotProvided,
        no_signal_groups: Literal["keep", "drop", "refill"] = NotProvided,
        max_refill_rounds: Count = NotProvided,
        clip_param: PositiveFloat = NotProvided,
        clip_param_high: PositiveFloat | None = NotProvided,
        dual_clip: Annotated[FiniteFloat, Field(gt=1)] | None = NotProvided,
        ratio_level: RatioLevel = NotProvided,
        loss_aggregation: LossAggregation = NotProvided,
        kl_coeff: NonNegativeFloat = NotProvided,
        kl_estimator: KLEstimator = NotProvided,
        entropy_coeff: NonNegativeFloat = NotProvided,
        micro_batch_tokens: Count = NotProvided,
        lr_warmup_updates: NaturalNumber = NotProvided,
        adam_betas: Annotated[
            Sequence[Annotated[FiniteFloat, Field(ge=0, lt=1)]],
            Field(min_length=2, max_length=2),
        ] = NotProvided,
        adam_epsilon: PositiveFloat = NotProvided,
        weight_decay: NonNegativeFloat = NotProvided,
        rollout_correction: RolloutCorrection | None = NotProvided,
        rollout_correction_cap: Annotated[FiniteFloat, Field(ge=1)]
        | None = NotProvided,
        max_weight_lag: Annotated[int, Field(ge=0, le=4)] = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets loss and optimiser.

        Args:
            mask_truncated: no loss for responses that ran out of tokens.
            normalize_advantages: False, True (over all loss tokens of the batch), or
                "pure_openrlhf" or "pure_verl".
            no_signal_groups: "keep", "drop", or "refill" (dynamic sampling: drop, and
                sample further prompts until `num_prompts` groups teach something).
            max_refill_rounds: limit of such further rounds; >= 1.
            clip_param: the ratio is clipped below at 1 - clip_param.
            clip_param_high: and above at 1 + this; None: the same.
            dual_clip: c > 1: where the advantage A is negative, a token's loss is at
                most -c A; None: no such limit.
            ratio_level: "token", or "sequence" for the geometric mean of a response's
                ratios (GSPO); set the clips to its much smaller scale then.
            loss_aggregation: "token_mean", "sequence_mean" or "fixed_length".
            kl_coeff: weight of the KL to the reference policy; 0.0 loads none.
            kl_estimator: "k1", "k2" or "k3".
            entropy_coeff: weight of an entropy bonus.
            micro_batch_tokens: tokens, padding included, per forward and backward pass;
                with `packing`, a prompt that responses share counts once.
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
            max_weight_lag: 0, or so many batches, at most 4, are sampled ahead while
                learners update; their weights are so many versions old then.
            **kwargs: RLlib's own. `minibatch_size` counts responses per optimiser step
                (None: all of an iteration), a multiple of `group_size`.
        """
        super().training(**kwargs)
        return self._set(locals())

    @override(AlgorithmConfig)
    def learners(
        self,
        *,
        deepspeed: Mapping[str, Any] | None = NotProvided,
        packing: bool | Literal["auto"] = NotProvided,
        collective_timeout_s: PositiveFloat = NotProvided,
        weight_transport: WeightTransport = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets how many learners there are and how they work together.

        Args:
            deepspeed: settings of DeepSpeed's ZeRO under DeepSpeed's names: `stage` 1,
                2 or 3, `offload_optimizer`, `offload_param`, and sizes of buckets; see
                docs/engines.md. None: each learner holds a replica.
            packing: rows pass through the policy as one without padding, in which a
                group's prompt stands once. "auto": where the policy can, else padded,
                and the log says why; True refuses such a policy; False: padded.
            collective_timeout_s: how long a learner may wait for another, in seconds,
                before the run ends with an error that says where.
            weight_transport: how weights get to env runners: "files" (Ray's object
                store), "broadcast" (vLLM's own transfer between GPUs), or "auto":
                broadcast where learners and vLLM's engines have whole GPUs, else the
                object store.
            **kwargs: RLlib's own, such as `num_learners`.
        """
        super().learners(**kwargs)
        return self._set(locals())

    def weight_backend(self) -> NCCLBackend | None:
        """Returns what sends weights to env runners; None: by the object store."""
        if self.weight_transport == "files" or self.generator != "vllm":
            return None
        if self.max_weight_lag > 1 or self.weight_update == "in_flight":
            return None  # env runners would have to be between two batches
        are_apart = self.num_env_runners and self.num_learners
        return NCCLBackend() if are_apart and self.has_own_gpus else None

    @property
    def has_own_gpus(self) -> bool:
        """Whether learners and env runners have GPUs that they share with nobody."""
        return bool(self.num_gpus_per_learner >= 1 <= self.num_gpus_per_env_runner)

    @override(AlgorithmConfig)
    def evaluation(
        self, *, num_samples_per_problem: NaturalNumber = NotProvided, **kwargs: Any
    ) -> Self:
        """Sets how the policy is evaluated on held-out problems.

        Args:
            num_samples_per_problem: responses sampled at `temperature` to each problem,
                beside the greedy one; 0 for none.
            **kwargs: RLlib's own. `evaluation_duration` counts problems.
        """
        super().evaluation(**kwargs)
        return self._set(locals())

    @override(AlgorithmConfig)
    def reporting(
        self,
        *,
        hacking_monitor: MonitorAction | None = NotProvided,
        hacking_thresholds: Mapping[str, float] = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets what is reported.

        Args:
            hacking_monitor: adds a `RewardHackingMonitor` that on an alarm will "warn",
                "stop" (the trial) or "go_back" (to the last good checkpoint); None adds
                none.
            hacking_thresholds: the fields of `HackingThresholds`, of this monitor and
                of one that was added by `.callbacks(RewardHackingMonitor)`.
            **kwargs: RLlib's own.
        """
        super().reporting(**kwargs)
        return self._set(locals())

    def _set(self, arguments: Mapping[str, Any]) -> Self:
        """Takes over a setter's arguments that are settings and were given."""
        rules = self.rules()
        for name, value in arguments.items():
            if name in rules and value is not NotProvided:
                if not is_search_space(value):
                    check_setting(name, value, rules[name])
                setattr(self, name, value)
        return self

    # What follows from the settings

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Checks types, ranges and combinations; nothing is loaded for it."""
        from pure_rllib.learners.hooks import check_hooks

        # RLlib's copy for evaluation has settings of its own, which nothing reads.
        if self._validate_config and not self.in_evaluation:
            check_rllib_settings(self, LLMConfig())
        super().validate()
        self._add_hacking_monitor()
        if self._validate_config:
            for name, rule in self.rules().items():
                check_setting(name, getattr(self, name), rule)
            check_config(self)
            check_hooks(self)

    @classmethod
    def rules(cls) -> dict[str, Any]:
        """Returns the type of every setting of ours, by name."""
        rules = dict(RLLIB_RULES)
        for base in reversed(cls.__mro__):
            if issubclass(base, LLMConfig):
                for setter in SETTERS:
                    if setter in vars(base):
                        rules |= rules_of(vars(base)[setter])
        return rules

    def _add_hacking_monitor(self) -> None:
        """Adds the monitor to the callbacks, if it is asked for and not there yet."""
        from pure_rllib.hacking.monitor import RewardHackingMonitor

        if self.hacking_monitor is None:
            return
        given = vars(self)["callbacks_class"]
        classes = list(given) if isinstance(given, list | tuple) else [given]
        if RewardHackingMonitor not in classes:
            self.callbacks_class = [*classes, RewardHackingMonitor]

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

    def evaluation_overrides(self) -> dict[str, Any]:
        """Returns what `evaluation_config` changes; see `EVALUATION_OVERRIDES`."""
        own = self.evaluation_config or {}
        return {k: v for k, v in own.items() if differs(v, self.get(k))}

    def longest_response(self, max_response_tokens: int) -> int:
        """Returns the larger budget of training's, which is given, and evaluation's."""
        own = self.evaluation_overrides().get("max_response_tokens")
        return max(max_response_tokens, own or 0)

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
    def own_module_spec(self) -> RLModuleSpec | None:
        """The policy's spec, where `.rl_module(rl_module_spec=...)` gives one."""
        spec = self._rl_module_spec
        if isinstance(spec, MultiRLModuleSpec):
            spec = spec.rl_module_specs.get(DEFAULT_MODULE_ID)
        return spec

    @property
    @override(AlgorithmConfig)
    def model_config(self) -> dict[str, Any]:
        """The settings of the policy; those of its spec win, as everywhere in RLlib."""
        spec = self.own_module_spec
        own = {} if spec is None else spec._get_model_config() or {}
        return {**super().model_config, **own}

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {
            **super()._model_config_auto_includes,
            "temperature": self.temperature,
            "with_reference": self.kl_coeff > 0.0,
            "packing": self.packing,
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
    def get_rl_module_spec(
        self, env: Any = None, spaces: Any = None, inference_only: bool | None = None
    ) -> RLModuleSpec:
        """Returns the policy's spec; without a `model`, of the environment's policy."""
        config = self._with_policy_of(env)
        return super(LLMConfig, config).get_rl_module_spec(env, spaces, inference_only)

    @override(AlgorithmConfig)
    def get_multi_rl_module_spec(
        self, *, env: Any = None, **kwargs: Any
    ) -> MultiRLModuleSpec:
        """Returns the spec of the learners' module, which holds the policy alone."""
        config = self._with_policy_of(env)
        return super(LLMConfig, config).get_multi_rl_module_spec(env=env, **kwargs)

    def _with_policy_of(self, env: Any) -> Self:
        policy = getattr(getattr(env, "unwrapped", None), "default_policy", None)
        if policy is None or self.model_config.get("model") is not None:
            return self
        copy: Self = self.copy(copy_frozen=False)
        return copy.rl_module(model_config={**self._model_config, "model": policy})

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> Any:
        """Returns `LLMTorchLearner`, or `DeepSpeedLearner` if `deepspeed` is set."""
        if self.deepspeed is not None:
            from pure_rllib.learners.deepspeed_learner import DeepSpeedLearner

            return DeepSpeedLearner
        from pure_rllib.learners.torch_learner import LLMTorchLearner

        return LLMTorchLearner

    @override(AlgorithmConfig)
    def build_learner_group(
        self, *, rl_module_spec: Any = None, placement_group: Any = None, **kwargs: Any
    ) -> Any:
        """Returns the learners, whose group raises what they raise."""
        from pure_rllib.algorithms.placement import learners_places
        from pure_rllib.learners.learner_group import PURELearnerGroup

        return PURELearnerGroup(
            config=self.copy(),
            module_spec=rl_module_spec or self.get_multi_rl_module_spec(**kwargs),
            placement_group=placement_group or learners_places(self),
        )

    @override(AlgorithmConfig)
    def build_learner_connector(
        self,
        input_observation_space: Any,
        input_action_space: Any,
        device: Any = None,
    ) -> ConnectorV2:
        """Returns the pipeline from episodes to advantages, then the user's pieces."""
        from pure_rllib.connectors.pipeline import prepend_connectors

        pipeline = super().build_learner_connector(
            input_observation_space, input_action_space, device
        )
        prepend_connectors(pipeline, self)
        return pipeline
