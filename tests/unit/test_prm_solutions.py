"""Labelled solutions from every form of data."""

import json
from pathlib import Path
from typing import Any

import pytest

from pure_rllib.arithmetic.checker import ERROR_KINDS, check_steps
from pure_rllib.arithmetic.task import split_of
from pure_rllib.prm_training.prm800k import StepTree
from pure_rllib.prm_training.solutions import (
    LabelledSolution,
    arithmetic_steps,
    prepared,
    read_solutions,
    split_by_prompt,
)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_trl_rows(tmp_path: Path):
    rows = [{"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}]
    [solution] = read_solutions(write(tmp_path / "trl.jsonl", rows))
    assert solution == LabelledSolution("p", ("a", "b"), (True, False))


def test_a_folder_of_our_own_rows_is_read_in_order(tmp_path: Path):
    write(tmp_path / "b.jsonl", [{"prompt": "2", "steps": ["x"], "labels": [None]}])
    write(tmp_path / "a.jsonl", [{"prompt": "1", "steps": ["y"], "labels": [1]}])
    solutions = read_solutions(str(tmp_path))
    assert [(s.prompt, s.labels) for s in solutions] == [("1", (True,)), ("2", (None,))]


PHASE_ROW = {
    "question": {"problem": "p", "ground_truth_answer": "4"},
    "label": {
        "steps": [
            {
                "completions": [
                    {"text": "a", "rating": 1},
                    {"text": "bad", "rating": -1},
                ],
                "human_completion": None,
                "chosen_completion": 0,
            },
            {
                "completions": [{"text": "neutral", "rating": 0}],
                "human_completion": {"text": "by hand", "rating": None},
                "chosen_completion": None,
            },
            {
                "completions": [{"text": "end", "rating": 1}],
                "human_completion": None,
                "chosen_completion": None,
            },
        ]
    },
}


def test_phase_files_become_a_tree(tmp_path: Path):
    """Every rating stands in one solution; the shared step `a` in the first."""
    file = write(tmp_path / "phase2_train.jsonl", [PHASE_ROW])
    found = {s.steps: s.labels for s in read_solutions(file)}
    assert found == {
        ("bad",): (False,),
        ("a", "neutral"): (True, True),
        ("a", "by hand", "end"): (None, True, True),
    }
    bad = {s.steps: s.labels for s in read_solutions(file, neutral="bad")}
    assert bad["a", "neutral"] == (True, False)
    # The branch is still the first with `a`, whose label stands there.
    ignored = {s.steps: s.labels for s in read_solutions(file, neutral="ignore")}
    assert ignored["a", "neutral"] == (True, None)


def test_stepwise_rows_become_the_same_tree(tmp_path: Path):
    def row(before: list[str], text: str, rating: Any, human: bool = False):
        return {
            "instruction": "p",
            "responses": before,
            "next_response": text,
            "rating": rating,
            "is_human_response": human,
        }

    rows = [
        row([], "a", 1),
        row([], "bad", -1),
        row([], "a", 1),
        row(["a"], "neutral", 0),
        row(["a"], "by hand", None, human=True),
        row(["a", "by hand"], "end", "1"),
    ]
    stepwise = read_solutions(write(tmp_path / "steps.jsonl", rows))
    phase = read_solutions(write(tmp_path / "phase.jsonl", [PHASE_ROW]))
    assert {(s.steps, s.labels) for s in stepwise} == {
        (s.steps, s.labels) for s in phase
    }


def test_raters_who_disagree_leave_a_step_unknown():
    tree = StepTree()
    for label in (True, False, True, None):
        tree.add(("a",), label)
    tree.add(("a", "b"), False)
    assert list(tree.branches()) == [(("a", "b"), (None, False))]


def test_the_real_prm800k_file(shared_dir: Path):
    """Counted independently of trees: each rated (problem, steps) pair once."""
    import pyarrow.parquet

    name = "prm800k/phase1_test.stepwise-critic.parquet"
    file = shared_dir / "data/process" / name
    ratings: dict[Any, set[int]] = {}
    for row in pyarrow.parquet.read_table(file).to_pylist():
        key = (row["instruction"], *row["responses"], row["next_response"])
        rating = 1 if row["is_human_response"] else row["rating"]
        if rating is not None:
            ratings.setdefault(key, set()).add(int(rating) >= 0)
    certain = [next(iter(found)) for found in ratings.values() if len(found) == 1]
    labels = [x for s in read_solutions(str(file)) for x in s.labels if x is not None]
    assert len(labels) == len(certain) > 4_500
    assert sum(labels) == sum(certain)


def test_steps_after_the_first_error_are_kept_or_dropped():
    solutions = [
        LabelledSolution("p", ("a", "b", "c"), (None, False, True)),
        LabelledSolution("p", ("a", "b"), (True, True)),
    ]
    assert prepared(solutions, "keep") == solutions
    dropped = prepared(solutions, "drop")
    assert dropped[0] == LabelledSolution("p", ("a", "b"), (None, False))
    assert dropped[1] == solutions[1]


def test_no_problem_is_trained_on_and_held_out():
    solutions = [LabelledSolution(str(i % 50), ("a",), (True,)) for i in range(200)]
    train, held = split_by_prompt(solutions, 0.3, seed=0)
    prompts = {s.prompt for s in train}, {s.prompt for s in held}
    assert not prompts[0] & prompts[1]
    assert len(train) + len(held) == 200
    assert 5 <= len(prompts[1]) <= 25
    assert split_by_prompt(solutions, 0.0, seed=0)[1] == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "text": "a"}, "must have the columns"),
        ({"prompt": "p", "steps": ["a"], "labels": []}, "Row 0"),
        ({"prompt": "p", "steps": ["a"], "labels": ["yes"]}, "Row 0"),
        ({"prompt": "p", "steps": "abc", "labels": [1, 1, 1]}, "Row 0"),
        ({"prompt": "p", "steps": ["a"], "labels": [None]}, "must hold labelled steps"),
    ],
)
def test_bad_rows_are_refused(row: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        read_solutions(write(tmp_path / "bad.jsonl", [row]))


def test_arithmetic_steps_are_labelled_and_hold_errors_of_every_kind():
    solutions = arithmetic_steps(600)
    assert len(solutions) == 600
    kinds = set()
    for s in solutions:
        check = check_steps(s.prompt, s.steps)
        assert s.labels == tuple(check.labels)
        kinds |= set(check.kinds)
    assert kinds >= set(ERROR_KINDS)
    flawed = sum(False in s.labels for s in solutions) / len(solutions)
    assert 0.4 < flawed < 0.8
    assert arithmetic_steps(20) == solutions[:20]


def test_no_arithmetic_solution_is_of_a_held_out_problem():
    assert {split_of(s.prompt) for s in arithmetic_steps(300)} == {"train"}
