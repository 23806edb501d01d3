"""PURE: process-reward reinforcement learning of language models in Ray RLlib."""

__version__ = "0.1.0"
