"""Weights and masks for a generator that is not quite the learner's policy."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pure_rllib.credit.policy_loss import clipped_policy_loss, loss_denominator
from pure_rllib.credit.rollout_correction import (
    RolloutCorrection,
    correct_loss,
    mismatch_sums,
    sequence_log_ratio,
)

NAN = float("nan")
# Ratios by hand: 1.5, 3 and 1/2 in row a, 2 and 1/2 in row b; row c has no loss token.
RATIOS = torch.tensor([[1.5, 3.0, 0.5], [2.0, 0.5, NAN], [NAN, NAN, NAN]])
MASK = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
GENERATOR = torch.full((3, 3), -1.0)
OLD = GENERATOR + RATIOS.log()


def correct(mode: RolloutCorrection, cap: float, **changed: Tensor) -> Any:
    inputs = {"old_logp": OLD, "generator_logp": GENERATOR, "loss_mask": MASK}
    return correct_loss(**{**inputs, **changed}, mode=mode, cap=cap)


def test_truncated_weights_by_hand() -> None:
    corrected = correct("token_truncated", 2.0)
    torch.testing.assert_close(
        corrected.weights,
        torch.tensor([[1.5, 2.0, 0.5], [2.0, 0.5, 0.0], [0.0, 0.0, 0.0]]),
    )
    assert torch.equal(corrected.loss_mask, MASK)
    sums = {name: float(value) for name, value in corrected.sums.items()}
    assert sums["num_tokens"] == 5
    # 3.0 alone is over the cap; 2.0 is at it.
    assert sums["num_truncated"] == 1
    assert sums["weight_sum"] == pytest.approx(1.5 + 2.0 + 0.5 + 2.0 + 0.5)
    assert (sums["num_responses"], sums["num_masked"]) == (2, 0)


def test_sequence_mask_by_hand() -> None:
    # Row a: (1.5 * 3 * .5)^(1/3) = 2.25^(1/3) = 1.31; row b: (2 * .5)^(1/2) = 1.
    assert sequence_log_ratio(
        torch.where(MASK, RATIOS.log(), 0.0), MASK
    ).exp().tolist() == pytest.approx([2.25 ** (1 / 3), 1.0, 1.0])
    corrected = correct("sequence_mask", 1.3)
    expected = MASK & torch.tensor([[False], [True], [True]])
    assert torch.equal(corrected.loss_mask, expected)
    assert torch.equal(corrected.weights, expected.float())
    sums = {name: float(value) for name, value in corrected.sums.items()}
    assert (sums["num_responses"], sums["num_masked"]) == (2, 1)
    assert (sums["num_tokens"], sums["weight_sum"]) == (5, 2)
    assert torch.equal(correct("sequence_mask", 1.32).loss_mask, MASK)


def test_the_band_of_the_sequence_mask_is_symmetric() -> None:
    generator = GENERATOR + 2 * RATIOS.log()  # the ratios turned upside down
    assert torch.equal(
        correct("sequence_mask", 1.3, generator_logp=generator).loss_mask,
        correct("sequence_mask", 1.3).loss_mask,
    )


def test_no_correction_is_a_weight_of_1() -> None:
    corrected = correct("none", math.inf)
    assert torch.equal(corrected.weights, MASK.float())
    assert torch.equal(corrected.loss_mask, MASK)


def test_mismatch_by_hand() -> None:
    sums = {name: float(v) for name, v in mismatch_sums(OLD, GENERATOR, MASK).items()}
    ratios = [1.5, 3.0, 0.5, 2.0, 0.5]
    assert sums["num_tokens"] == 5
    assert sums["ratio_sum"] == pytest.approx(7.5)
    # 2.25 + 9 + .25 + 4 + .25
    assert sums["ratio_square_sum"] == pytest.approx(15.75)
    assert sums["ratio_max"] == pytest.approx(3.0)
    # The logarithms add up to log(1.5 * 3 * .5 * 2 * .5) = log(2.25).
    assert sums["kl_sum"] == pytest.approx(sum(ratios) - 5 - math.log(2.25), rel=1e-5)


def test_impossible_tokens_stay_finite() -> None:
    old = torch.tensor([[0.0, -math.inf]])
    generator = torch.tensor([[-1e4, -1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    corrected = correct_loss(old, generator, mask, mode="token_truncated", cap=2.0)
    torch.testing.assert_close(
        corrected.weights, torch.tensor([[2.0, 0.0]]), atol=1e-8, rtol=0.0
    )
    values = torch.stack(
        [v.double() for v in mismatch_sums(old, generator, mask).values()]
    )
    assert torch.isfinite(values).all()


def test_nan_on_a_loss_token_is_not_hidden() -> None:
    old = torch.where(MASK, NAN, 0.0)
    assert correct("token_truncated", 2.0, old_logp=old).weights.isnan().any()
    # Left out, the response would be missed by the check of the loss.
    assert torch.equal(correct("sequence_mask", 1.3, old_logp=old).loss_mask, MASK)


@pytest.mark.parametrize(
    ("aggregation", "count"),
    [("token_mean", 2.0), ("sequence_mean", 1.0), ("fixed_length", 8.0)],
)
def test_a_masked_response_leaves_the_denominator(
    aggregation: Any, count: float
) -> None:
    kept = correct("sequence_mask", 1.3).loss_mask
    assert float(loss_denominator(kept, aggregation, 8)) == count


def test_the_corrected_loss_by_hand() -> None:
    corrected = correct("token_truncated", 2.0)
    logp = OLD.clone().requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 2.0], [1.0, 1.0, NAN], [NAN, NAN, NAN]])
    loss, sums = clipped_policy_loss(
        logp, OLD, advantages, corrected.loss_mask, weights=corrected.weights
    )
    # At a ratio of 1, -(1.5 * 1 + 2 * -1 + .5 * 2 + 2 * 1 + .5 * 1) / 5
    assert loss.item() == pytest.approx(-3.0 / 5)
    assert float(sums["ratio_sum"]) == 5.0
    loss.backward()
    # d/dlogp of -w * A * exp(logp - old) is -w * A.
    expected = [[-0.3, 0.4, -0.2], [-0.4, -0.1, 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(logp.grad, torch.tensor(expected))


def test_weights_have_no_gradient() -> None:
    old = GENERATOR.clone().requires_grad_()
    assert not correct("token_truncated", 2.0, old_logp=old).weights.requires_grad


def test_an_unknown_correction_is_named() -> None:
    with pytest.raises(ValueError, match=r"`rollout_correction` \('mis'\) must be one"):
        correct("mis", 2.0)  # type: ignore[arg-type]


_LOGPS = st.floats(-6.0, 0.0, width=32)


@st.composite
def batches(draw: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Old and generator log-probabilities and a mask, `[B, T]`."""
    rows, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    shape = (rows, tokens)
    size = rows * tokens

    def tensor(values: Any) -> Tensor:
        drawn = draw(st.lists(values, min_size=size, max_size=size))
        return torch.tensor(drawn).view(shape)

    return tensor(_LOGPS), tensor(_LOGPS), tensor(st.booleans())


CAPS = st.floats(1.001, 10.0)


@settings(max_examples=60)
@given(batches(), CAPS)
def test_truncation_against_a_loop(
    batch: tuple[Tensor, Tensor, Tensor], cap: float
) -> None:
    old, generator, mask = batch
    weights = correct_loss(
        old, generator, mask, mode="token_truncated", cap=cap
    ).weights
    for b, row in enumerate(mask.tolist()):
        for t, is_on in enumerate(row):
            ratio = math.exp(float(old[b, t]) - float(generator[b, t]))
            expected = min(ratio, cap) if is_on else 0.0
            assert float(weights[b, t]) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=60)
@given(batches(), CAPS)
def test_masking_against_a_loop(
    batch: tuple[Tensor, Tensor, Tensor], cap: float
) -> None:
    old, generator, mask = batch
    kept = correct_loss(old, generator, mask, mode="sequence_mask", cap=cap).loss_mask
    for b, row in enumerate(mask.tolist()):
        gaps = [float(old[b, t] - generator[b, t]) for t, on in enumerate(row) if on]
        mean = math.exp(sum(gaps) / len(gaps)) if gaps else 1.0
        if min(abs(mean - cap), abs(mean - 1 / cap)) < 1e-4:
            continue  # rounding decides
        inside = 1 / cap <= mean <= cap
        assert kept[b].tolist() == [on and inside for on in row]


@settings(max_examples=60)
@given(batches(), CAPS, st.sampled_from(["token_truncated", "sequence_mask"]))
def test_laws(
    batch: tuple[Tensor, Tensor, Tensor], cap: float, mode: RolloutCorrection
) -> None:
    old, generator, mask = batch
    made = correct_loss(old, generator, mask, mode=mode, cap=cap)
    assert (made.weights <= cap * (1 + 1e-5)).all()
    assert not (made.loss_mask & ~mask).any()
    assert (made.weights[~made.loss_mask] == 0.0).all()
    # The same policy on both sides: nothing changes.
    same = correct_loss(old, old, mask, mode=mode, cap=cap)
    assert torch.equal(same.weights, mask.float())
    assert torch.equal(same.loss_mask, mask)
    # Rows do not see each other; sums of parts are the sums of the whole.
    parts = [
        correct_loss(old[rows], generator[rows], mask[rows], mode=mode, cap=cap)
        for rows in (slice(0, 1), slice(1, None))
    ]
    assert torch.equal(torch.cat([p.weights for p in parts]), made.weights)
    for name, total in made.sums.items():
        added = float(sum(float(p.sums[name]) for p in parts))
        assert added == pytest.approx(float(total), rel=1e-5)


@settings(max_examples=60)
@given(batches())
def test_laws_of_the_mismatch(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    old, generator, mask = batch
    sums = {n: float(v) for n, v in mismatch_sums(old, generator, mask).items()}
    assert sums["kl_sum"] >= -1e-5
    # Cauchy-Schwarz: the effective sample size is at most the number of tokens.
    limit = sums["num_tokens"] * sums["ratio_square_sum"]
    assert sums["ratio_sum"] ** 2 <= limit * (1 + 1e-5)
    same = {n: float(v) for n, v in mismatch_sums(old, old, mask).items()}
    assert same["kl_sum"] == 0.0
    assert same["ratio_sum"] == same["num_tokens"]
