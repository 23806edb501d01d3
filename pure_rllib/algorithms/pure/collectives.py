"""Sums over all learners; with one learner they change nothing."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET_ELEMENTS = 2**25


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


def sum_over_learners(tensor: Tensor) -> Tensor:
    """Replaces a small tensor, on any device, by its sum over the learners."""
    if num_ranks() > 1:
        moved = tensor.to(_device())
        dist.all_reduce(moved)
        tensor.copy_(moved)
    return tensor


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces each gradient by its sum over the learners, one bucket at a time.

    Every learner calls this once per optimiser step, whatever number of micro-batches
    it had, so that unequal numbers can neither hang nor bias the update. A parameter
    without a gradient here counts as zero.
    """
    if num_ranks() == 1:
        return
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


def _sum_bucket(grads: list[Tensor]) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def broadcast_parameters(tensors: Iterable[Tensor]) -> None:
    """Gives every learner the first learner's values."""
    if num_ranks() == 1:
        return
    with torch.no_grad():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
