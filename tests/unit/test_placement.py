"""What is said of env runners that Ray has no room for."""

import logging

import pytest
import ray

from pure_rllib.algorithms import PUREConfig, placement


@pytest.mark.parametrize(
    ("num_env_runners", "num_learners", "is_warned"),
    [(3, 0, True), (2, 0, False), (2, 1, True)],
)
def test_env_runners_without_room_are_named(
    num_env_runners: int,
    num_learners: int,
    is_warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)
    config = PUREConfig().env_runners(num_env_runners=num_env_runners)
    config.learners(num_learners=num_learners)
    with caplog.at_level(logging.WARNING):
        placement.warn_of_missing_cpus(config)
    asked = f"`num_env_runners` ({num_env_runners}) at 1 CPUs each"
    assert (asked in caplog.text) == is_warned
