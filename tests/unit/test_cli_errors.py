"""What the command line shows of an error that another process raised."""

import pytest
from ray.exceptions import RayTaskError

from pure_rllib.cli import main as cli


@pytest.mark.parametrize(
    ("cause", "status"), [(ValueError("`n` must be 1"), 2), (RuntimeError("gone"), 1)]
)
def test_it_is_said_without_the_traceback_of_that_process(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cause: Exception,
    status: int,
) -> None:
    def fail(options: object) -> int:
        long = "ray::Runner.sample()\n" + 40 * "  File ...\n"
        raise RayTaskError("sample", long, cause).as_instanceof_cause()

    monkeypatch.setattr(cli, "_list", fail)
    assert cli.main(["list"]) == status
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == f"error: {cause}"
    assert len(rest) <= 1
