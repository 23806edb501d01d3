"""The algorithm. Importing this package registers "PURE" with Ray Tune."""

from ray.tune.registry import register_trainable

import pure_rllib.envs  # noqa: F401 (registers the environments' ids)
from pure_rllib.algorithms.pure.pure import PURE
from pure_rllib.algorithms.pure.pure_config import PUREConfig
from pure_rllib.hacking.monitor import RewardHackingMonitor

register_trainable("PURE", PURE)

__all__ = ["PURE", "PUREConfig", "RewardHackingMonitor"]
