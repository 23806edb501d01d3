"""The algorithms. Importing this package registers them with Ray Tune by name."""

from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.registry import register_trainable

import pure_rllib.envs  # noqa: F401 (registers the environments' ids)
from pure_rllib.algorithms.pure.pure import PURE
from pure_rllib.algorithms.pure.pure_config import PUREConfig
from pure_rllib.hacking.monitor import RewardHackingMonitor

ALGORITHMS: dict[str, type[Algorithm]] = {"PURE": PURE}
"""By the name that Tune, `run:` of YAML files and messages call them."""

for _name, _algorithm in ALGORITHMS.items():
    register_trainable(_name, _algorithm)

__all__ = ["ALGORITHMS", "PURE", "PUREConfig", "RewardHackingMonitor"]
