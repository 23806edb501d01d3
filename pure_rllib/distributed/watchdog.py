"""Ends a learner that waits for the others for too long, and says where it waited.

A collective ends when all learners have come. Where one does not come (its process
hangs or was stopped, or its node cannot be reached any more), the others would wait
without a word, for half an hour or for ever. Here two threads of each learner look
at its phase (`collectives.phase`): one tells the driver of it by Ray's key-value store,
the other ends the process some time after the limit, whatever has become of Ray.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from time import monotonic, sleep, time
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import RayError
from ray.experimental import internal_kv

from pure_rllib.distributed.collectives import (
    Phase,
    current_phase,
    num_ranks,
    rank,
)

BEAT_S = 5.0
"""How often a learner reports what it does; more often if the limit is short."""

_EXIT_S = 30.0
_PREFIX = "pure_rllib_watchdog:"


class CollectiveTimeoutError(RuntimeError):
    """A learner waited for another process longer than `collective_timeout_s`."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a learner reports from time to time.

    Attributes:
        rank: the learner's number.
        phase: what it is doing.
        seconds: for how long.
        timed_out: whether it waits for others for longer than the limit.
        at: when it reported, in seconds since the epoch.
    """

    rank: int
    phase: str
    seconds: float
    timed_out: bool
    at: float


def start_watchdog(timeout_s: float, *, sends_weights: bool = False) -> None:
    """Watches the phases of this process, a learner's, until it ends.

    Where there is nobody to wait for, there are no threads.

    Args:
        timeout_s: limit of a phase that waits for other processes.
        sends_weights: it waits for env runners, too, to receive weights.
    """
    if num_ranks() > 1:
        # The backend's own limit comes after ours: its error names no phase.
        limit = timedelta(seconds=timeout_s + 2 * _EXIT_S)
        dist.distributed_c10d._set_pg_timeout(limit)
    elif not sends_weights:
        return
    key = _PREFIX + ray.get_runtime_context().get_actor_id()
    # Two, because a report waits for as long as Ray does not answer.
    for name, run, arguments in (
        ("learner watchdog", _watch, (timeout_s,)),
        ("learner reports", _report, (timeout_s, key)),
    ):
        threading.Thread(target=run, args=arguments, name=name, daemon=True).start()


def _present_beat(timeout_s: float) -> Beat:
    phase = current_phase() or Phase("idle", monotonic(), waits=False)
    seconds = monotonic() - phase.started
    is_late = phase.waits and seconds > timeout_s
    return Beat(rank(), phase.name, seconds, is_late, time())


def _watch(timeout_s: float) -> None:
    while True:
        beat = _present_beat(timeout_s)
        if beat.timed_out and beat.seconds > timeout_s + _EXIT_S:
            # The driver stops us before, unless it is itself gone.
            print(
                f"Learner {beat.rank} waited for the others for {beat.seconds:.0f} s "
                f'in phase "{beat.phase}"; its process ends.',
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)
        sleep(_beat_s(timeout_s))


def _report(timeout_s: float, key: str) -> None:
    while True:
        report = json.dumps(asdict(_present_beat(timeout_s)))
        # A report that Ray does not take is made up for by the next one; the driver
        # sees by its age that the last one is old.
        with suppress(RayError):
            internal_kv._internal_kv_put(key, report)
        sleep(_beat_s(timeout_s))


def _beat_s(timeout_s: float) -> float:
    return min(BEAT_S, timeout_s / 4)


def last_beats(actors: Mapping[int, Any]) -> dict[int, Beat]:
    """Reads what learners reported last, by the number of their actor.

    Args:
        actors: the learners' handles; those that never reported are left out, and
            those whose report Ray cannot give at present.
    """
    beats = {}
    for i, actor in actors.items():
        raw = None
        with suppress(RayError):
            raw = internal_kv._internal_kv_get(_PREFIX + actor._actor_id.hex())
        if raw is not None:
            beats[i] = Beat(**json.loads(raw))
    return beats


def timeout_error(
    beats: Mapping[int, Beat], num_learners: int, timeout_s: float
) -> CollectiveTimeoutError:
    """Says which learners waited where, and what is known of the others.

    Args:
        beats: as from `last_beats`; at least one has timed out.
        num_learners: how many there are.
        timeout_s: the limit.
    """
    now = time()
    waiting = {i: beat for i, beat in beats.items() if beat.timed_out}
    told = [
        f'learner {i} waited for {beat.seconds:.0f} s in phase "{beat.phase}"'
        for i, beat in sorted(waiting.items())
    ]
    silent_s = 3 * _beat_s(timeout_s)
    for i in sorted(set(range(num_learners)) - set(waiting)):
        beat = beats.get(i)
        if beat is None:
            told.append(f"learner {i} has never reported")
        elif now - beat.at > silent_s:
            told.append(
                f"learner {i} gave no sign of life for {now - beat.at:.0f} s, last in "
                f'phase "{beat.phase}" (stopped, or its node cannot be reached)'
            )
        else:
            told.append(
                f'learner {i} was in phase "{beat.phase}" for {beat.seconds:.0f} s'
            )
    return CollectiveTimeoutError(
        f"`collective_timeout_s` ({timeout_s:g}) must be longer than one learner waits "
        "for another, because all of them end every phase together, or for env runners "
        f'in phase "broadcast": '
        f"{'; '.join(told)}. If that learner was only slow, raise "
        "`.learners(collective_timeout_s=...)`; else look at its log. The run stops; "
        "its last checkpoint is intact: resume from it."
    )
