"""When the monitor is there, where it goes back to and when it stops instead."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pure_rllib.algorithms import PUREConfig
from pure_rllib.hacking.monitor import MAX_RETURNS, RewardHackingMonitor

THRESHOLDS = {"window": 2, "memory": 6, "noise": 1.0}


class FakeAlgorithm:
    """Counts iterations, saves empty folders and notes where it is sent back to."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            hacking_monitor="go_back", hacking_thresholds=THRESHOLDS
        )
        self.iteration = 0
        self.saved: dict[int, Path] = {}
        self.returns: list[int] = []

    def save_to_path(self, path: str) -> None:
        Path(path).mkdir()
        self.saved[self.iteration] = Path(path)

    def go_back(self, path: Path) -> None:
        assert path.is_dir()
        self.returns += [i for i, saved in self.saved.items() if saved == path]

    def kept(self) -> list[int]:
        return [i for i, path in self.saved.items() if path.exists()]


def run(
    monitor: RewardHackingMonitor, algo: FakeAlgorithm, until: int, *, hacked: bool
) -> dict[str, Any]:
    """Goes on to an iteration; the last one is hacked or not, all others are not."""
    result: dict[str, Any] = {}
    while algo.iteration < until:
        algo.iteration += 1
        share = float(hacked and algo.iteration == until)
        result = {"done": False, "response": {"one_step_share": share}}
        monitor.on_train_result(algorithm=algo, result=result)
    assert result["hacking"]["alarm"] == float(hacked)
    return result


@pytest.mark.parametrize(
    ("alarm_at", "good", "saved"),
    [
        (5, 1, [1]),  # none is 10 iterations old: the first there is
        (12, 1, [1, 11]),
        (20, 1, [1, 11]),
        (25, 11, [11, 21]),  # only two are kept
        (31, 21, [11, 21]),
    ],
)
def test_it_goes_back_to_one_that_is_old_enough(
    alarm_at: int, good: int, saved: list[int]
) -> None:
    monitor, algo = RewardHackingMonitor(), FakeAlgorithm()
    run(monitor, algo, alarm_at - 1, hacked=False)
    assert algo.kept() == saved
    result = run(monitor, algo, alarm_at, hacked=True)
    assert algo.returns == [good] and not result["done"]
    # A checkpoint of after the hack's start would be one to go back to later.
    assert algo.kept() == [good]


def test_it_stops_when_it_went_back_too_often() -> None:
    monitor, algo = RewardHackingMonitor(), FakeAlgorithm()
    for number in range(1, MAX_RETURNS + 1):
        assert not run(monitor, algo, 10 * number - 1, hacked=True)["done"]
        assert len(algo.returns) == number
    assert run(monitor, algo, 10 * number + 9, hacked=True)["done"]
    assert len(algo.returns) == MAX_RETURNS


def test_a_resumed_run_stops_until_it_has_a_checkpoint_of_its_own() -> None:
    for alarm_at, returns in ((15, []), (25, [21])):
        before, algo = RewardHackingMonitor(), FakeAlgorithm()
        run(before, algo, 12, hacked=False)
        state = before.get_state()
        del before
        assert algo.kept() == []
        monitor = RewardHackingMonitor()
        monitor.set_state(state)
        result = run(monitor, algo, alarm_at, hacked=True)
        assert result["done"] is (not returns) and algo.returns == returns


def test_a_resumed_run_remembers_how_often_it_went_back() -> None:
    monitor, algo = RewardHackingMonitor(), FakeAlgorithm()
    run(monitor, algo, 5, hacked=True)
    state = monitor.get_state()
    assert state["num_returns"] == 1
    resumed = RewardHackingMonitor()
    resumed.set_state({**state, "num_returns": MAX_RETURNS})
    # It has a checkpoint to go back to, of iteration 11.
    assert run(resumed, algo, 15, hacked=True)["done"]
    assert 11 in algo.kept() and algo.returns == [1]


def config() -> PUREConfig:
    return PUREConfig().environment("pure_rllib/Arithmetic-v0")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hacking_monitor": "shout"}, r"`hacking_monitor` \('shout'\) must be one"),
        ({"hacking_thresholds": {"window": 1}}, r"`window` \(1\) must be >= 2"),
        ({"hacking_thresholds": {"widow": 5}}, r"unknown keys \['widow'\]"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config().reporting(**settings).validate()


def test_it_joins_the_users_callbacks_once_if_it_is_asked_for() -> None:
    made = config().reporting(hacking_monitor="stop")
    made.validate()
    made.validate()
    assert made.callbacks_class.count(RewardHackingMonitor) == 1
    by_hand = config().callbacks(RewardHackingMonitor)
    by_hand.validate()
    assert by_hand.callbacks_class is RewardHackingMonitor
    none = config()
    none.validate()
    assert none.callbacks_class is PUREConfig().callbacks_class
