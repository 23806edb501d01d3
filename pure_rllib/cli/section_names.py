"""Names of the sections, apart from what must be imported to read them."""

SECTIONS = (
    "environment",
    "env_runners",
    "training",
    "rl_module",
    "learners",
    "evaluation",
    "reporting",
    "debugging",
    "resources",
    "fault_tolerance",
    "checkpointing",
    "framework",
)
"""Setters of `PUREConfig` whose arguments can be written in a file."""
