"""Fingerprints of weights: whether two places hold the same tensors, to the last bit.

A fingerprint is a sum over a tensor's elements. So the order of rows does not count,
zeros that pad a tensor do not either, and a tensor that is made of several others has
the sum of their fingerprints.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pure_rllib.models.export import WeightSource

_COLUMN_STEP = 16
_CHUNK = 2**20
MODULUS = 2**64
"""Of sums of fingerprints."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Odd 64-bit constants, as signed integers (Steele et al. 2014, SplitMix64).
_FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


def columns(width: int, version: int) -> range:
    """Which columns of a matrix count: one in 16, in 16 versions each of them.

    An engine that packs a matrix is asked for columns by products with unit vectors;
    all of them would cost as much as sampling does.

    Args:
        width: of the matrix.
        version: of the weights.
    """
    return range(version % min(_COLUMN_STEP, max(width, 1)), width, _COLUMN_STEP)


def fingerprint(tensor: Tensor, version: int) -> int:
    """Returns a tensor's fingerprint: of some columns of a matrix, else of all of it.

    Args:
        tensor: on any device.
        version: see `columns`.

    Returns:
        In [0, 2^64).
    """
    if tensor.ndim == 2:
        chosen = columns(tensor.shape[1], version)
        tensor = tensor[:, chosen.start :: chosen.step]
    return bits_sum(tensor)


def bits_sum(tensor: Tensor) -> int:
    """Returns the sum of the elements' mixed bits, in [0, 2^64); any shape.

    Each is mixed, or changes by a unit up and down would cancel out.
    """
    if not tensor.numel():
        return 0
    rows = tensor.detach().reshape(tensor.shape[0] if tensor.ndim else 1, -1)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for chunk in rows.split(max(1, _CHUNK // rows.shape[1])):
        # -0.0 equals 0.0, and a product makes one of the other.
        values = (chunk + 0).contiguous()
        bits = values.view(_BITS[values.element_size()]).long()
        for factor in _FACTORS:
            bits = bits * factor
            bits ^= bits >> 31
        total += bits.sum()
    return int(total.item()) % MODULUS


class FingerprintedWeights:
    """A `WeightSource` that takes the fingerprints of what is read from it.

    Args:
        source: what is read.

    Attributes:
        version: the source's.
        fingerprints: by name, of the tensors that have been read.
    """

    def __init__(self, source: WeightSource):
        self._source = source
        self.version = source.version
        self.fingerprints: dict[str, int] = {}

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """See `WeightSource`."""
        self.fingerprints = {}
        for shard in self._source.shards():
            for name, tensor in shard.items():
                self.fingerprints[name] = fingerprint(tensor, self.version)
            yield shard


HeldTensors = Sequence[tuple[tuple[str, ...], int]]
"""What a generator holds: the names of the policy's tensors that one of its own is made
of, and its fingerprint."""
