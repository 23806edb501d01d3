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


def test_pairs_of_a_kind_are_counted_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [row | {"kind": "odd" if i % 2 else "even"} for i, row in enumerate(ROWS)]
    out = tmp_path / "out.json"
    words = ["verify", "--pairs", write(tmp_path / "p.json", rows), "--json", str(out)]
    assert main(words) == 0
    # Pairs, wrongly accepted, wrongly refused: rows 0, 2, 4 and rows 1, 3.
    report = json.loads(out.read_text())
    assert report["kinds"] == {"even": [3, 0, 1], "odd": [2, 1, 0]}
    assert "wrongly refused" in capsys.readouterr().out


@pytest.mark.slow
def test_changed_gold_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    problems = [
        {"answer": "5"},
        {"answer": r"\frac{3}{4}"},
        {"answer": "She has 3.\n#### 1234"},
        {"solution": r"so \boxed{2 i} and $\boxed{[1,\infty)}$", "answer": None},
        {"final_answer": ["$-1$,$2$"]},
    ]
    out = tmp_path / "out.json"
    words = ["verify", "--stress", write(tmp_path / "p.json", problems), "--seed", "3"]
    assert main([*words, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "5 gold answers, seed 3" in printed and "thousands" in printed
    figures = json.loads(out.read_text())
    assert figures["rewrites"]["share"] == figures["edits"]["share"] == 1.0
    assert figures["edits"]["counts"]["bracket"] == [1, 1]
    assert figures["rewrites"]["counts"]["set reordered"] == [1, 1]
    # Equal seeds make equal changes.
    assert main([*words, "--json", str(out)]) == 0
    assert json.loads(out.read_text()) == figures


def test_problems_without_answers_are_a_clear_error(tmp_path: Path, refused: Refused):
    path = write(tmp_path / "p.json", [{"question": "1+1?"}])
    assert "must hold gold answers" in refused("verify", "--stress", path)
    assert "must be files" in refused("verify", "--stress", tmp_path / "none.json")
