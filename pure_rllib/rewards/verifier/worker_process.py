"""The process that runs a checker for a verifier: `main` that of `MathVerifier`.

Reads one JSON array `[gold, response]` per line on stdin (null in place of a response
asks whether the gold answer can be read), writes one JSON object per line on stdout, in
the same order; the first object says that the worker is ready. It ends at the end of
its input. It has no time limit of its own except a last resort: the parent kills it.
This module and all that it imports must stay light (no torch): its start is waited for.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

MIB = 1024 * 1024
# Sympy may leave files of any size behind only through a bug; a worker writes none.
MAX_FILE_BYTES = 16 * MIB
# How long past the parent's limit a worker lives whose parent has died.
ORPHAN_GRACE_S = 10.0


def set_limits(memory_limit_mb: int) -> None:
    """Limits this process's address space and files; turns core dumps off.

    Args:
        memory_limit_mb: in MiB, >= 1; reaching it is a MemoryError or a crash.
    """
    for kind, limit in (
        (resource.RLIMIT_AS, memory_limit_mb * MIB),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


def memory_mb() -> float:
    """Returns the memory that this process holds now in MiB, 0.0 where not on Linux."""
    # Not getrusage: its peak begins at that of the parent, which may hold models.
    if not os.path.exists("/proc/self/statm"):
        return 0.0
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / MIB


Check = Callable[[str, Any], dict[str, Any]]


def main(memory_limit_mb: int, time_limit_s: float, bare_lists: str = "set") -> None:
    """Answers pairs until stdin ends. See the module for the protocol."""
    serve(memory_limit_mb, time_limit_s, partial(_math_check, bare_lists))


def _math_check(bare_lists: str) -> Check:
    # Pint would load it for arrays, which no answer holds: 120 MiB and half a second.
    sys.modules["numpy"] = None  # type: ignore[assignment]
    from pure_rllib.rewards.verifier.checker import Checker

    checker = Checker(bare_lists)  # type: ignore[arg-type]
    # The first pairs build the parser's tables, which takes longer than later ones. And
    # Math-Verify hides what goes wrong inside of it, running out of memory included: a
    # worker that finds nothing correct must not start.
    for gold, response in ((r"\boxed{\frac{1}{2}}", r"\boxed{0.5}"), ("$2$", "is 2")):
        found = checker.check(gold, response)
        if found["outcome"] != "correct":
            raise RuntimeError(f"{response!r} checked against {gold!r} gives {found}.")
    return checker.check


def serve(
    memory_limit_mb: int, time_limit_s: float, make_check: Callable[[], Check]
) -> None:
    """Answers pairs until stdin ends, with whatever check there is.

    Args:
        memory_limit_mb: see `set_limits`.
        time_limit_s: after which the parent kills this process.
        make_check: does what takes long; returns a function of the two parts of a
            request to the fields of a `Verdict` that are known.
    """
    # Whatever prints from here on goes to stderr: the protocol has stdout for itself.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    # Before the imports: a limit that is too small for them shows at once.
    set_limits(memory_limit_mb)
    check = make_check()
    # Sympy's caches keep what a check needed: a worker that grew asks to be replaced.
    # Tens of thousands of usual answers take less than an eighth of the usual room.
    retire_mb = memory_mb() + (memory_limit_mb - memory_mb()) / 8
    reply({"ready": True})
    for line in requests:
        gold, response = json.loads(line)
        # The signal's default action ends the process, even inside of C code. It only
        # matters where the parent has died and nobody else ends a check that hangs.
        signal.setitimer(signal.ITIMER_REAL, time_limit_s + ORPHAN_GRACE_S)
        start = time.perf_counter()
        message = check(gold, response)
        message["seconds"] = time.perf_counter() - start
        signal.setitimer(signal.ITIMER_REAL, 0)
        message["retire"] = memory_mb() > retire_mb
        reply(message)
