"""Returns: sums worked by hand, a slow loop, and the laws of the min-form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pure_rllib.credit.returns import (
    CREDIT_ASSIGNMENTS,
    min_form_weights,
    process_returns,
    scatter_to_tokens,
    spread_to_tokens,
    step_credits,
)
from pure_rllib.credit.tensors import suffix_sums

# Two responses of three steps and of two; the second is padded with rubbish.
REWARDS = torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.9, 77.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
ENDS = torch.tensor([[1, 3, 4], [2, 3, -1]])


def returns_of(rewards, mask, ends, num_tokens, *, kind, temperature=0.1, gamma=1.0):
    credits = step_credits(
        rewards, mask, credit_assignment=kind, credit_temperature=temperature
    )
    return process_returns(credits, mask, ends, num_tokens, gamma=gamma)


def sum_returns(rewards, mask, gamma=1.0):
    """Of steps: the discounted sum of the rewards to come (PURE, eq. 2)."""
    return suffix_sums(step_credits(rewards, mask, credit_assignment="sum"), gamma)


def strict_min_returns(rewards, mask):
    """Of steps: the minimum of the rewards to come, up to the worst (PURE, eq. 3)."""
    return suffix_sums(step_credits(rewards, mask, credit_assignment="strict_min"))


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=1e-6)


def test_sum_returns_by_hand():
    # .5-.2+.1 = .4, -.2+.1 = -.1, .1; .3+.9 = 1.2, .9
    close(sum_returns(REWARDS, MASK), [[0.4, -0.1, 0.1], [1.2, 0.9, 0.0]])
    # gamma .5: .5-.1+.025 = .425, -.2+.05 = -.15, .1; .3+.45 = .75, .9
    close(
        sum_returns(REWARDS, MASK, gamma=0.5), [[0.425, -0.15, 0.1], [0.75, 0.9, 0.0]]
    )


def test_strict_min_by_hand():
    # The worst is step 2 of the first and step 1 of the second response.
    close(strict_min_returns(REWARDS, MASK), [[-0.2, -0.2, 0.0], [0.3, 0.0, 0.0]])


def test_strict_min_is_positive_for_a_good_response():
    """The published strict form gives at most 0 here."""
    close(strict_min_returns(torch.tensor([[0.9, 0.7]]), MASK[:1, :2]), [[0.7, 0.7]])


def test_strict_min_blames_the_last_of_equally_bad_steps():
    rewards = torch.tensor([[-1.0, 0.5, -1.0, 0.5]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    close(strict_min_returns(rewards, mask), [[-1.0, -1.0, -1.0, 0.0]])


def test_min_form_by_hand():
    weights = min_form_weights(REWARDS, MASK, credit_temperature=0.5)
    # exp(-.5/.5), exp(.2/.5), exp(-.1/.5), over their sum
    parts = [math.exp(-1.0), math.exp(0.4), math.exp(-0.2)]
    first = [part / sum(parts) for part in parts]
    parts = [math.exp(-0.6), math.exp(-1.8)]
    second = [part / sum(parts) for part in parts]
    close(weights, [first, [*second, 0.0]])
    close(
        step_credits(REWARDS, MASK, credit_assignment="min", credit_temperature=0.5),
        [
            [first[0] * 0.5, first[1] * -0.2, first[2] * 0.1],
            [second[0] * 0.3, second[1] * 0.9, 0.0],
        ],
    )


def test_tokens_by_hand():
    # step ends:     0    1    2    3    4    5
    #  response 1         e1        e2   e3   after the end
    #  response 2              e1   e2   after the end
    close(
        returns_of(REWARDS, MASK, ENDS, 6, kind="sum"),
        [[0.4, 0.4, -0.1, -0.1, 0.1, 0.0], [1.2, 1.2, 1.2, 0.9, 0.0, 0.0]],
    )
    close(
        scatter_to_tokens(REWARDS, ENDS, 6),
        [[0.0, 0.5, 0.0, -0.2, 0.1, 0.0], [0.0, 0.0, 0.3, 0.9, 0.0, 0.0]],
    )
    close(
        spread_to_tokens(REWARDS, ENDS, MASK, 6),
        [[0.5, 0.5, -0.2, -0.2, 0.1, 0.0], [0.3, 0.3, 0.3, 0.9, 0.0, 0.0]],
    )


@st.composite
def batches(draw):
    """Step rewards, mask, ends and the number of tokens of a few responses."""
    batch_size = draw(st.integers(1, 4))
    rows = []
    for _ in range(batch_size):
        lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
        score = st.floats(-1, 1, width=32)
        rows.append([(length, draw(score)) for length in lengths])
    num_steps = max(map(len, rows))
    rewards = torch.full((batch_size, num_steps), math.nan, dtype=torch.float64)
    ends = torch.full((batch_size, num_steps), -1)
    for i, row in enumerate(rows):
        position = -1
        for k, (length, reward) in enumerate(row):
            position += length
            rewards[i, k], ends[i, k] = reward, position
    num_tokens = int(ends.max()) + 1 + draw(st.integers(0, 3))
    return rewards, ends >= 0, ends, num_tokens


def slow_returns(rewards, mask, ends, num_tokens, kind, temperature, gamma):
    """One response, one token at a time, straight from the equations."""
    returns = torch.zeros(len(rewards), num_tokens, dtype=torch.float64)
    for i in range(len(rewards)):
        row = [float(r) for r, real in zip(rewards[i], mask[i], strict=True) if real]
        if kind == "sum":
            credit = row
        elif kind == "min":
            parts = [math.exp(-(r - min(row)) / temperature) for r in row]
            credit = [p / sum(parts) * r for p, r in zip(parts, row, strict=True)]
        else:
            worst = max(k for k, r in enumerate(row) if r == min(row))
            credit = [r if k == worst else 0.0 for k, r in enumerate(row)]
        for t in range(num_tokens):
            to_come = [k for k in range(len(row)) if ends[i, k] >= t]
            for k in to_come:
                returns[i, t] += gamma ** (k - to_come[0]) * credit[k]
    return returns


@settings(max_examples=40, deadline=None)
@given(
    batches(),
    st.sampled_from(CREDIT_ASSIGNMENTS),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
def test_vectorised_equals_loop(batch, kind, temperature, gamma):
    actual = returns_of(*batch, kind=kind, temperature=temperature, gamma=gamma)
    rewards, mask, ends, num_tokens = batch
    expected = slow_returns(rewards, mask, ends, num_tokens, kind, temperature, gamma)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(batches())
def test_weights_sum_to_one_and_tend_to_the_minimum(batch):
    rewards, mask, _, _ = batch
    weights = min_form_weights(rewards, mask, credit_temperature=0.1)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(rewards)).double())
    assert (weights[~mask] == 0).all()
    cold = step_credits(
        rewards, mask, credit_assignment="min", credit_temperature=1e-9
    ).sum(1)
    worst = rewards.masked_fill(~mask, math.inf).amin(1)
    torch.testing.assert_close(cold, worst, rtol=0, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(batches(), st.floats(0.0, 0.5), st.integers(0, 2**32 - 1))
def test_reward_errors_hurt_the_min_form_once(batch, eps, seed):
    """A PRM that is off by eps moves the minimum by eps, a sum of n steps by n eps."""
    rewards, mask, _, _ = batch
    rewards = rewards.masked_fill(~mask, 0.0)
    noise = torch.rand(rewards.shape, generator=torch.Generator().manual_seed(seed))
    noisy = rewards + eps * (2 * noise.double() - 1)
    num_steps = mask.sum(1)

    def gap(form):
        return (form(rewards)[:, 0] - form(noisy)[:, 0]).abs()

    assert (gap(lambda r: strict_min_returns(r, mask)) <= eps + 1e-12).all()
    assert (gap(lambda r: sum_returns(r, mask)) <= num_steps * eps + 1e-12).all()


def test_the_sum_form_reaches_its_bound():
    """n equal errors add up to n eps; the minimum sees one of them."""
    mask = torch.ones(1, 5, dtype=torch.bool)
    rewards, eps = torch.full((1, 5), 0.5, dtype=torch.float64), 0.25
    gap = sum_returns(rewards + eps, mask) - sum_returns(rewards, mask)
    assert gap[0, 0] == 5 * eps
    gap = strict_min_returns(rewards + eps, mask) - strict_min_returns(rewards, mask)
    assert gap[0, 0] == eps


@settings(max_examples=20, deadline=None)
@given(batches(), st.sampled_from(CREDIT_ASSIGNMENTS))
def test_padding_changes_nothing(batch, kind):
    rewards, mask, ends, num_tokens = batch
    pad = torch.nn.functional.pad
    wide = returns_of(
        pad(rewards, (0, 2), value=math.nan),
        pad(mask, (0, 2)),
        pad(ends, (0, 2), value=-1),
        num_tokens + 3,
        kind=kind,
    )
    narrow = returns_of(*batch, kind=kind)
    torch.testing.assert_close(wide[:, :num_tokens], narrow, rtol=0, atol=1e-12)
    assert (wide[:, num_tokens:] == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=9), st.floats(0.0, 1.0))
def test_suffix_sums_equal_a_loop(rewards, gamma):
    expected: list[float] = []
    running = 0.0
    for reward in reversed(rewards):
        running = reward + gamma * running
        expected.insert(0, running)
    actual = suffix_sums(torch.tensor([rewards], dtype=torch.float64), gamma)
    torch.testing.assert_close(actual, torch.tensor([expected], dtype=torch.float64))


def test_half_precision_rewards_are_credited_in_float32():
    returns = returns_of(REWARDS.bfloat16(), MASK, ENDS, 6, kind="min")
    assert returns.dtype == torch.float32


def test_row_without_steps_earns_nothing():
    rewards, mask = torch.tensor([[0.5], [0.5]]), torch.tensor([[True], [False]])
    for kind in CREDIT_ASSIGNMENTS:
        credits = step_credits(rewards, mask, credit_assignment=kind)
        close(credits, [[0.5], [0.0]])


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_credit_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="`credit_temperature`"):
        min_form_weights(REWARDS, MASK, credit_temperature=temperature)


def test_unknown_credit_assignment():
    with pytest.raises(ValueError, match="min, strict_min, sum"):
        step_credits(REWARDS, MASK, credit_assignment="max")  # type: ignore[arg-type]


def test_gamma_out_of_range():
    with pytest.raises(ValueError, match="`gamma`"):
        sum_returns(REWARDS, MASK, gamma=1.5)
