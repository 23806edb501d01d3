"""The parts of a run that need neither Ray's processes nor a model."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pure_rllib.algorithms import PUREConfig
from pure_rllib.cli.experiment import Experiment
from pure_rllib.cli.folder import (
    RunFolder,
    new_folder,
    read_rollouts,
    write_rollouts,
)
from pure_rllib.cli.loggers import (
    RunLoggers,
    check_stop,
    evaluation_of,
    is_reached,
    read_rows,
    row_of,
)
from pure_rllib.cli.train import cpus_of
from pure_rllib.reporting.metrics import METRICS, absent_metrics
from pure_rllib.reporting.records import ResponseRecord


def test_a_row_has_every_metric_and_nothing_else() -> None:
    row = row_of(
        {"reward": {"total": 0.5}, "training_iteration": 3, "timers": {"x": 1}}
    )
    assert row["reward/total"] == 0.5
    assert row["training_iteration"] == 3
    assert math.isnan(row["accuracy"])
    assert set(METRICS) <= set(row) and "timers/x" not in row


def test_rows_and_columns_lack_what_the_run_lacks(tmp_path: Path) -> None:
    absent = absent_metrics(has_step_scorer=False, has_verifier=True)
    logged(tmp_path, [row_of({"training_iteration": i}, absent) for i in range(2)])
    with (tmp_path / "progress.csv").open() as stream:
        columns = set(csv.DictReader(stream).fieldnames or ())
    assert "reward/process_mean" in absent and columns.isdisjoint(absent)
    assert METRICS.keys() - absent <= columns


def test_stop_criteria_may_be_missing_or_nan() -> None:
    stop = {"training_iteration": 5, "evaluation/greedy_accuracy": 0.9}
    assert not is_reached({"training_iteration": 4}, stop)
    assert not is_reached(
        {"training_iteration": 4, "evaluation/greedy_accuracy": math.nan}, stop
    )
    assert is_reached({"training_iteration": 5}, stop)
    nested = {"training_iteration": 1, "evaluation": {"greedy_accuracy": 0.9}}
    assert is_reached(nested, stop)


def logged(folder: Path, rows: list[dict[str, Any]], before: Any = ()) -> None:
    tiny = Experiment("tiny", "tiny.yaml", {"run": "PURE", "config": {}})
    loggers = RunLoggers(tiny, folder, before)
    for row in rows:
        loggers.write(row)
    loggers.close()


def test_logs_have_late_columns_and_no_row_twice_after_a_resume(tmp_path: Path) -> None:
    first = [row_of({"training_iteration": i, "accuracy": i / 10}) for i in range(4)]
    logged(tmp_path, first)
    # Taken back to iteration 2, as a resume does.
    file = tmp_path / "result.json"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]))
    evaluated = row_of({"training_iteration": 3, "evaluation/greedy_accuracy": 0.5})
    logged(tmp_path, [evaluated], before=read_rows(file))

    with (tmp_path / "progress.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [row["training_iteration"] for row in table] == ["0", "1", "2", "3"]
    assert [row["accuracy"] for row in table] == ["0.0", "0.1", "0.2", "nan"]
    assert table[3]["evaluation/greedy_accuracy"] == "0.5"
    rows = read_rows(file)
    assert [row["training_iteration"] for row in rows] == [0, 1, 2, 3]
    assert evaluation_of(rows[3]) == {"evaluation/greedy_accuracy": 0.5}
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def record(group: str) -> ResponseRecord:
    return ResponseRecord(
        group_id=group,
        prompt="1+1=?",
        answer="2",
        response_text="a\n\nb",
        response_tokens=["a", "\n\n", "b"],
        token_ids=np.array([1, 2, 3]),
        step_spans=np.array([[0, 2], [2, 3]]),
        step_rewards=np.array([0.5, -0.25], dtype=np.float32),
        advantages=np.array([0.1, 0.0, math.nan], dtype=np.float32),
        metadata={"iteration": np.int64(3)},
    )


def test_rollouts_come_back_from_their_file(tmp_path: Path) -> None:
    groups = [[record("0"), record("0")], [record("1")]]
    folder = RunFolder(tmp_path)
    for iteration in (1, 20, 30):
        write_rollouts(groups, folder.rollouts, iteration)
    folder.go_back_to(20)
    found = read_rollouts(folder.rollouts)
    assert list(found) == [1, 20]
    assert [len(group) for group in found[20]] == [2, 1]
    again = found[1][1][0]
    assert again.step_spans == [[0, 2], [2, 3]]
    assert again.step_rewards == [0.5, -0.25]
    assert again.response_tokens == ["a", "\n\n", "b"]
    assert again.metadata == {"iteration": 3}


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for iteration in (5, 10, 15, 100):
        folder.checkpoint(iteration).mkdir(parents=True)
    folder.keep_checkpoints(2)
    assert folder.checkpoints() == [folder.checkpoint(15), folder.checkpoint(100)]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_json_is_written_whole(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).write_json("a.json", {"x": np.float32(0.5), "y": {1}})
    assert json.loads(path.read_text())["x"] == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_run_gets_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = new_folder(None, "tiny").path
    assert first.parent == Path("runs/tiny")
    first.mkdir(parents=True)
    assert new_folder(None, "tiny").path != first


def test_ray_is_started_with_the_cpus_that_a_run_asks_for() -> None:
    config = PUREConfig().env_runners(num_env_runners=2).learners(num_learners=2)
    assert cpus_of(config) == 5
    assert cpus_of(PUREConfig()) == 1


def test_half_a_line_of_a_killed_run_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text('{"training_iteration": 1}\n{"training_itera', encoding="utf-8")
    assert read_rows(file) == [{"training_iteration": 1}]


def test_a_stop_by_what_a_run_never_measures_is_refused() -> None:
    stop = {"training_iteration": 3, "reward/process_mean": 0.5}
    absent = absent_metrics(has_step_scorer=False, has_verifier=True)
    with pytest.raises(ValueError, match=r"`stop\.reward/process_mean` \(0\.5\) must"):
        check_stop(stop, absent, is_evaluated=True)
    held_out = {"evaluation/greedy_accuracy": 0.9}
    with pytest.raises(ValueError, match=r"set `evaluation\.evaluation_interval`"):
        check_stop(held_out, absent, is_evaluated=False)
    check_stop({**held_out, "accuracy": 0.9}, absent, is_evaluated=True)
