"""How tensors travel between CPUs."""

from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep

import pytest
import torch

from pure_rllib.generation import weight_transfer
from pure_rllib.generation.weight_transfer import GlooGroup, _free_port

HOST = "127.0.0.1"


def test_all_ranks_get_what_rank_0_has_in_any_dtype() -> None:
    port = _free_port()
    sent = [
        torch.arange(6.0).reshape(2, 3),
        torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        torch.tensor(7),
        torch.tensor([True, False]),
    ]

    def take_part(rank: int) -> list[torch.Tensor]:
        group = GlooGroup(HOST, port, rank, 3, timeout_s=20.0)
        mine = sent if rank == 0 else [torch.zeros_like(one) for one in sent]
        for tensor in mine:
            group.broadcast(tensor)
        group.destroy()
        return mine

    with ThreadPoolExecutor(3) as pool:
        for received in pool.map(take_part, range(3)):
            torch.testing.assert_close(received, sent, rtol=0.0, atol=0.0)


def test_nobody_waits_for_ever() -> None:
    start = monotonic()
    with pytest.raises(RuntimeError):
        GlooGroup(HOST, _free_port(), 0, 2, timeout_s=0.2)
    port = _free_port()

    def join(rank: int) -> GlooGroup:
        return GlooGroup(HOST, port, rank, 2, timeout_s=0.5)

    with ThreadPoolExecutor(2) as pool:
        group, _ = list(pool.map(join, range(2)))
    with pytest.raises(RuntimeError):
        # More than gloo passes on before the other rank takes it.
        group.broadcast(torch.zeros(2**24))
    assert monotonic() - start < 20.0


def test_ranks_join_soon_but_may_take_their_time_to_receive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weight_transfer, "JOIN_S", 0.3)
    start = monotonic()
    with pytest.raises(RuntimeError):
        GlooGroup(HOST, _free_port(), 0, 2, timeout_s=600.0)
    assert monotonic() - start < 20.0
    port = _free_port()

    def take_part(rank: int) -> float:
        group = GlooGroup(HOST, port, rank, 2, timeout_s=600.0)
        sleep(0.6 * (1 - rank))
        number = torch.tensor(1.0 - rank)
        group.broadcast(number)
        return number.item()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(take_part, range(2))) == [1.0, 1.0]
