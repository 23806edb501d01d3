"""Phases, and what is told of learners that waited for too long."""

import json
import threading
from dataclasses import asdict
from time import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RpcError

from pure_rllib.algorithms import PUREConfig
from pure_rllib.distributed import watchdog
from pure_rllib.distributed.collectives import current_phase, phase
from pure_rllib.distributed.watchdog import (
    Beat,
    last_beats,
    start_watchdog,
    timeout_error,
)


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


def test_one_learner_that_sends_weights_is_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[float] = []
    watched = threading.Event()

    def watch(timeout_s: float) -> None:
        limits.append(timeout_s)
        watched.set()

    context = SimpleNamespace(get_actor_id=lambda: "ab")
    monkeypatch.setattr(watchdog.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(watchdog, "_watch", watch)
    monkeypatch.setattr(watchdog, "_report", block)
    start_watchdog(1.0, sends_weights=True)
    assert watched.wait(2.0)
    assert limits == [1.0]


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


@pytest.mark.parametrize("value", [0, -1.0, "60"])
def test_the_limit_of_sampling_is_a_positive_number_or_none(value: Any) -> None:
    made = PUREConfig().environment("pure_rllib/Arithmetic-v0")
    assert made.sample_timeout_s == 3600.0
    with pytest.raises(ValueError, match="`sample_timeout_s`"):
        made.copy().env_runners(sample_timeout_s=value).validate()
    made.env_runners(sample_timeout_s=None).validate()


def block(*args: object) -> None:
    """Stops a daemon thread for the rest of this process."""
    threading.Event().wait()


def waiting_for_long(timeout_s: float) -> Beat:
    return Beat(1, "gradients", 1000.0, True, time())


def test_a_learner_ends_itself_whatever_has_become_of_ray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver is gone, and Ray's store answers no more."""
    ended, codes = threading.Event(), []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()
        block()

    context = SimpleNamespace(get_actor_id=lambda: "ab")
    monkeypatch.setattr(watchdog, "num_ranks", lambda: 2)
    monkeypatch.setattr(watchdog.dist.distributed_c10d, "_set_pg_timeout", id)
    monkeypatch.setattr(watchdog.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(watchdog, "_present_beat", waiting_for_long)
    monkeypatch.setattr(watchdog.internal_kv, "_internal_kv_put", block)
    monkeypatch.setattr(watchdog.os, "_exit", end)
    start_watchdog(1.0)
    assert ended.wait(2.0)
    assert codes == [1]


def test_reports_go_on_after_a_hiccup_of_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    again = threading.Event()

    def put(key: str, report: str) -> None:
        told.append(report)
        if len(told) == 1:
            raise RpcError("the GCS is not reachable")
        again.set()
        block()

    monkeypatch.setattr(watchdog.internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(watchdog, "_present_beat", waiting_for_long)
    threading.Thread(target=watchdog._report, args=(0.04, "key"), daemon=True).start()
    assert again.wait(2.0)
    assert [json.loads(report)["timed_out"] for report in told] == [True, True]


def test_the_driver_reads_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(key: str) -> bytes:
        if key.endswith("00"):
            raise RpcError("the GCS is not reachable")
        return json.dumps(asdict(waiting_for_long(1.0))).encode()

    monkeypatch.setattr(watchdog.internal_kv, "_internal_kv_get", get)
    actors = {
        i: SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda name=f"0{i}": name))
        for i in range(2)
    }
    assert [beat.phase for beat in last_beats(actors).values()] == ["gradients"]
    assert list(last_beats(actors)) == [1]
