"""What is said of env runners that Ray has no room for."""

import logging
from types import SimpleNamespace

import pytest
import ray

from pure_rllib.algorithms import placement


@pytest.mark.parametrize(("num_env_runners", "is_warned"), [(3, True), (2, False)])
def test_env_runners_without_room_are_named(
    num_env_runners: int,
    is_warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)
    config = SimpleNamespace(num_env_runners=num_env_runners, num_cpus_per_env_runner=1)
    with caplog.at_level(logging.WARNING):
        placement.warn_of_missing_cpus(config)
    assert ("`num_env_runners` (3) at 1 CPUs each" in caplog.text) == is_warned
