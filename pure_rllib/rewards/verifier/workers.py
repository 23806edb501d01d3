"""Worker processes of verifiers: started, fed, watched, killed and replaced."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, Self

from pure_rllib.rewards.base import Outcome, Verdict
from pure_rllib.setting_types import check_fields

logger = logging.getLogger(__name__)

# Requests that wait inside a worker, so that it is never idle between two of them.
_MAX_IN_FLIGHT = 4
_MAX_START_FAILURES = 3
_MAX_DEATHS = 2
_STDERR_TAIL_CHARS = 2000
_MAX_SHOWN_CHARS = 1000
# `-P` keeps the working directory out of sys.path, where a user's file could shadow a
# module; the package's own root comes last, for packages that are not installed.
_START_CODE = """
import importlib, sys
sys.path.append(sys.argv[1])
main = importlib.import_module(sys.argv[2]).main
main(int(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
"""
PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])
# What a worker finds must not depend on which one is asked: sets have one order, and
# one thread of BLAS for each core would take the address space of a small worker.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(slots=True)
class Pair:
    """One pair that waits for its verdict."""

    key: tuple[str, str | None]
    deaths: int = 0
    verdict: Verdict | None = None


class _Worker:
    """One worker process and what has been sent to it."""

    def __init__(self, module: str, memory_mb: int, time_limit_s: float, setting: str):
        # A file, not a pipe: nobody has to read it for the worker to go on.
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        arguments = [module, str(memory_mb), str(time_limit_s), setting]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START_CODE, PACKAGE_ROOT, *arguments],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            # Ctrl-C in a terminal is for the parent, which may still need its workers.
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self.stdin.fileno(), False)
        os.set_blocking(self.stdout.fileno(), False)
        self.ready = False
        self.in_flight: deque[Pair] = deque()
        self.since = time.monotonic()
        self.unsent = bytearray()
        self.unread = bytearray()

    def fileno(self) -> int:
        """The pipe that replies come from, for `wait`."""
        return self.stdout.fileno()

    def send(self, pair: Pair) -> None:
        """Queues one pair; the clock starts now if it is the only one."""
        if not self.in_flight:
            self.since = time.monotonic()
        self.in_flight.append(pair)
        self.unsent += json.dumps(pair.key).encode() + b"\n"

    def flush(self) -> None:
        """Writes what the pipe takes. A dead worker shows when it is read from."""
        try:
            while self.unsent:
                del self.unsent[: os.write(self.stdin.fileno(), self.unsent)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.unsent.clear()

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Returns the replies that are complete, and whether the worker still lives."""
        try:
            data = os.read(self.stdout.fileno(), 65536)
        except BlockingIOError:
            return [], True
        if not data:
            return [], False
        *lines, rest = (self.unread + data).split(b"\n")
        self.unread = bytearray(rest)
        return [json.loads(line) for line in lines], True

    def stderr_tail(self) -> str:
        """Returns the last characters that the worker wrote to stderr."""
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")[-_STDERR_TAIL_CHARS:]

    def close(self) -> None:
        """Kills this one process and frees what belongs to it."""
        self.process.kill()
        self.process.wait()
        for file in (self.stdin, self.stdout, self.stderr):
            # Closing flushes, which a dead reader refuses.
            with contextlib.suppress(BrokenPipeError):
                file.close()


@dataclass(eq=False)
class WorkerPool:
    """Up to `num_workers` processes that give pairs their verdicts.

    Not for several threads at once, nor for use after a fork.

    Attributes:
        num_workers: how many processes at most, >= 1.
        time_limit_s: wall-clock seconds that one pair may take, > 0.
        memory_limit_mb: address space of one worker, in MiB.
        start_limit_s: seconds that a worker may take to start, > 0.
        module: whose `main(memory_limit_mb, time_limit_s, setting)` a worker runs.
        setting: handed on to it.
    """

    num_workers: int
    time_limit_s: float
    memory_limit_mb: int
    start_limit_s: float
    module: str
    setting: str

    def __post_init__(self) -> None:
        self.owner_pid = os.getpid()
        self._workers: list[_Worker] = []
        self._start_failures = 0

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that live now."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Ends the workers; new ones start when needed."""
        # A forked child inherits the list but does not own the processes.
        if os.getpid() == self.owner_pid:
            while self._workers:
                self._workers.pop().close()

    def check(self, pairs: list[Pair]) -> None:
        """Gives each pair its verdict.

        Raises:
            RuntimeError: workers cannot be started.
        """
        for worker in [w for w in self._workers if w.process.poll() is not None]:
            # Killed from outside while it was idle: no pair is to blame.
            self._drop(worker)
        waiting = deque(pairs)
        try:
            while waiting or any(worker.in_flight for worker in self._workers):
                self._start_workers(len(waiting))
                self._deal(waiting)
                workers: list[Any] = list(self._workers)
                ready: list[Any] = wait(workers, self._seconds_to_next_limit())
                for worker in ready:
                    self._receive(worker, waiting)
                self._enforce_limits(waiting)
        finally:
            if any(worker.in_flight for worker in self._workers):
                # Interrupted: replies that come later belong to nobody.
                self.close()

    def _start_workers(self, num_waiting: int) -> None:
        num_wanted = min(self.num_workers, len(self._workers) + num_waiting)
        num_starting = sum(not worker.ready for worker in self._workers)
        for _ in range(num_wanted - len(self._workers) - num_starting):
            limits = self.memory_limit_mb, self.time_limit_s
            self._workers.append(_Worker(self.module, *limits, self.setting))

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.close()

    def _deal(self, waiting: deque[Pair]) -> None:
        # One each in turn: a few pairs are spread over all the workers.
        for num_in_flight in range(_MAX_IN_FLIGHT):
            for worker in self._workers:
                if waiting and worker.ready and len(worker.in_flight) == num_in_flight:
                    worker.send(waiting.popleft())
        for worker in self._workers:
            worker.flush()

    def _limit(self, worker: _Worker) -> float:
        """Returns when the worker will be late, on the monotonic clock."""
        if not worker.ready:
            return worker.since + self.start_limit_s
        return worker.since + (self.time_limit_s if worker.in_flight else float("inf"))

    def _seconds_to_next_limit(self) -> float:
        limit = min(self._limit(worker) for worker in self._workers)
        # What a full pipe did not take is tried again soon.
        blocked = any(worker.unsent for worker in self._workers)
        longest = 0.01 if blocked else 1.0
        return min(max(limit - time.monotonic(), 0.0), longest)

    def _receive(self, worker: _Worker, waiting: deque[Pair]) -> None:
        messages, alive = worker.read()
        now = time.monotonic()
        retire = False
        for message in messages:
            if not worker.ready:
                worker.ready = True
                self._start_failures = 0
            else:
                pair = worker.in_flight.popleft()
                retire = message.pop("retire")
                pair.verdict = Verdict(**message)
            worker.since = now
        if retire:
            waiting.extendleft(reversed(worker.in_flight))
            self._drop(worker)
        elif not alive:
            self._bury(worker, waiting)

    def _bury(self, worker: _Worker, waiting: deque[Pair]) -> None:
        """Replaces a worker that has died by itself; its pair gets one more try."""
        was_ready, tail = worker.ready, worker.stderr_tail()
        if worker.in_flight:
            worker.in_flight[0].deaths += 1
            if worker.in_flight[0].deaths >= _MAX_DEATHS:
                pair = worker.in_flight.popleft()
                logger.warning(
                    "A pair ended %d verifier workers, so its outcome is an error: "
                    "%.200r. The last one wrote: %.500s",
                    _MAX_DEATHS,
                    pair.key,
                    tail or "(nothing)",
                )
                self._give_up(pair, "error", worker.since)
        waiting.extendleft(reversed(worker.in_flight))
        self._drop(worker)
        self._start_failures += not was_ready
        if self._start_failures >= _MAX_START_FAILURES:
            self._start_failures = 0
            raise RuntimeError(
                f"Verifier workers died {_MAX_START_FAILURES} times in a row while "
                f"starting. Set `memory_limit_mb` ({self.memory_limit_mb}) higher if "
                f"memory ran out. The last one wrote:\n{tail or '(nothing)'}"
            )

    def _give_up(self, pair: Pair, outcome: Outcome, since: float) -> None:
        answer = (pair.key[1] or "")[:_MAX_SHOWN_CHARS]
        pair.verdict = Verdict(outcome, answer, time.monotonic() - since)

    def _enforce_limits(self, waiting: deque[Pair]) -> None:
        for worker in list(self._workers):
            if time.monotonic() < self._limit(worker):
                continue
            if not worker.ready:
                self._drop(worker)
                raise RuntimeError(
                    f"A verifier worker took longer than `start_limit_s` "
                    f"({self.start_limit_s}) to start; because its imports are slow on "
                    "this machine. Set start_limit_s higher."
                )
            # Its reply may have come while this process was busy elsewhere.
            num_before = len(worker.in_flight)
            self._receive(worker, waiting)
            if worker in self._workers and len(worker.in_flight) == num_before:
                self._give_up(worker.in_flight.popleft(), "timeout", worker.since)
                waiting.extendleft(reversed(worker.in_flight))
                self._drop(worker)


class PooledVerifier:
    """A dataclass of settings, and the pool of workers that it owns.

    Workers start when they are needed and stay until `close()`, the end of a `with`
    block, garbage collection or the interpreter's end. Any thread may ask, one at a
    time. Pickling and forking keep the settings only, among them the pool's.
    """

    num_workers: int
    time_limit_s: float
    memory_limit_mb: int
    start_limit_s: float

    def __post_init__(self) -> None:
        check_fields(self)
        self._make_state()

    @property
    def _worker(self) -> tuple[str, str]:
        """Module and setting of a worker."""
        raise NotImplementedError

    def _make_state(self) -> None:
        self._lock = threading.Lock()
        self._pool = WorkerPool(
            self.num_workers,
            self.time_limit_s,
            self.memory_limit_mb,
            self.start_limit_s,
            *self._worker,
        )
        self._finalizer = weakref.finalize(self, self._pool.close)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_state()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that live now."""
        return self._pool.pids

    def close(self) -> None:
        """Ends the workers. The verifier stays usable: new ones start when needed."""
        with self._lock:
            self._pool.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[WorkerPool]:
        """Gives one thread the pool."""
        with self._lock:
            if os.getpid() != self._pool.owner_pid:
                # After a fork the workers are the parent's.
                self._make_state()
            yield self._pool
