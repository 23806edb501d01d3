"""What is shown and kept of an engine that fails."""

import logging
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from pure_rllib.generation.engine_log import EngineError, engine_errors

DUMP = "Dumping input data " + 20_000 * "."


@pytest.fixture
def screen() -> Iterator[StringIO]:
    """What vLLM's own handler shows."""
    logger, shown = logging.getLogger("vllm"), StringIO()
    handler, propagate = logging.StreamHandler(shown), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    yield shown
    logger.removeHandler(handler)
    logger.propagate = propagate


def test_a_failure_is_a_few_lines_that_name_a_file_with_the_rest(
    screen: StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    logger = logging.getLogger("vllm.engine")
    with (
        pytest.raises(
            EngineError, match=r"while 2 prompts were run: KeyError"
        ) as found,
        engine_errors("2 prompts were run"),
    ):
        logger.warning("as always")
        logger.error(DUMP)
        raise KeyError(DUMP)
    assert screen.getvalue() == "as always\n"
    message = str(found.value)
    assert len(message) < 1000 and message.count("\n") == 1
    (path,) = tmp_path.iterdir()
    assert re.search(rf"are in {path} on ", message)
    content = path.read_text()
    assert content.startswith("Traceback") and content.count(DUMP) == 2


def test_what_is_no_failure_is_shown_as_always(screen: StringIO) -> None:
    logger = logging.getLogger("vllm.engine")
    with engine_errors("a prompt was run"):
        logger.error("can be ignored")
    assert screen.getvalue() == "can be ignored\n"
    logger.error("later")
    assert screen.getvalue().endswith("later\n")
    with pytest.raises(ValueError, match="of an argument"), engine_errors("made"):
        raise ValueError("of an argument")
