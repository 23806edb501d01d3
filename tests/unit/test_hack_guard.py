"""Caps of process rewards, and the settings against reward hacking."""

from typing import Any

import numpy as np
import pytest

from pure_rllib.algorithms import PUREConfig, RewardHackingMonitor
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.hacking.guard import cap_rewards
from pure_rllib.rewards.base import Verdict


def judged() -> JudgedResponse:
    return JudgedResponse(
        text="x",
        step_spans=np.array([[0, 2], [2, 3]]),
        step_rewards=np.array([0.9, -0.4], dtype=np.float32),
        has_visible=True,
        verdict=Verdict("correct", "5"),
    )


def test_a_marked_response_earns_at_most_its_lowest_cap() -> None:
    caps = {"one_step": 0.5, "short": -0.2, "chatter": -1.0}
    made = cap_rewards(judged(), frozenset({"one_step", "short"}), caps)
    np.testing.assert_allclose(made.step_rewards, [-0.2, -0.4])
    assert made.step_rewards.dtype == np.float32
    assert made.verifiable_reward == 1.0


def test_without_a_cap_nothing_changes() -> None:
    given = judged()
    assert cap_rewards(given, frozenset({"one_step"}), {}) is given
    assert cap_rewards(given, frozenset(), {"one_step": -1.0}) is given


def config(**settings: Any) -> PUREConfig:
    return PUREConfig().environment("pure_rllib/Arithmetic-v0").training(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hack_caps": {"one_steps": -1.0}}, r"`hack_caps` \('one_steps'\) must name"),
        ({"hack_caps": {"one_step": -2.0}}, r"`hack_caps` .* must be in \[-1, 1\]"),
        ({"hack_caps": {"one_step": True}}, r"`hack_caps` .* must be in \[-1, 1\]"),
        ({"hack_caps": [1]}, r"`hack_caps` \(\[1\]\) must be a dict"),
        (
            {"hack_caps": {"one_step": -1.0}, "process_reward_coeff": 0.0},
            "`hack_caps` .* has no effect",
        ),
        ({"hack_limits": {"long": 0.5}}, r"unknown keys \['long'\]"),
        ({"hack_limits": {"short": 5}}, r"`short` \(5\) must be in \(0, 1\)"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings).validate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hacking_monitor": "shout"}, r"`hacking_monitor` \('shout'\) must be None"),
        ({"hacking_thresholds": {"window": 1}}, r"`window` \(1\) must be an integer"),
        ({"hacking_thresholds": {"widow": 5}}, r"unknown keys \['widow'\]"),
    ],
)
def test_wrong_monitor_settings_are_named(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config().reporting(**settings).validate()


def test_the_monitor_joins_the_users_callbacks_once() -> None:
    made = config().reporting(hacking_monitor="stop")
    made.validate()
    made.validate()
    assert made.callbacks_class.count(RewardHackingMonitor) == 1
    by_hand = config().callbacks(RewardHackingMonitor)
    by_hand.validate()
    assert by_hand.callbacks_class is RewardHackingMonitor


def test_no_monitor_by_default() -> None:
    made = config()
    made.validate()
    assert made.callbacks_class is PUREConfig().callbacks_class
