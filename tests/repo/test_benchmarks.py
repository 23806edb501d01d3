"""Benchmarks take the arguments they are given; what is for GPUs runs on a CPU."""

import argparse
import json
import runpy
import subprocess
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
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with pytest.raises(SystemExit, match="parsed"):
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")


GPU_CORE = [
    "learn --budget 64 256 --prompts 2 --responses 3 --prompt-tokens 5 --max-tokens 40",
    "learn --layout packed --lora 2 --prompts 1 --responses 2 --max-tokens 40",
    "learn --layout padded --adam cpu --prompts 1 --responses 2 --max-tokens 40",
    "park --cycles 2",
    "logps --tokens 32 --chunk-mib 1 2",
]
ONLY_MODELS = """
import runpy, sys
sys.modules.update(dict.fromkeys(["ray", "vllm"]))
path, *commands = sys.argv[1:]
sys.path.insert(0, path.rpartition("/")[0])
for command in commands:
    sys.argv = [path, *command.split(), "--shape", "tiny", "--rounds", "1"]
    runpy.run_path(path, run_name="__main__")
"""


@pytest.mark.slow
def test_the_core_runs_where_only_torch_and_transformers_are() -> None:
    command = [sys.executable, "-c", ONLY_MODELS, str(BENCHMARKS / "gpu_core.py")]
    done = subprocess.run(
        [*command, *GPU_CORE], stdout=subprocess.PIPE, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"device"')]
    rows = [json.loads(line)["rows"] for line in lines]
    assert [len(found) for found in rows] == [4, 1, 1, 1, 4]
    padded, packed = rows[0][0], rows[0][2]
    assert (padded["layout"], packed["layout"]) == ("padded", "packed")
    for row in (*rows[0], *rows[1], *rows[2], *rows[4]):
        assert row["tokens_per_s"] > 0 and row["of_matrix_rate"] > 0, row
