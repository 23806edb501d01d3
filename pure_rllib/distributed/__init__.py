"""Calls and collectives among learners."""
