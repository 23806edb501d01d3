"""Metrics, progress, plots and the rollouts page."""
