"""Sums over all learners; with one learner they change nothing.

Each runs in a named phase, which a watchdog reads from another thread.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET_ELEMENTS = 2**25

_Item = TypeVar("_Item")


def num_ranks() -> int:
    """Returns how many learners take part."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Returns this learner's number, 0 for the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def _device() -> torch.device:
    """Where the process group wants its tensors."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else _CPU


_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Phase:
    """What this process is doing.

    Attributes:
        name: for messages.
        started: when, on the monotonic clock.
        waits: whether it may wait for other learners, and so for ever.
    """

    name: str
    started: float
    waits: bool


_phases: list[Phase] = []


class CollectiveBrokenError(RuntimeError):
    """A collective failed under this learner, most likely because another is gone."""


@contextmanager
def phase(name: str, *, waits: bool = True) -> Iterator[None]:
    """Marks what runs inside as a phase of this process; phases may be nested.

    Works as a decorator of a function, too.

    Args:
        name: for messages, as "gradients".
        waits: whether it contains a collective: then the watchdog limits its time.
    """
    _phases.append(Phase(name, monotonic(), waits))
    try:
        yield
    finally:
        _phases.pop()


@contextmanager
def collective(name: str) -> Iterator[None]:
    """Marks a phase that talks to the other learners, and what fails in it.

    Raises:
        CollectiveBrokenError: for a RuntimeError, as broken connections give.
    """
    with phase(name):
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CollectiveBrokenError(
                f'Learner {rank()} of {num_ranks()} failed in phase "{name}", where '
                "it talks to the others. One of them is most likely gone; its own "
                f"error or log says why. Reason: {error}"
            ) from error


def collectively(name: str, items: Iterator[_Item]) -> Iterator[_Item]:
    """Yields items that are each made in a `collective` of this name."""
    while True:
        with collective(name):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def current_phase() -> Phase | None:
    """Returns the innermost phase; None outside of all."""
    # A copy: another thread may be leaving a phase.
    phases = list(_phases)
    return phases[-1] if phases else None


def sum_over_learners(tensor: Tensor, name: str = "sum") -> Tensor:
    """Replaces a small tensor, on any device, by its sum over the learners.

    Args:
        tensor: of the same shape on all learners.
        name: of the phase.
    """
    if num_ranks() > 1:
        with collective(name):
            moved = tensor.to(_device())
            dist.all_reduce(moved)
            tensor.copy_(moved)
    return tensor


def max_over_learners(value: int, name: str) -> int:
    """Returns the largest of the learners' values; `name` is that of the phase."""
    if num_ranks() == 1:
        return value
    with collective(name):
        tensor = torch.tensor(value, device=_device())
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces each gradient by its sum over the learners, one bucket at a time.

    Every learner calls this once per optimiser step, whatever number of micro-batches
    it had, so that unequal numbers can neither hang nor bias the update. A parameter
    without a gradient here counts as zero.
    """
    if num_ranks() == 1:
        return
    with collective("gradients"):
        bucket: list[Tensor] = []
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            grad = parameter.grad
            if bucket and (
                grad.dtype != bucket[0].dtype
                or sum(g.numel() for g in bucket) + grad.numel() > _BUCKET_ELEMENTS
            ):
                _sum_bucket(bucket)
                bucket = []
            bucket.append(grad)
        if bucket:
            _sum_bucket(bucket)
        _finish()


def _finish() -> None:
    """Waits for collectives that a GPU makes in the background, inside their phase."""
    if _device().type == "cuda":
        torch.cuda.current_stream().synchronize()


def _sum_bucket(grads: list[Tensor]) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def broadcast_parameters(tensors: Iterable[Tensor]) -> None:
    """Gives every learner the first learner's values."""
    if num_ranks() == 1:
        return
    with torch.no_grad(), collective("first weights"):
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
        _finish()
