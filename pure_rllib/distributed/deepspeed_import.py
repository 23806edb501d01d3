"""DeepSpeed, which is optional, imported for the device at hand."""

import logging
import os
from typing import Any


def import_deepspeed(*, on_cpu: bool) -> Any:
    """Imports DeepSpeed.

    Args:
        on_cpu: whether this process computes on the CPU.

    Returns:
        The module.
    """
    # Read when DeepSpeed is imported; it would guess from what is installed.
    os.environ["DS_ACCELERATOR"] = "cpu" if on_cpu else "cuda"
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    # Shared-memory sums for CPUs, which the first process would compile for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
