"""KL estimators, the clipped loss and normalisation, worked by hand."""

import math

import pytest
import torch

from pure_rllib.credit.kl import KL_ESTIMATORS, kl_estimate
from pure_rllib.credit.normalize import advantage_moments, normalize_advantages
from pure_rllib.credit.policy_loss import (
    LOSS_AGGREGATIONS,
    LossScale,
    clipped_policy_loss,
    loss_denominator,
    policy_ratio,
)
from tests.reference.verl import adapt_kl_coeff


def close(actual, expected, atol=1e-6):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.5, -0.5, -5.0]),
        ("abs", [0.5, 0.5, 5.0]),
        ("k2", [0.125, 0.125, 12.5]),
        # exp(-d) - 1 + d
        ("k3", [math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5, math.exp(5) - 6]),
        ("low_var_kl", [math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5, 10.0]),
    ],
)
def test_kl_by_hand(estimator, expected):
    logp, ref_logp = torch.tensor([-1.0, -1.5, -6.0]), torch.tensor([-1.5, -1.0, -1.0])
    close(kl_estimate(logp, ref_logp, estimator), expected, atol=1e-4)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_kl_of_the_same_policy_is_zero_in_half_precision_too(estimator):
    logp = torch.tensor([-0.1, -3.0]).bfloat16()
    kl = kl_estimate(logp, logp, estimator)
    assert kl.dtype == torch.float32
    assert (kl == 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_is_unbiased(estimator):
    """The exact mean over the policy's own distribution is the KL divergence."""
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    mean = (p * kl_estimate(p.log(), q.log(), estimator)).sum()
    close(mean, (p * (p / q).log()).sum())


def test_unknown_kl_estimator():
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


def test_adapt_kl_coeff_by_hand():
    # Twice the target is clipped to +.2, 10 of 100 responses: 1 + .2 * .1
    coeff = adapt_kl_coeff(0.5, 0.2, kl_target=0.1, num_responses=10, horizon=100)
    assert coeff == pytest.approx(0.5 * 1.02)
    coeff = adapt_kl_coeff(0.5, 0.09, kl_target=0.1, num_responses=10, horizon=100)
    assert coeff == pytest.approx(0.5 * 0.99)


# Ratios 1.5, .5, 1 and (masked) rubbish; 1.1 in a response of one token.
RATIOS = torch.tensor([[1.5, 0.5, 1.0, math.nan], [1.1, math.nan, 7.0, 7.0]])
ADVANTAGES = torch.tensor([[2.0, -1.0, 3.0, math.nan], [-4.0, 5.0, math.nan, 5.0]])
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])
# Per token -min(ratio A, clipped ratio A) with bounds .8 and 1.3:
# -2.6 (cut above), .8 (cut below), -3, 4.4
TOKEN_LOSSES = [[-2.6, 0.8, -3.0], [4.4]]


def loss_and_stats(**kwargs):
    return clipped_policy_loss(
        RATIOS.log(),
        torch.zeros_like(RATIOS),
        ADVANTAGES,
        MASK,
        clip_low=0.2,
        clip_high=0.3,
        **kwargs,
    )


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", (-2.6 + 0.8 - 3.0 + 4.4) / 4),
        ("sequence_mean", ((-2.6 + 0.8 - 3.0) / 3 + 4.4) / 2),
        ("fixed_length", (-2.6 + 0.8 - 3.0 + 4.4) / (2 * 10)),
    ],
)
def test_clipped_loss_by_hand(aggregation, expected):
    count = float(loss_denominator(MASK, aggregation, 10))
    loss, _ = loss_and_stats(scale=LossScale(aggregation, count, 10))
    close(loss, expected)


def test_loss_statistics_are_sums():
    _, stats = loss_and_stats()
    expected = {
        "num_tokens": 4,
        "clip_low_count": 1,
        "clip_high_count": 1,
        "ratio_sum": 4.1,
        "ratio_max": 1.5,
        "kl_k1_sum": -sum(math.log(r) for r in (1.5, 0.5, 1.1)),
        "kl_k3_sum": sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.1)),
    }
    assert {name: float(value) for name, value in stats.items()} == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("aggregation", LOSS_AGGREGATIONS)
def test_micro_batches_add_up_to_the_batch(aggregation):
    """Value and gradient do not depend on how the rows are cut."""
    generator = torch.Generator().manual_seed(3)
    logp = -torch.rand(4, 5, generator=generator, dtype=torch.float64)
    old, advantages = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 0])[:, None]

    def run(cuts):
        x = logp.clone().requires_grad_()
        counts = [loss_denominator(mask[c], aggregation, 9) for c in cuts]
        scale = LossScale(aggregation, float(sum(counts)), 9)
        total = torch.zeros(())
        for c in cuts:
            loss, _ = clipped_policy_loss(
                x[c],
                old[c] - 1,
                advantages[c],
                mask[c],
                scale=scale,
            )
            total = total + loss
        total.backward()
        return total.detach(), x.grad

    for actual, expected in zip(
        run([slice(0, 1), slice(1, 4)]), run([slice(0, 4)]), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_masked_rubbish_leaves_no_gradient():
    logp = RATIOS.log().requires_grad_()
    loss, _ = clipped_policy_loss(logp, torch.zeros_like(RATIOS), ADVANTAGES, MASK)
    loss.backward()
    assert logp.grad is not None
    assert (logp.grad[~MASK] == 0).all()
    assert logp.grad.isfinite().all()


def test_batch_without_loss_tokens_has_loss_zero():
    logp = torch.zeros(2, 3, requires_grad=True)
    none = torch.zeros(2, 3, dtype=torch.bool)
    loss, stats = clipped_policy_loss(logp, torch.zeros(2, 3), torch.ones(2, 3), none)
    loss.backward()
    assert loss == 0
    assert stats["num_tokens"] == 0


def test_fixed_length_needs_the_budget():
    with pytest.raises(ValueError, match="`max_response_tokens`"):
        loss_denominator(MASK, "fixed_length")


VALUES = torch.tensor([[1.0, 0.0, 3.0, math.nan], [-2.0, 0.0, 0.0, math.nan]])
VALID = torch.tensor([[True, True, True, False], [True, True, False, False]])


def normalized(style):
    moments = advantage_moments(VALUES, VALID, style)
    return normalize_advantages(VALUES, VALID, moments, style)


def test_normalize_by_hand():
    # 1, 0, 3, -2, 0: mean .4; squares of .6 -.4 2.6 -2.4 -.4 sum to 13.2
    population, unbiased = math.sqrt(13.2 / 5), math.sqrt(13.2 / 4 + 1e-8)
    centred = torch.tensor([[0.6, -0.4, 2.6, 0.0], [-2.4, -0.4, 0.0, 0.0]])
    close(normalized("tokens"), centred / population)
    close(normalized("pure_verl"), centred / unbiased)
    # Zeros are left out: mean 2/3; all five squares sum to 1/9 + 4/9 + 49/9 + 64/9
    # + 4/9 = 122/9, divided by 3.
    scale = math.sqrt(122 / 9 / 3)
    close(
        normalized("pure_openrlhf"),
        [
            [(1 - 2 / 3) / scale, 0.0, (3 - 2 / 3) / scale, 0.0],
            [(-2 - 2 / 3) / scale, 0.0, 0.0, 0.0],
        ],
    )


@pytest.mark.parametrize("style", ["tokens", "pure_openrlhf", "pure_verl"])
def test_learners_add_their_moments(style):
    parts = [
        advantage_moments(VALUES[i : i + 1], VALID[i : i + 1], style) for i in (0, 1)
    ]
    close(parts[0] + parts[1], advantage_moments(VALUES, VALID, style))


@pytest.mark.parametrize("style", ["tokens", "pure_openrlhf", "pure_verl"])
def test_equal_advantages_stay_finite(style):
    values, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    moments = advantage_moments(values, mask, style)
    assert (normalize_advantages(values, mask, moments, style) == 0).all()


def test_batch_without_tokens():
    values, mask = torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)
    moments = advantage_moments(values, mask)
    assert (normalize_advantages(values, mask, moments) == 0).all()
    with pytest.raises(ValueError, match="at least 2 tokens"):
        normalize_advantages(values, mask, moments, "pure_verl")


def test_dual_clip_limits_the_loss_of_bad_tokens_only():
    #          ratio 5, A = -1    ratio 5, A = 1   ratio .5, A = -1
    logp = torch.tensor([[5.0, 5.0, 0.5]]).log()
    advantages, mask = torch.tensor([[-1.0, 1.0, -1.0]]), torch.ones(1, 3).bool()
    args = (logp, torch.zeros(1, 3), advantages, mask)
    # Without it -A x ratio = 5, clipped -1.2, and max(.5, .8) = .8.
    plain, _ = clipped_policy_loss(*args)
    torch.testing.assert_close(plain, torch.tensor((5.0 - 1.2 + 0.8) / 3))
    limited, _ = clipped_policy_loss(*args, dual_clip=3.0)
    torch.testing.assert_close(limited, torch.tensor((3.0 - 1.2 + 0.8) / 3))


def test_dual_clip_of_an_overflowing_ratio_has_gradient_zero():
    logp = torch.tensor([[100.0, 0.0]], requires_grad=True)
    args = torch.zeros(1, 2), torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2).bool()
    loss, _ = clipped_policy_loss(logp, *args, dual_clip=3.0)
    loss.backward()
    # -c A = 3 and 1; the second is inside the clip.
    assert loss == (3.0 + 1.0) / 2
    assert logp.grad is not None and logp.grad.tolist() == [[0.0, 0.5]]


def test_sequence_ratio_is_the_geometric_mean_with_the_tokens_own_gradient():
    # Row a: ratios 2 and 8, geometric mean 4; row b: .5 alone.
    change = torch.tensor([[2.0, 8.0], [0.5, 1.0]]).log().requires_grad_()
    mask = torch.tensor([[True, True], [True, False]])
    ratio = policy_ratio(torch.where(mask, change, 0.0), mask, "sequence")
    torch.testing.assert_close(ratio[mask], torch.tensor([4.0, 4.0, 0.5]))
    (ratio * torch.tensor([[1.0, 3.0], [1.0, 0.0]])).sum().backward()
    # d ratio_t / d log-probability_t is the ratio itself; other tokens do not count.
    torch.testing.assert_close(change.grad, torch.tensor([[4.0, 12.0], [0.5, 0.0]]))


def test_scale_counts_a_term_of_the_weights_once_per_step():
    masks = [torch.ones(2, 3).bool(), torch.ones(1, 4).bool()]
    scale = LossScale("token_mean", 10.0)
    assert [scale.share(mask) for mask in masks] == [0.6, 0.4]
