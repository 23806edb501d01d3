"""Settings of the learners: how many there are, and how they share the work."""

from collections.abc import Mapping
from typing import Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.utils.annotations import override


class LearnerSettings(AlgorithmConfig):
    """The part of `PUREConfig` behind `.learners()`."""

    def __init__(self, algo_class: Any = None):
        super().__init__(algo_class=algo_class)
        self.deepspeed: Mapping[str, Any] | None = None
        self.collective_timeout_s = 1800.0
        self.weight_transport = "auto"

    @override(AlgorithmConfig)
    def learners(
        self,
        *,
        deepspeed: Mapping[str, Any] | None = NotProvided,
        collective_timeout_s: float = NotProvided,
        weight_transport: str = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets how many learners there are and how they work together.

        Args:
            deepspeed: settings of DeepSpeed's ZeRO under DeepSpeed's names: `stage` 1,
                2 or 3, `offload_optimizer`, `offload_param`, and sizes of buckets; see
                docs/engines.md. None: each learner holds a replica.
            collective_timeout_s: how long a learner may wait for another, in seconds,
                before the run ends with an error that says where.
            weight_transport: how weights get to env runners: "files", "broadcast"
                (vLLM's own transfer), or "auto": broadcast where learners and vLLM's
                engines have whole GPUs, else files.
            **kwargs: RLlib's own, such as `num_learners`.
        """
        super().learners(**kwargs)
        return self._set(
            deepspeed=deepspeed,
            collective_timeout_s=collective_timeout_s,
            weight_transport=weight_transport,
        )

    def _set(self, **settings: Any) -> Self:
        for name, value in settings.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> Any:
        """Returns `PURETorchLearner`, or `DeepSpeedLearner` if `deepspeed` is set."""
        if self.deepspeed is not None:
            from pure_rllib.learners.deepspeed_learner import DeepSpeedLearner

            return DeepSpeedLearner
        from pure_rllib.learners.torch_learner import PURETorchLearner

        return PURETorchLearner

    @override(AlgorithmConfig)
    def build_learner_group(
        self, *, rl_module_spec: Any = None, placement_group: Any = None, **kwargs: Any
    ) -> Any:
        """Returns a learner group that raises what its learners raise."""
        from pure_rllib.learners.learner_group import PURELearnerGroup

        return PURELearnerGroup(
            config=self.copy(),
            module_spec=rl_module_spec or self.get_multi_rl_module_spec(**kwargs),
            placement_group=placement_group,
        )
