"""Sums over all learners; with one learner they change nothing.

Each runs in a named phase, and no longer than the process group's time limit.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Any, TypeVar

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


class CollectiveBrokenError(RuntimeError):
    """A collective failed under this learner, most likely because another is gone."""


class CollectiveTimeoutError(CollectiveBrokenError):
    """A learner waited for another longer than `collective_timeout_s`."""


_limit_s = float("inf")


def limit_collectives(timeout_s: float) -> None:
    """Limits how long this learner waits for another, in all groups that exist.

    With gloo the collective fails then; with NCCL the process ends.

    Args:
        timeout_s: > 0, in seconds.
    """
    global _limit_s
    if not dist.is_initialized():
        return
    _limit_s = timeout_s
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


@contextmanager
def collective(name: str) -> Iterator[None]:
    """Names what talks to the other learners, for what fails in it; may be nested.

    Args:
        name: of the phase, as "gradients".

    Raises:
        CollectiveTimeoutError: for a RuntimeError after the limit.
        CollectiveBrokenError: for another one, as broken connections give.
    """
    start = monotonic()
    try:
        yield
    except (torch.OutOfMemoryError, CollectiveBrokenError):
        raise
    except RuntimeError as error:
        seconds = monotonic() - start
        if seconds >= _limit_s:
            raise CollectiveTimeoutError(
                f'learner {rank()} waited for {seconds:.0f} s in phase "{name}"'
            ) from error
        raise CollectiveBrokenError(
            f'Learner {rank()} of {num_ranks()} failed in phase "{name}", where it '
            "talks to the others. One of them is most likely gone; its own error or "
            f"log says why. Reason: {error}"
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


def gather_objects(own: _Item, name: str) -> list[_Item]:
    """Returns what each learner gives, the first learner's first.

    Args:
        own: can be pickled, and is small: every learner gets all of it.
        name: of the phase.
    """
    if num_ranks() == 1:
        return [own]
    given: list[Any] = [None] * num_ranks()
    with collective(name):
        dist.all_gather_object(given, own)
    return given


def gather_over_learners(values: Tensor, name: str) -> Tensor:
    """Returns the values of all learners, in rising order.

    Args:
        values: `[n]`, another n on each learner.
        name: of the phase.
    """
    lists = gather_objects(values.tolist(), name)
    values = values.new_tensor([value for one in lists for value in one])
    # Which learner had which would show in the last digits of sums.
    return values.sort().values


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
