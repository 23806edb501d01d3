"""Fingerprints of weights: what they see, and what does not count."""

import pytest
import torch

from pure_rllib.models.fingerprints import (
    MODULUS,
    FingerprintedWeights,
    bits_sum,
    columns,
    fingerprint,
)
from pure_rllib.weight_sync.object_store import LiveWeights

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_of_several_has_the_sum_of_theirs(dtype: torch.dtype) -> None:
    q, k = random_tensor(48, 40, dtype=dtype), random_tensor(8, 40, dtype=dtype) * 2
    fused = torch.cat([q, torch.zeros(3, 40, dtype=dtype), k])[torch.randperm(59)]
    for version in (0, 7):
        parts = fingerprint(q, version) + fingerprint(k, version)
        assert fingerprint(fused, version) == parts % MODULUS
    assert fingerprint(-0.0 * q, 0) == 0 == fingerprint(q[:0], 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (3, 1), (6, 40), (2, 3, 4)])
def test_a_changed_bit_is_seen_within_16_versions(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = random_tensor(*shape, dtype=dtype)
    before = [fingerprint(tensor, version) for version in range(16)]
    for i in range(tensor.numel()):
        changed = tensor.clone()
        element = changed.view(-1)[i : i + 1]
        element.copy_(torch.nextafter(element, element + 1))
        after = [fingerprint(changed, version) for version in range(16)]
        assert after != before


def test_small_changes_up_and_down_do_not_cancel_out() -> None:
    ones = torch.ones(64)
    mixed = ones.clone()
    mixed[::2] = torch.nextafter(ones[::2], torch.tensor(2.0))
    mixed[1::2] -= mixed[::2] - 1
    assert mixed.sum() == ones.sum()
    assert bits_sum(mixed) != bits_sum(ones)


@pytest.mark.parametrize("width", [1, 3, 16, 40])
def test_each_column_counts_in_16_versions(width: int) -> None:
    counted = {i for version in range(16) for i in columns(width, version)}
    assert counted == set(range(width))


def test_large_tensors_are_summed_in_chunks() -> None:
    tensor = random_tensor(3, 700_000)
    whole = sum(bits_sum(row) for row in tensor) % MODULUS
    assert bits_sum(tensor) == whole


def test_what_is_read_is_passed_on_and_put_down() -> None:
    tensors = {"a": random_tensor(4, 20), "b": random_tensor(6)}
    source = FingerprintedWeights(LiveWeights(3, lambda: iter([dict(tensors)])))
    assert source.version == 3
    assert source.fingerprints == {}
    (shard,) = source.shards()
    assert shard == tensors
    assert source.fingerprints == {n: fingerprint(t, 3) for n, t in tensors.items()}
