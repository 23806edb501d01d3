"""Weights on their way from learners to env runners, and whether they arrived."""
