"""Baselines: two prompts with two responses of three steps, worked by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pure_rllib.credit.baselines import (
    BASELINES,
    process_advantages,
    verifiable_advantages,
)
from pure_rllib.credit.returns import process_returns, step_credits

GROUPS = torch.tensor([5, 5, 3, 3])
# Credits (sum-form, so they are the rewards) and step ends; T = 7.
#              R     S  n (tokens of the steps)
CREDITS = torch.tensor(
    [
        [0.5, -0.2, 0.1],  # 0.4   3  6
        [0.3, 0.9, 0.0],  # 1.2   3  4
        [-1.0, 0.0, 0.0],  # -1.0  1  5
        [0.2, 0.2, 0.2],  # 0.6   3  3
    ]
)
ENDS = torch.tensor([[1, 3, 5], [0, 2, 3], [4, -1, -1], [0, 1, 2]])
MASK = ENDS >= 0


def process_baseline(name, credits, mask, ends, num_tokens, *args, gamma=1.0, **kwargs):
    """What the advantages lack of the returns."""
    advantages = process_advantages(
        credits, mask, ends, num_tokens, *args, baseline=name, gamma=gamma, **kwargs
    )
    return process_returns(credits, mask, ends, num_tokens, gamma=gamma) - advantages


def baseline(name, **kwargs):
    return process_baseline(
        name, CREDITS, MASK, ENDS, 7, GROUPS, max_response_tokens=10, **kwargs
    )


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            # Rates: 1.2/4 = .3; .4/6; .6/3 = .2; -1/5 = -.2. Steps of 2, 2, 2 tokens
            # pay .6 each: .6+.6+.6 = 1.8, then 1.2, then .6.
            "token",
            [
                [1.8, 1.8, 1.2, 1.2, 0.6, 0.6, 0.0],
                [0.4 / 6 * n for n in (4, 3, 3, 1, 0, 0, 0)],
                [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0],
                [-0.6, -0.4, -0.2, 0.0, 0.0, 0.0, 0.0],
            ],
        ),
        (
            # Rates: 1.2/3 = .4; .4/3; .6/3 = .2; -1/1 = -1.
            "step",
            [
                [1.2, 1.2, 0.8, 0.8, 0.4, 0.4, 0.0],
                [0.4 / 3 * n for n in (3, 2, 2, 1, 0, 0, 0)],
                [0.2, 0.2, 0.2, 0.2, 0.2, 0.0, 0.0],
                [-3.0, -2.0, -1.0, 0.0, 0.0, 0.0, 0.0],
            ],
        ),
        (
            # Rates: 1.2/10, .4/10, .6/10, -1/10, times the tokens from t to the last
            # end.
            "length",
            [
                [0.72, 0.6, 0.48, 0.36, 0.24, 0.12, 0.0],
                [0.16, 0.12, 0.08, 0.04, 0.0, 0.0, 0.0],
                [0.3, 0.24, 0.18, 0.12, 0.06, 0.0, 0.0],
                [-0.3, -0.2, -0.1, 0.0, 0.0, 0.0, 0.0],
            ],
        ),
        (
            "response",
            [
                [1.2] * 6 + [0.0],
                [0.4] * 4 + [0.0] * 3,
                [0.6] * 5 + [0.0] * 2,
                [-1.0] * 3 + [0.0] * 4,
            ],
        ),
    ],
)
def test_baseline_by_hand(name, expected):
    close(baseline(name), expected)


def test_discount_by_hand():
    # gamma .5, first response: token .6+.3+.15, .6+.3, .6; length, tokens to come:
    # 2+.5*2+.25*2 = 3.5, 2.5; 3, 2; 2, 1.
    close(baseline("token", gamma=0.5)[0], [1.05, 1.05, 0.9, 0.9, 0.6, 0.6, 0.0])
    # The sibling's discounted whole: .3+.45 = .75, over 10 and as it is.
    rate = 1.2 / 10
    expected = [rate * n for n in (3.5, 2.5, 3.0, 2.0, 2.0, 1.0, 0.0)]
    close(baseline("length", gamma=0.5)[0], expected)
    close(baseline("response", gamma=0.5)[0], [0.75] * 6 + [0.0])


def test_verifiable_advantages_by_hand():
    nan = math.nan
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, nan, nan, 1.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    # Group 0: 1-0, 0-.5, 0-.5. Group 1 and 2: only one can be verified.
    close(verifiable_advantages(rewards, groups), [1.0, -0.5, -0.5, 0.0, 0.0, 0.0, 0.0])


def slow_baseline(name, credits, mask, ends, num_tokens, groups, gamma, budget):
    """One token at a time, from the formulas."""
    batch = range(len(credits))
    rows = [
        [(float(c), int(e)) for c, e, m in zip(*row, strict=True) if m]
        for row in zip(credits, ends, mask, strict=True)
    ]
    total = [sum(c for c, _ in row) for row in rows]
    tokens = [row[-1][1] + 1 for row in rows]
    result = torch.zeros(len(credits), num_tokens, dtype=torch.float64)
    for i in batch:
        others = [j for j in batch if j != i and groups[j] == groups[i]]
        for t in range(tokens[i]):
            k0 = min(k for k, (_, e) in enumerate(rows[i]) if e >= t)
            if name == "response":
                wholes = [
                    sum(gamma**k * c for k, (c, _) in enumerate(rows[j]))
                    for j in others
                ]
                result[i, t] = sum(wholes) / len(others)
                continue
            for k in range(k0, len(rows[i])):
                start = rows[i][k - 1][1] + 1 if k else 0
                count = rows[i][k][1] - start + 1
                if name == "token":
                    rate = sum(total[j] for j in others) / sum(
                        tokens[j] for j in others
                    )
                elif name == "step":
                    means = [total[j] / len(rows[j]) for j in others]
                    rate, count = sum(means) / len(others), 1
                else:
                    rate = sum(total[j] for j in others) / len(others) / budget
                    count = rows[i][k][1] - max(start, t) + 1
                result[i, t] += gamma ** (k - k0) * rate * count
    return result


@st.composite
def group_batches(draw):
    """Credits, mask, ends, T and group ids: groups of 2 to 4 in shuffled order."""
    sizes = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    groups = [10 * g - 7 for g, size in enumerate(sizes) for _ in range(size)]
    groups = draw(st.permutations(groups))
    counts = [draw(st.integers(1, 4)) for _ in groups]
    credits = torch.zeros(len(groups), max(counts), dtype=torch.float64)
    ends = torch.full(credits.shape, -1)
    for i, count in enumerate(counts):
        position = -1
        for k in range(count):
            position += draw(st.integers(1, 4))
            ends[i, k] = position
            credits[i, k] = draw(st.floats(-1, 1))
    num_tokens = int(ends.max()) + 1 + draw(st.integers(0, 2))
    return credits, ends >= 0, ends, num_tokens, torch.tensor(groups)


@settings(max_examples=40, deadline=None)
@given(group_batches(), st.sampled_from(BASELINES), st.sampled_from([1.0, 0.7]))
def test_vectorised_equals_loop(batch, name, gamma):
    actual = process_baseline(name, *batch, gamma=gamma, max_response_tokens=20)
    credits, mask, ends, num_tokens, groups = batch
    expected = slow_baseline(name, credits, mask, ends, num_tokens, groups, gamma, 20)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(group_batches(), st.sampled_from(BASELINES), st.randoms(use_true_random=False))
def test_permuting_rows_permutes_baselines(batch, name, random):
    credits, mask, ends, num_tokens, groups = batch
    order = list(range(len(groups)))
    random.shuffle(order)
    straight = process_baseline(name, *batch, max_response_tokens=20)
    shuffled = process_baseline(
        name,
        credits[order],
        mask[order],
        ends[order],
        num_tokens,
        groups[order],
        max_response_tokens=20,
    )
    torch.testing.assert_close(shuffled, straight[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["token", "step", "response"])
@pytest.mark.parametrize("kind", ["min", "strict_min", "sum"])
def test_equal_responses_have_no_advantage_at_their_start(name, kind):
    """Nothing tells the responses of a group apart, so nothing is reinforced."""
    rewards = torch.tensor([[0.3, -0.4, 0.8]]).repeat(4, 1)
    mask, ends = torch.ones(4, 3, dtype=torch.bool), ENDS[:1].repeat(4, 1)
    groups = torch.tensor([0, 0, 0, 0])
    credits = step_credits(rewards, mask, credit_assignment=kind)
    advantages = process_advantages(credits, mask, ends, 6, groups, baseline=name)
    assert (advantages[:, 0].abs() < 1e-6).all()


def test_equal_verifiable_rewards_have_no_advantage_at_all():
    rewards = torch.full((7,), 0.1)
    assert (verifiable_advantages(rewards, torch.zeros(7).long()) == 0).all()


def advantages_of_two_cuts(name):
    """Two responses of 6 tokens and minimum -.5, one of 2 and one of 6 steps."""
    rewards = torch.tensor([[0.5, -0.5, 0, 0, 0, 0], [0.5] * 5 + [-0.5]])
    ends = torch.tensor([[2, 5, -1, -1, -1, -1], [0, 1, 2, 3, 4, 5]])
    mask, groups = ends >= 0, torch.zeros(2).long()
    credits = step_credits(rewards, mask, credit_assignment="strict_min")
    return process_advantages(
        credits, mask, ends, 6, groups, baseline=name, max_response_tokens=8
    )


def test_only_the_step_baseline_rewards_fewer_steps():
    """Whole responses cost the same under the token baseline, however they are cut.

    What a response pays in all is its baseline at the first token. A token inside pays
    for the steps still to come, so the mean over tokens depends on the cut.
    """
    few, many = advantages_of_two_cuts("token")[:, 0].tolist()
    assert few == pytest.approx(many)
    few, many = advantages_of_two_cuts("step")[:, 0].tolist()
    # -.5 against 2 x -.5/6 and 6 x -.5/2: shares of -.083 and -.25 for each step.
    assert few == pytest.approx(-0.5 + 2 * 0.5 / 6)
    assert many == pytest.approx(-0.5 + 6 * 0.5 / 2)


def test_mean_advantage_under_the_length_baseline_ignores_the_cut():
    """Equal minimum at the last token and equal tokens: equal at every token."""
    torch.testing.assert_close(*advantages_of_two_cuts("length"))


@pytest.mark.parametrize("name", BASELINES)
def test_group_of_one_is_an_error(name):
    with pytest.raises(ValueError, match=r"`group_size` \(1\).*groups \[9\]"):
        process_baseline(
            name,
            CREDITS,
            MASK,
            ENDS,
            7,
            torch.tensor([5, 5, 5, 9]),
            max_response_tokens=10,
        )


def test_length_baseline_needs_the_budget():
    with pytest.raises(ValueError, match="`max_response_tokens`"):
        process_baseline("length", CREDITS, MASK, ENDS, 7, GROUPS)


def test_unknown_baseline():
    with pytest.raises(ValueError, match="token, step, length, response"):
        process_baseline("mean", CREDITS, MASK, ENDS, 7, GROUPS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "name", "short", "long"),
    [
        # Returns to go of min: -1, -1/2 and -1, -3/4, -1/2, -1/4. Token: off the
        # others' -1 per 40 tokens or per 20, for each token to come.
        ("min", "token", [-0.5, -0.25], [1.0, 0.75, 0.5, 0.25]),
        ("min", "step", [-0.5, -0.25], [1.0, 0.75, 0.5, 0.25]),
        ("min", "response", [0.0, 0.5], [0.0, 0.25, 0.5, 0.75]),
        # All of the return stands at the last step.
        ("strict_min", "token", [-0.5, -0.75], [1.0, 0.5, 0.0, -0.5]),
        ("strict_min", "response", [0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
        ("sum", "token", [0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
        ("sum", "response", [2.0, 3.0], [-2.0, -1.0, 0.0, 1.0]),
    ],
)
def test_equally_bad_steps_pull_length(form, name, short, long):
    """Two and four steps of ten tokens, each worth -1: none is better than another."""
    step_ends = torch.tensor([[9, 19, -1, -1], [9, 19, 29, 39]])
    step_mask = step_ends >= 0
    credit = step_credits(torch.full((2, 4), -1.0), step_mask, credit_assignment=form)
    advantages = process_advantages(
        credit,
        step_mask,
        step_ends,
        40,
        torch.zeros(2, dtype=torch.long),
        baseline=name,
    )
    close(advantages[0, [0, 10]], short)
    close(advantages[1, [0, 10, 20, 30]], long)
