"""Running a policy's Python code in a process with limits."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pure_rllib.data.bridge import CUT_MARK
from pure_rllib.setting_types import Count, PositiveFloat, check_fields

_MAX_FILE_BYTES = 2**20
_MAX_OPEN_FILES = 64
# In the process itself: a function that runs between fork and exec may deadlock where
# there are threads. Hard limits are set, which code cannot raise again.
_START = """
import resource, sys
names = "CPU", "AS", "FSIZE", "NOFILE", "CORE"
for name, limit in zip(names, map(int, sys.argv[1:])):
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
del sys.argv[1:], resource, names, name, limit
with open("code.py", encoding="utf-8", errors="replace") as file:
    code = compile(file.read(), "code.py", "exec")
del file, sys
exec(code, {"__name__": "__main__"})
"""


@dataclass(frozen=True, slots=True)
class PythonProcess:
    """Runs code with limits, each time in a new process that is gone afterwards.

    It has this interpreter and its packages, a folder of its own, no input, and none of
    the environment's variables. At the end, or when it is late, the process and all
    that it started are killed, and the folder is removed.

    These limits keep a policy's mistakes from a run; they are no wall against an
    attacker. Code runs as this user, who may read and write the user's files, use the
    network, start processes, and leave one behind that opens a session of its own;
    limits hold for each process, those of files for each file, and root may lift them.
    For code that is not trusted run everything in a container without network.

    Attributes:
        time_limit_s: wall-clock seconds, and of processor time a second more.
        memory_limit_mb: address space of a process, in MiB; Python takes about 30,
            NumPy 100 more.
        max_output_chars: of what is returned; the rest is cut, with a mark behind it.

    Raises:
        ValueError: a setting is out of its range.
    """

    time_limit_s: PositiveFloat = 5.0
    memory_limit_mb: Count = 512
    max_output_chars: Count = 1000

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, code: str) -> tuple[str, bool]:
        """Runs code, and never raises for what it does.

        Returns:
            What it printed and behind it, where it failed, a line that says why (the
            last one of a traceback); and whether it ended well.
        """
        with (
            tempfile.TemporaryDirectory() as folder,
            # Files, not pipes: nobody has to read them for the process to go on.
            tempfile.TemporaryFile() as printed,
            tempfile.TemporaryFile() as errors,
        ):
            file = Path(folder, "code.py")
            file.write_text(code, encoding="utf-8", errors="replace")
            status = self._run(folder, printed, errors)
            why = "" if status == 0 else f"error: {self._reason(status, errors)}"
            told = self._cut(_read(printed, 4 * self.max_output_chars + 4))
        lines = [line for line in (told, self._cut(why)) if line]
        return "\n".join(lines) or "(nothing was printed)", status == 0

    def _run(self, folder: str, printed: IO[bytes], errors: IO[bytes]) -> int | None:
        """Returns the exit status; None if the process was late."""
        limits = (
            int(self.time_limit_s) + 1,
            self.memory_limit_mb * 2**20,
            _MAX_FILE_BYTES,
            _MAX_OPEN_FILES,
            0,
        )
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _START, *map(str, limits)],
            cwd=folder,
            # One thread of BLAS for each core would take the address space.
            env={"HOME": folder, "TMPDIR": folder, "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=errors,
            start_new_session=True,
        )
        try:
            return process.wait(self.time_limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # With what it started, also where it ended by itself.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _reason(self, status: int | None, errors: IO[bytes]) -> str:
        if status is None:
            return f"no end within {self.time_limit_s:g} s"
        if status < 0:
            return f"ended by {signal.Signals(-status).name}"
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - 4 * self.max_output_chars))
        lines = errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {status}"

    def _cut(self, text: str) -> str:
        text, most = text.strip("\n"), self.max_output_chars
        return text if len(text) <= most else text[:most] + CUT_MARK


def _read(file: IO[bytes], num_bytes: int) -> str:
    file.seek(0)
    return file.read(num_bytes).decode(errors="replace")
