"""PURE: process-reward reinforcement learning of language models in Ray RLlib."""

from pure_rllib import old_paths

__version__ = "0.1.0"

old_paths.install()
