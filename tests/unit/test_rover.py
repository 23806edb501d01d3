"""ROVER's loss by hand: one response of three tokens, the last off the mask.

::

    token              1      2      3 (off)
    logp - old        0.5   -0.25     9
    mean - old mean   7      0.75     9       no token leads to the first
    next value        0.75   0        -       the third is off the mask
    target (r = 1)    1.75   1
    error           -1.25  -1.25              squared: 1.5625 each
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pure_rllib.algorithms import ROVERConfig
from pure_rllib.credit.policy_loss import LossScale
from pure_rllib.credit.rover import rover_loss
from pure_rllib.models.logprobs import LOGP, MEAN_LOGP, chunked_logps

NAN = math.nan
OLD = torch.tensor([[-1.0, -2.0, NAN]])
CHANGE = torch.tensor([[0.5, -0.25, 9.0]])
OLD_MEAN = torch.tensor([[-5.0, -6.0, NAN]])
MEAN_CHANGE = torch.tensor([[7.0, 0.75, 9.0]])
MASK = torch.tensor([[True, True, False]])


def loss_of(
    logp: Tensor, mean: Tensor, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    return rover_loss(logp, OLD, mean, OLD_MEAN, torch.ones(1, 3), MASK, **kwargs)


def test_loss_target_and_gradient() -> None:
    logp = (OLD + CHANGE).requires_grad_()
    mean = (OLD_MEAN + MEAN_CHANGE).requires_grad_()
    loss, values = loss_of(logp, mean)
    assert loss.item() == pytest.approx(1.5625)
    torch.testing.assert_close(values["next_value"], torch.tensor([[0.75, 0.0, 0.0]]))
    torch.testing.assert_close(values["target"], torch.tensor([[1.75, 1.0, 0.0]]))
    loss.backward()
    # 2 * error / 2 tokens; nothing through the target.
    torch.testing.assert_close(logp.grad, torch.tensor([[-1.25, -1.25, 0.0]]))
    assert mean.grad is None


@pytest.mark.parametrize(
    ("kwargs", "errors"),
    [
        ({"next_value_coeff": 0.0}, [-0.5, -1.25]),
        ({"next_value_coeff": 2.0}, [-2.0, -1.25]),
        # q = 1, -.5; next value 1.5.
        ({"log_ratio_coeff": 2.0}, [-1.5, -1.5]),
        ({"weights": torch.tensor([[4.0, 0.0, 1.0]])}, [-2.5, 0.0]),
    ],
)
def test_factors(kwargs: dict[str, Any], errors: list[float]) -> None:
    loss, _ = loss_of(OLD + CHANGE, OLD_MEAN + MEAN_CHANGE, **kwargs)
    assert loss.item() == pytest.approx(sum(e * e for e in errors) / 2)


def test_the_first_step_is_reinforce_twice() -> None:
    logp = OLD.clone().requires_grad_()
    loss, values = loss_of(logp, OLD_MEAN)
    assert not values["q"].any() and not values["next_value"].any()
    loss.backward()
    torch.testing.assert_close(logp.grad, torch.tensor([[-1.0, -1.0, 0.0]]))


def test_the_cut_into_micro_batches_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(4, 5, generator=generator) for _ in range(5)]
    mask = torch.rand(4, 5, generator=generator) > 0.4
    scale = LossScale("token_mean", float(mask.sum()))

    def part(rows: slice) -> Tensor:
        a, b, c, d, e = (tensor[rows] for tensor in tensors)
        return rover_loss(a, b, c, d, e, mask[rows], scale=scale)[0]

    parts = part(slice(0, 1)) + part(slice(1, 4))
    torch.testing.assert_close(parts, part(slice(0, 4)))


def test_the_mean_over_the_vocabulary_keeps_nothing_for_the_backward_pass() -> None:
    hidden = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(11, 4, generator=torch.Generator().manual_seed(2))
    saved: list[list[int]] = []

    def kept(outputs: tuple[str, ...]) -> list[list[int]]:
        saved.clear()

        def note(tensor: Tensor) -> Tensor:
            saved.append(list(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            chunked_logps(
                hidden.clone().requires_grad_(),
                weight,
                torch.zeros(6, dtype=torch.long),
                chunk_tokens=2,
                outputs=outputs,
            )
        return list(saved)

    assert kept((LOGP, MEAN_LOGP)) == kept((LOGP,))
    # One chunk's logits would be [2, 11], all of them [6, 11].
    assert [6, 11] not in saved and [2, 11] not in saved


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minibatch_size": None}, "at the first one every value is 0"),
        ({"minibatch_size": 128}, "`minibatch_size` (128) must make at least 2"),
        ({"dual_clip": 3.0}, "`dual_clip` (3.0) has no effect with ROVER"),
        ({"kl_coeff": 0.1}, "`kl_coeff` (0.1) has no effect with ROVER"),
        ({"clip_param": 0.1}, "`clip_param` (0.1) has no effect with ROVER"),
        ({"next_value_coeff": -1.0}, "`next_value_coeff` (-1.0) must be >= 0"),
        ({"verifiable_reward_coeff": 0.0}, "must not both be 0"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        ROVERConfig().training(**settings).validate()
    assert message in str(error.value)


def test_two_epochs_are_two_steps() -> None:
    ROVERConfig().training(minibatch_size=None, num_epochs=2).validate()
