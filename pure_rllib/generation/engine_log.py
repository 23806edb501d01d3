"""What an engine that fails leaves behind: a few lines, and a file with the rest.

vLLM logs its whole configuration and every request that it was working on.
"""

import logging
import os
import socket
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAX_REASON_CHARS = 300


class EngineError(RuntimeError):
    """An engine failed; its message names a file with the engine's own words."""


class _Errors(logging.Handler):
    """Keeps error records, and keeps them off the other handlers meanwhile."""

    def __init__(self, others: list[logging.Handler]):
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []
        self.others = others

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        self.records.append(record)

    def replay(self) -> None:
        """Hands the records to the other handlers after all."""
        for record in self.records:
            for handler in self.others:
                handler.handle(record)


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Writes down what vLLM says of a failure, in place of showing it.

    Args:
        doing: what vLLM is asked for in here, as in "vLLM failed while ...".

    Raises:
        EngineError: vLLM failed. A ValueError that it logged no error of passes: it is
            about an argument, and says so itself.
    """
    logger = logging.getLogger("vllm")
    errors = _Errors(list(logger.handlers))
    for handler in errors.others:
        handler.addFilter(_is_no_error)
    logger.addHandler(errors)
    try:
        yield
    except Exception as error:
        # Whatever it is: it is raised again, and vLLM has no class for its failures.
        if isinstance(error, ValueError) and not errors.records:
            raise
        reason = next(iter(str(error).splitlines()), "")[:_MAX_REASON_CHARS]
        path = _write(errors.records)
        raise EngineError(
            f"vLLM failed while {doing}: {type(error).__name__}: {reason}\n"
            f"Its traceback and its dump of all requests are in {path} on "
            f"{socket.gethostname()}. Resume from the last checkpoint, with "
            '`.env_runners(generator="transformers")` if it comes again.'
        ) from None
    finally:
        logger.removeHandler(errors)
        for handler in errors.others:
            handler.removeFilter(_is_no_error)
    errors.replay()


def _write(records: list[logging.LogRecord]) -> Path:
    """Writes the exception that is being handled, and records, to a file that stays."""
    number, name = tempfile.mkstemp(prefix="pure-rllib-vllm-", suffix=".log", text=True)
    with os.fdopen(number, "w", encoding="utf-8") as file:
        file.write(traceback.format_exc())
        for record in records:
            file.write(logging.Formatter().format(record) + "\n")
    return Path(name)
