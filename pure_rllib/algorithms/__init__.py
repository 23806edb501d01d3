"""The algorithms. Importing this package registers them with Ray Tune by name."""

from ray.tune.registry import register_trainable

import pure_rllib.envs  # noqa: F401 (registers the environments' ids)
from pure_rllib.algorithms.grpo.grpo import GRPO, GRPOConfig
from pure_rllib.algorithms.llm_algorithm import LLMAlgorithm
from pure_rllib.algorithms.llm_config import LLMConfig
from pure_rllib.algorithms.pure.pure import PURE, PUREConfig
from pure_rllib.algorithms.riskpo.riskpo import RiskPO, RiskPOConfig
from pure_rllib.algorithms.rloo.rloo import RLOO, RLOOConfig
from pure_rllib.algorithms.rover.rover import ROVER, ROVERConfig
from pure_rllib.hacking.monitor import RewardHackingMonitor

ALGORITHMS: dict[str, type[LLMAlgorithm]] = {
    "PURE": PURE,
    "GRPO": GRPO,
    "RLOO": RLOO,
    "RiskPO": RiskPO,
    "ROVER": ROVER,
}
"""By the name that Tune, `run:` of YAML files and messages call them."""

for _name, _algorithm in ALGORITHMS.items():
    register_trainable(_name, _algorithm)

__all__ = [
    "ALGORITHMS",
    "GRPO",
    "PURE",
    "RLOO",
    "ROVER",
    "GRPOConfig",
    "LLMAlgorithm",
    "LLMConfig",
    "PUREConfig",
    "RLOOConfig",
    "ROVERConfig",
    "RewardHackingMonitor",
    "RiskPO",
    "RiskPOConfig",
]
