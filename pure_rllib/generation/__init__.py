"""Sampling responses from a policy, and its log-probabilities."""
