"""Policies: the RLModule, LoRA, log-probabilities, loading and batching."""
