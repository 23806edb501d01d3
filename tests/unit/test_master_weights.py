"""Float32 master weights: gradients and updates that bfloat16 would lose."""

import copy

import pytest
import torch
from torch import nn

from pure_rllib.learners.master_weights import MasterWeights
from pure_rllib.learners.zero_weights import ZeroPolicy


def linear(dtype: torch.dtype) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(2, 3).to(dtype)


def test_a_float32_policy_has_no_copies() -> None:
    policy = linear(torch.float32)
    policy.bias.requires_grad_(False)
    own = MasterWeights(policy)
    assert own.copies == []
    assert [id(t) for t in own.tensors] == [id(policy.weight)]


def test_gradients_of_many_micro_batches_are_added_in_float32() -> None:
    policy = linear(torch.bfloat16)
    own = MasterWeights(policy)
    # A bfloat16 sum of these stays at 256, where the spacing is 2.
    for value in [256.0, *[1.0] * 64]:
        policy(torch.ones(1, 2, dtype=torch.bfloat16)).sum().mul(value).backward()
        assert all(p.grad is None for p in policy.parameters()), "one set is enough"
    for master in own.tensors:
        assert master.grad is not None and master.grad.dtype == torch.float32
        assert master.grad.unique().tolist() == [320.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_updates_master_weights_and_rounds_them_to_the_policy(
    dtype: torch.dtype,
) -> None:
    policy = linear(dtype)
    start = copy.deepcopy(policy)
    own = MasterWeights(policy)
    optimizer = torch.optim.SGD(own.tensors, lr=1e-5)
    for _ in range(200):
        policy(torch.ones(1, 2, dtype=dtype)).sum().backward()
        own.step(optimizer)
        optimizer.zero_grad()
    for parameter, first, master in zip(
        policy.parameters(), start.parameters(), own.copies, strict=True
    ):
        # 200 steps of 1e-5, each of them far below the parameter's spacing.
        torch.testing.assert_close(master, first.float() - 2e-3, atol=1e-5, rtol=0.0)
        assert torch.equal(parameter, master.to(dtype))


def test_saved_copies_come_back() -> None:
    own, others = (MasterWeights(linear(torch.bfloat16)) for _ in range(2))
    with torch.no_grad():
        for master in own.copies:
            master += 1e-6
    others.load(own.copies)
    for master, other in zip(own.copies, others.copies, strict=True):
        assert torch.equal(master, other) and master is not other


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
def test_zero_refuses_the_state_of_another_dtype_before_it_changes(
    saved: torch.dtype,
) -> None:
    own = torch.bfloat16 if saved == torch.float32 else torch.float32
    policy = nn.Linear(2, 2).to(own)
    before = policy.weight.clone()
    state = nn.Linear(2, 2).to(saved).state_dict()
    with pytest.raises(ValueError, match=r"`dtype` .*checkpoint's .*`deepspeed`"):
        ZeroPolicy(policy, engine=None).load_state_dict(state)
    assert torch.equal(policy.weight, before)


def test_masters_follow_what_was_loaded_before_it_was_rounded() -> None:
    policy = nn.Linear(2, 2).to(torch.bfloat16)
    masters = MasterWeights(policy)
    state = {name: t.float() + 1e-4 for name, t in policy.state_dict().items()}
    policy.load_state_dict(state)
    masters.follow(state)
    masters.load([])
    for master, saved in zip(masters.tensors, state.values(), strict=True):
        assert torch.equal(master, saved) and not torch.equal(master, saved.bfloat16())
