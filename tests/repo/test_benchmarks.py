"""What `benchmarks/engines.py` runs is there and takes the arguments it is given."""

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PARTS = runpy.run_path(str(BENCHMARKS / "engines.py"))["PARTS"]


@pytest.mark.parametrize(("name", "arguments"), [part[1:] for part in PARTS], ids=str)
def test_a_part_takes_its_arguments(
    name: str, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        sys.exit("parsed")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    with pytest.raises(SystemExit, match="parsed"):
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
