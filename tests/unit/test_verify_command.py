"""`pure-rllib verify`, with a real worker."""

import json
from pathlib import Path
from typing import Any

import pytest

from pure_rllib.cli.main import main
from tests.unit.conftest import Refused

ROWS = [
    {"gold": "5", "pred": "\\boxed{5}", "expected": True},
    {"gold": "5", "pred": "\\boxed{6}", "expected": False},
    {"gold": r"\frac{1}{2}", "pred": "1/2", "expected": True, "source": "ignored"},
    # Two wrong labels: one more is accepted, one less than labelled.
    {"gold": "7", "pred": "\\boxed{7}", "expected": False},
    {"gold": "8", "pred": "no \x1b[2J idea", "expected": True},
]


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_figures_and_wrong_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pairs, out = write(tmp_path / "pairs.json", ROWS), tmp_path / "out.json"
    words = ["verify", "--pairs", pairs, "--workers", "1", "--limit-s", "20"]
    assert main([*words, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    # 3 accepted, 2 of them labelled true; 3 labelled true, 2 of them accepted.
    assert "precision  0.6667  (1 of 3 accepted are labelled false)" in printed
    assert "recall     0.6667  (1 of 3 labelled true are not accepted)" in printed
    assert "correct 3, incorrect 1, no_answer 1, timeout 0, error 0" in printed
    assert "\x1b" not in printed
    report = json.loads(out.read_text())
    assert [wrong["row"] for wrong in report["wrong"]] == [3, 4]
    assert report["wrong"][0] | {"answer": None} == {
        "row": 3,
        "gold": "7",
        "pred": "\\boxed{7}",
        "expected": False,
        "outcome": "correct",
        "answer": None,
    }
    assert report["precision"] == report["recall"] == 2 / 3
    assert sum(report["outcomes"].values()) == report["num_pairs"] == 5


def test_nothing_accepted_is_no_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["verify", "--pairs", write(tmp_path / "p.json", ROWS[1:2])]) == 0
    printed = capsys.readouterr().out
    assert "precision  -" in printed
    assert "expected" not in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "`--pairs` "),
        ("{", "pairs.json"),
        ("[]", "pairs.json"),
        ([{"gold": "5", "pred": "5"}], "`expected` (missing) of row 0"),
        ([*ROWS, {"gold": 5, "pred": "", "expected": True}], "`gold` (5) of row 5"),
        ([{"gold": "5", "pred": "5", "expected": 1}], "`expected` (1) of row 0"),
    ],
)
def test_bad_pairs_are_a_clear_error(
    tmp_path: Path, refused: Refused, content: Any, message: str
):
    path = tmp_path / "pairs.json"
    if content is not None:
        write(path, content)
    assert message in refused("verify", "--pairs", path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "`num_workers` (0)"),
        (["--limit-s", "0"], "`time_limit_s` (0.0)"),
        (["--json", "nowhere/out.json"], "`--json` (nowhere/out.json)"),
    ],
)
def test_bad_settings_are_a_clear_error(
    tmp_path: Path, refused: Refused, words: list[str], message: str
):
    pairs = write(tmp_path / "pairs.json", ROWS)
    assert message in refused("verify", "--pairs", pairs, *words)
