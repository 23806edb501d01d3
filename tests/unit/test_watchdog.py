"""Phases, and what is told of learners that waited for too long."""

import threading
from time import time
from typing import Any

import pytest

from pure_rllib.algorithms import PUREConfig
from pure_rllib.algorithms.pure.collectives import current_phase, phase
from pure_rllib.algorithms.pure.watchdog import Beat, start_watchdog, timeout_error


def test_phases_are_nested_and_end_with_an_error_too() -> None:
    assert current_phase() is None
    with phase("update", waits=False):
        with pytest.raises(KeyError), phase("gradients"):
            inner = current_phase()
            raise KeyError
        outer = current_phase()
    assert inner is not None and (inner.name, inner.waits) == ("gradients", True)
    assert outer is not None and (outer.name, outer.waits) == ("update", False)
    assert current_phase() is None


def test_one_learner_has_nobody_to_wait_for() -> None:
    before = threading.active_count()
    start_watchdog(1.0)
    assert threading.active_count() == before


def test_the_error_names_who_waited_where_and_what_others_did() -> None:
    now = time()
    beats = {
        0: Beat(0, "gradients", 61.0, True, now),
        1: Beat(1, "connectors", 62.0, False, now - 1.0),
        2: Beat(2, "losses", 0.2, False, now - 60.0),
    }
    text = str(timeout_error(beats, 4, 60.0))
    assert "`collective_timeout_s` (60)" in text
    assert 'learner 0 waited for 61 s in phase "gradients"' in text
    assert 'learner 1 was in phase "connectors" for 62 s' in text
    assert 'learner 2 gave no sign of life for 60 s, last in phase "losses"' in text
    assert "learner 3 has never reported" in text


@pytest.mark.parametrize("value", [0, -1.0, None, "60"])
def test_the_limit_of_collectives_is_a_positive_number(value: Any) -> None:
    made = PUREConfig().environment("pure_rllib/Arithmetic-v0")
    with pytest.raises(ValueError, match="`collective_timeout_s`"):
        made.learners(collective_timeout_s=value).validate()
