"""The one-call pipeline and the presets: 2 prompts x 2 responses x 3 steps by hand."""

import dataclasses
import math

import pytest
import torch

from pure_rllib.credit.pipeline import CreditBatch, assign_credit
from pure_rllib.credit.presets import PRESETS, CreditConfig

# Every response has 6 tokens in steps of 2; * is a step end.
#                 . * . * . *
ENDS = torch.tensor([[1, 3, 5]]).repeat(4, 1)
REWARDS = torch.tensor(
    [[0.5, -0.5, 0.5], [1.0, 1.0, 1.0], [0.5, 0.5, -1.0], [-1.0, 0.5, 0.5]],
    dtype=torch.float64,
)
SOLVED = torch.tensor([0.0, 1.0, math.nan, math.nan])
BATCH = CreditBatch(
    step_rewards=REWARDS,
    step_mask=ENDS >= 0,
    step_ends=ENDS,
    response_mask=torch.ones(4, 6, dtype=torch.bool),
    group_index=torch.tensor([0, 0, 1, 1]),
    verifiable_rewards=SOLVED,
)
STRICT = CreditConfig(credit_assignment="strict_min", mask_separators=False)


def close(actual, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-6)


def test_ours_by_hand():
    # Strict returns: -.5 to token 3, then 0; 1 (last of the equal steps); -1; -1 to
    # token 1. Token baseline: others' rate is 1/6, -.5/6, -1/6, -1/6 per token, times
    # 6, 4, 2 tokens. Verifiable: -1, +1, unknown.
    rate = 0.5 / 6
    close(
        assign_credit(BATCH, STRICT).advantages,
        [
            [-2.5, -2.5, -1.5 - 2 / 3, -1.5 - 2 / 3, -1 - 1 / 3, -1 - 1 / 3],
            [2.5, 2.5, 2 + 4 * rate, 2 + 4 * rate, 2 + 2 * rate, 2 + 2 * rate],
            [0.0, 0.0, -1 / 3, -1 / 3, -2 / 3, -2 / 3],
            [0.0, 0.0, 2 / 3, 2 / 3, 1 / 3, 1 / 3],
        ],
    )


def test_masked_separators_have_no_advantage():
    config = dataclasses.replace(STRICT, mask_separators=True)
    masked = assign_credit(BATCH, config).advantages
    whole = assign_credit(BATCH, STRICT).advantages
    assert (masked[:, 1::2] == 0).all()
    assert torch.equal(masked[:, ::2], whole[:, ::2])


def test_coefficients_weigh_the_streams():
    def run(process, verifiable):
        config = dataclasses.replace(
            STRICT, process_reward_coeff=process, verifiable_reward_coeff=verifiable
        )
        return assign_credit(BATCH, config).advantages

    both = 2.0 * run(1.0, 0.0) + 3.0 * run(0.0, 1.0)
    torch.testing.assert_close(run(2.0, 3.0), both.to(run(2.0, 3.0)))
    close(run(0.0, 1.0), [[-1.0] * 6, [1.0] * 6, [0.0] * 6, [0.0] * 6])


def test_kl_in_the_reward_is_summed_to_the_end():
    batch = dataclasses.replace(
        BATCH, logp=torch.full((4, 6), -1.0), ref_logp=torch.full((4, 6), -1.5)
    )
    with_kl = dataclasses.replace(STRICT, kl_coeff=0.1)
    change = (
        assign_credit(batch, with_kl).advantages
        - assign_credit(batch, STRICT).advantages
    )
    # d = .5 at each of 6, 5, .. 1 tokens to come, times .1
    close(change, [[-0.3, -0.25, -0.2, -0.15, -0.1, -0.05]] * 4)


def test_paper_by_hand():
    config = dataclasses.replace(
        PRESETS["paper"], credit_assignment="strict_min", max_response_tokens=12
    )
    # Length baseline: others' total / 12, times 6, 5, .. 1 tokens: 1/12 in row 0.
    first = assign_credit(BATCH, config).advantages[0]
    returns = [-0.5] * 4 + [0.0] * 2
    expected = [g - q / 12 - 1 for g, q in zip(returns, range(6, 0, -1), strict=True)]
    close(first, expected)


def test_openrlhf_by_hand():
    config = dataclasses.replace(
        PRESETS["pure_openrlhf"],
        credit_assignment="sum",
        kl_coeff=0.0,
        normalize_advantages=False,
    )
    # R = .5 and 3; rate of row 0 = 3/6, and a step of 2 tokens pays for 1: the end is
    # free. Steps: .5-.5, -.5-.5, .5-.5; to come -1, -1, 0; verifiable -1 on the EOS.
    first = assign_credit(BATCH, config).advantages[0]
    close(first, [-2.0, 0.0, -2.0, 0.0, -1.0, 0.0])


VERL = dataclasses.replace(
    PRESETS["pure_verl"],
    kl_coeff=0.0,
    normalize_advantages=False,
    max_response_tokens=10,
)


def test_verl_by_hand():
    # Row 1 has returns 4 4 3 3 2 2 with the verifiable 1 at its end: 18/10 is the
    # baseline of row 0, whose returns are .5 .5 0 0 .5 .5.
    config = dataclasses.replace(VERL, credit_assignment="sum")
    first = assign_credit(BATCH, config).advantages[0]
    close(first, [-1.3, -1.3, -1.8, -1.8, -1.3, -1.3])


def test_verl_strict_minimum_sees_zeros_of_ordinary_tokens():
    config = dataclasses.replace(VERL, credit_assignment="strict_min")
    # Row 1 earned 1 at every step and was verified, and its returns are still all 0.
    # Row 0 has -.5 up to token 3: its mean over the buffer, -.2, is row 1's baseline.
    advantages = assign_credit(BATCH, config).advantages
    close(advantages[0], [-0.5] * 4 + [0.0] * 2)
    close(advantages[1], [0.2] * 6)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_run_and_permute(name):
    config = dataclasses.replace(PRESETS[name], max_response_tokens=8)
    generator = torch.Generator().manual_seed(0)
    batch = dataclasses.replace(
        BATCH,
        logp=-torch.rand(4, 6, generator=generator),
        ref_logp=-torch.rand(4, 6, generator=generator),
    )
    order = [2, 0, 3, 1]
    fields = {f.name: getattr(batch, f.name)[order] for f in dataclasses.fields(batch)}
    straight = assign_credit(batch, config).advantages
    shuffled = assign_credit(CreditBatch(**fields), config).advantages
    assert straight.isfinite().all()
    torch.testing.assert_close(shuffled, straight[order])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.1}, "`gamma`"),
        ({"formulas": "pure_openrlhf", "baseline": "length"}, "'token' or 'step'"),
        ({"formulas": "pure_openrlhf", "gamma": 0.9}, "know no discount"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        CreditConfig(**settings)


def test_missing_inputs():
    with pytest.raises(ValueError, match="`ref_logp` must be given"):
        assign_credit(BATCH, dataclasses.replace(STRICT, kl_coeff=0.1))
    with pytest.raises(ValueError, match="`max_response_tokens`"):
        assign_credit(BATCH, PRESETS["paper"])
    verl = dataclasses.replace(PRESETS["pure_verl"], kl_coeff=0.0)
    with pytest.raises(ValueError, match="at least the 6 tokens"):
        assign_credit(BATCH, verl)
