"""Running a live module without dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts every submodule in evaluation mode, and back as it was afterwards."""
    # `model.train()` would also turn on parts that the caller keeps in evaluation mode.
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
