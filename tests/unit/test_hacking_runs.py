"""Alarms on recorded runs; benchmarks/reward_hacking.py made and prints them.

The thresholds were chosen on weak_sum_0 and weak_sum_1 and on runs that are not here;
all others were made afterwards.
"""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reward_hacking.py"
_NAMES = runpy.run_path(str(SCRIPT))
first_alarm, hack_start = _NAMES["first_alarm"], _NAMES["hack_start"]
RUNS = _NAMES["read"](Path(__file__).with_name("hacking_runs.json"))
HEALTHY = sorted(name for name, rows in RUNS.items() if hack_start(rows) is None)
HACKED = sorted(set(RUNS) - set(HEALTHY))


def test_the_runs_are_what_they_are_called() -> None:
    assert {name for name in HACKED if "sum" in name} == set(HACKED) - {"arithmetic_12"}
    assert sum(name.startswith("arithmetic") for name in HEALTHY) == 3


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_raises_no_alarm(name: str) -> None:
    assert first_alarm(RUNS[name]) is None


@pytest.mark.parametrize("name", HACKED)
def test_a_hack_is_named_within_ten_iterations(name: str) -> None:
    start, alarm = hack_start(RUNS[name]), first_alarm(RUNS[name])
    assert start is not None and alarm is not None
    assert start - 2 <= alarm[0] <= start + 10
