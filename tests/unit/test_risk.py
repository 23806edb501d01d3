"""RiskPO by hand: one bundle of two questions with four responses each.

::

    question 1   1  1  0  0
    question 2   1  0  1  0
    S            2  1  1  0     quantiles .2 and .8 at positions .6 and 2.4: .6, 1.4
    middle      .8 .4 .4  0     over .6:  4/3  2/3  2/3   0
    tail         0  0  0 -.6    over .2:   0    0    0   -3
    A           (1.5 tail + middle) / 2.5 = 8/15  4/15  4/15  -1.8
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from torch import Tensor

from pure_rllib.algorithms import RiskPOConfig
from pure_rllib.connectors.risk_advantages import RiskAdvantages
from pure_rllib.credit.risk import (
    QuantileTracker,
    RiskConfig,
    bundles_of,
    iteration_std,
    risk_advantages,
    risk_means,
)
from pure_rllib.learners.stats import STATS, LearnerStats
from pure_rllib.models import columns

REWARDS = torch.tensor([1.0, 1, 0, 0, 1, 0, 1, 0])
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
ONE_BUNDLE = torch.zeros(8, dtype=torch.long)
SHEETS = torch.tensor([8 / 15, 4 / 15, 4 / 15, -1.8])
PLAIN = RiskConfig(quantiles="batch", std_over=None)


def advantages(config: RiskConfig, **kwargs: Any) -> Tensor:
    bundles = bundles_of(GROUPS, ONE_BUNDLE)
    return risk_advantages(REWARDS, bundles, config, **kwargs).view(2, 4)


def close(actual: Tensor, expected: Any, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=0, atol=atol)


def test_a_sheet_of_the_lower_tail_counts_most() -> None:
    close(advantages(PLAIN), SHEETS.expand(2, 4))


@pytest.mark.parametrize(
    ("credit", "factors"),
    [
        ("score", [[0.5, 0.5, 1.5, 1.5], [0.5, 1.5, 0.5, 1.5]]),
        # Both questions have the deviation sqrt(1/3).
        ("std", [[3**0.5] * 4] * 2),
        # Above their means (.5): sheet 1 by .5 and .5, sheet 4 likewise below; on
        # sheets 2 and 3 these cancel out, and each response gets half.
        ("sum-mean", [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]),
    ],
)
def test_forms_of_credit(credit: Any, factors: list[list[float]]) -> None:
    actual = advantages(replace(PLAIN, bundle_credit=credit))
    close(actual, SHEETS * torch.tensor(factors))


def test_zero_at_the_upper_quantile_leaves_no_positive_advantage() -> None:
    # middle - .8 over .6: 0 -2/3 -2/3 -4/3.
    close(
        advantages(replace(PLAIN, zero_at="upper"))[0],
        [0.0, -4 / 15, -4 / 15, (-4.5 - 4 / 3) / 2.5],
    )


def test_the_upper_tail_counts_where_risk_is_sought() -> None:
    # (S - 1.4) over .2 is 3 on the first sheet.
    close(
        advantages(replace(PLAIN, risk_tail="upper"))[0],
        [(4.5 + 4 / 3) / 2.5, 4 / 15, 4 / 15, 0.0],
    )


def test_tracked_quantiles_are_the_ones_that_count() -> None:
    tracker = QuantileTracker(lr=0.1)
    tracker.update(torch.tensor([5.0, 5.0]))
    config = replace(PLAIN, quantiles="track")
    # Both at 5: no middle, and the tail is S - 5 over .2, times 1.5 / 2.5.
    close(advantages(config, tracker=tracker)[0], [-9.0, -12.0, -12.0, -15.0], 1e-3)
    mixed = advantages(replace(PLAIN, quantiles="mix"), tracker=tracker)
    low, high = (5 + 0.6) / 2, (5 + 1.4) / 2
    sums = torch.tensor([2.0, 1.0, 1.0, 0.0])
    middle = (sums.clamp(low, high) - low) / 0.6
    close(mixed[0], (1.5 * -(low - sums) / 0.2 + middle) / 2.5, 1e-3)


def test_a_tracked_quantile_moves_towards_its_level() -> None:
    tracker = QuantileTracker(lr=0.1)
    tracker.update(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert tracker.at(0.5) == 2.0
    # Four of five are below 2, where half should be; as many of sheets at 2 are not.
    tracker.update(torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0]))
    assert tracker.at(0.5) == pytest.approx(2.0 + 0.1 * (0.5 - 0.8))
    tracker.update(torch.full((4,), 9.0))
    assert tracker.at(0.5) == pytest.approx(1.97 + 0.1 * 0.5)


def test_equal_sheets_off_the_tracked_quantile_do_not_explode() -> None:
    bundles = bundles_of(GROUPS, ONE_BUNDLE)
    tracker = QuantileTracker(lr=0.1)
    tracker.update(torch.tensor([1.0, 2.0]))
    std = iteration_std(torch.zeros(4))
    assert std == pytest.approx(0.1)
    nothing = torch.zeros(8)
    ours = risk_advantages(nothing, bundles, RiskConfig(), tracker=tracker, std=std)
    assert -40.0 < ours.min() < 0.0
    published = replace(RiskConfig(), std_over="bundle")
    naive = risk_advantages(nothing, bundles, published, tracker=tracker)
    assert naive.min() < -1e5


def test_means_of_the_parts() -> None:
    sums = torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0])
    assert risk_means(sums, 1.0, 3.0) == (2.0, 0.5)
    assert risk_means(sums, -1.0, -0.5) == (3.0, 3.0)


def test_a_response_without_a_reward_has_no_advantage() -> None:
    rewards = REWARDS.clone()
    rewards[4:] = float("nan")
    actual = risk_advantages(rewards, bundles_of(GROUPS, ONE_BUNDLE), PLAIN).view(2, 4)
    assert actual[1].tolist() == [0.0] * 4
    assert actual[0].abs().sum() > 0


@pytest.mark.parametrize("config", [PLAIN, replace(PLAIN, bundle_credit="sum-mean")])
def test_the_order_of_rows_changes_nothing(config: RiskConfig) -> None:
    rewards = torch.rand(24, generator=torch.Generator().manual_seed(0)).round()
    groups, bundles = torch.arange(24) // 4, torch.arange(24) // 12
    expected = risk_advantages(rewards, bundles_of(groups, bundles), config)
    # Whole groups change places; the j-th response of each stays the j-th.
    order = torch.arange(24).view(6, 4)[[3, 0, 5, 1, 4, 2]].flatten()
    moved = bundles_of(groups[order], bundles[order])
    close(risk_advantages(rewards[order], moved, config), expected[order], 0.0)


# The connector


def rows(rewards: Tensor, group_size: int = 4) -> dict[str, Any]:
    num = len(rewards)
    return {
        DEFAULT_MODULE_ID: {
            columns.TOTAL_REWARDS: rewards,
            columns.GROUP_ID: 10 + torch.arange(num) // group_size,
            columns.RESPONSE_LENS: torch.tensor([2] * (num - 1) + [1]),
            Columns.LOSS_MASK: torch.ones(num, 2).bool().tril(num - 2 if num else 0),
        }
    }


def run(connector: RiskAdvantages, rewards: Tensor, **kwargs: Any) -> Tensor:
    batch = connector(batch=rows(rewards), episodes=[], **{"rl_module": 1, **kwargs})
    found: Tensor = batch[DEFAULT_MODULE_ID][Columns.ADVANTAGES]
    return found


def test_the_connector_tracks_reports_and_remembers() -> None:
    connector = RiskAdvantages(RiskConfig(std_over=None), bundle_size=2)
    stats = LearnerStats()
    first = run(connector, REWARDS, shared_data={STATS: stats})
    close(first[:, 0], SHEETS.repeat(2))
    reported = stats.as_dict()["sum"]
    assert reported["risk/lower_quantile"] == pytest.approx(0.6)
    assert reported["risk/upper_quantile"] == pytest.approx(1.4)
    assert reported["risk/mixed"] == pytest.approx((1.5 * 0.0 + 1.0) / 2.5)

    resumed = RiskAdvantages(RiskConfig(std_over=None), bundle_size=2)
    resumed.set_state(connector.get_state())
    # A report looks at what was tracked, and changes nothing.
    looked = run(resumed, REWARDS, rl_module=None)
    assert torch.equal(looked, first)
    later = 1.0 - REWARDS
    assert torch.equal(run(resumed, later), run(connector, later))
    assert resumed.get_state() == connector.get_state()


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "math"}, '`preset` ("math") must be one of'),
        ({"lower_level": 0.9}, "must be 0 < lower_level < upper_level < 1"),
        ({"lower_level": 0.22}, "`lower_level` (0.22) must be a multiple of 0.05"),
        ({"bundle_credit": "all"}, "`bundle_credit` ('all') must be one of"),
        ({"bundle_size": 3}, "`num_prompts` (20) must be a multiple of `bundle_size`"),
        ({"no_signal_groups": "drop"}, "compares several groups"),
        (
            {"no_signal_groups": "drop", "bundle_size": 1},
            'must be "keep" with tracked quantiles',
        ),
        ({"verifiable_reward_coeff": 0.0}, "must not both be 0"),
        (
            {"bundle_credit": "score", "process_reward_coeff": 1.0},
            "which good steps earn as well",
        ),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        RiskPOConfig().training(**settings).validate()
    assert message in str(error.value)


def test_a_preset_gives_way_to_settings_beside_it() -> None:
    config = RiskPOConfig().training(preset="published_math", upper_level=0.8)
    config.env_runners(num_prompts=1024).validate()
    assert config.risk_config().bundle_credit == "std"
    assert config.risk_config().upper_level == 0.8
