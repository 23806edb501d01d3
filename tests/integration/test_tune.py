"""Sweeps through Ray Tune for real, with a tiny random policy."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray import tune

from pure_rllib.algorithms import PURE
from pure_rllib.cli.loggers import read_rows
from pure_rllib.cli.main import main
from tests.integration.conftest import TINY_EXPERIMENT, make_tiny_config

pytestmark = pytest.mark.slow


def sweep(tmp_path: Path, text: str) -> list[dict]:
    """Runs a sweep from a text; returns `table.json`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    assert main(["train", str(path), "--out", str(tmp_path / "out")]) == 0
    return json.loads((tmp_path / "out" / "table.json").read_text())


def test_arms_of_two_algorithms_print_one_table(tmp_path: Path) -> None:
    arms = """
  arms:
    pure: {}
    grpo:
      run: GRPO
      environment: {env_config: {process_rewards: none}}
"""
    table = sweep(tmp_path, TINY_EXPERIMENT + arms)
    assert [row["settings"]["arm"] for row in table] == ["pure", "grpo"]
    assert [row["iterations"] for row in table] == [2, 2]
    # GRPO takes its KL term by default, PURE has process rewards.
    rows = [read_rows(Path(row["folder"]) / "result.json")[-1] for row in table]
    assert ["reward/process_mean" in row for row in rows] == [True, False]


def test_arms_with_seeds_print_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = """
  arms:
    process: {}
    verifiable:
      environment: {env_config: {process_rewards: none}}
      training: {process_reward_coeff: 0.0}
  seeds: [0, 1]
"""
    table = sweep(tmp_path, TINY_EXPERIMENT + arms)
    assert [row["settings"] for row in table] == [
        {"arm": arm, "seed": seed}
        for arm in ("process", "verifiable")
        for seed in (0, 1)
    ]
    # Arms differ only in what they set. Every response of a random policy is wrong:
    # the exact scorer says -1, the verifier 0.
    rewards = [row["reward"] for row in table]
    assert max(rewards[:2]) < 0 and rewards[2:] == [0, 0]
    assert [row["iterations"] for row in table] == [2] * 4
    printed = capsys.readouterr().out
    assert len(re.findall(r"arm +seed", printed)) == 1
    assert (tmp_path / "out" / "study.png").is_file()
    assert "| process " in (tmp_path / "out" / "table.md").read_text()
    for row in table:
        rows = read_rows(Path(row["folder"]) / "result.json")
        assert rows[-1]["evaluation/greedy_accuracy"] == row["greedy"]
        header = (Path(row["folder"]) / "progress.csv").read_text().splitlines()[0]
        # Measured in the second row only, and a column all the same.
        assert "evaluation/greedy_accuracy" in header.split(",")


@pytest.mark.parametrize(
    ("space", "num_samples", "scheduler"),
    [
        ("grid_search", 1, "{type: ASHA, grace_period: 1, reduction_factor: 2}"),
        (
            "choice",
            2,
            "{type: PBT, perturbation_interval: 2, quantile_fraction: 0.5, "
            "hyperparam_mutations: {training.lr: {loguniform: [1e-4, 1e-2]}}}",
        ),
    ],
)
def test_schedulers_run_trials(
    tmp_path: Path, space: str, num_samples: int, scheduler: str
) -> None:
    text = TINY_EXPERIMENT.replace("lr: 1e-3", f"lr: {{{space}: [1e-2, 1e-4]}}")
    text = text.replace("training_iteration: 2", "training_iteration: 3")
    lines = f"  num_samples: {num_samples}\n  metric: response/tokens\n  mode: min\n"
    table = sweep(tmp_path, f"{text}{lines}  scheduler: {scheduler}\n")
    assert len(table) == 2
    if space == "grid_search":
        settings = [row["settings"] for row in table]
        assert settings == [{"lr": 1e-2}, {"lr": 1e-4}]
    assert max(row["iterations"] for row in table) == 3
    assert all(row["error"] is None for row in table)


@pytest.fixture
def tuner_ray() -> Iterator[None]:
    """Ray with two CPUs."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    # Tune forgets names when Ray is shut down, as the other tests do.
    tune.register_trainable("PURE", PURE)
    yield
    ray.shutdown()


def test_tuner_takes_a_config_of_ours(tmp_path: Path, tuner_ray: None) -> None:
    config = make_tiny_config().env_runners(num_prm_actors=1)
    # A trial has both CPUs: beside it, its PRM actor would wait for ever.
    request = PURE.default_resource_request(config)
    assert request.required_resources == {"CPU": 2.0}
    results = tune.Tuner(
        "PURE",
        param_space=config.training(lr=tune.grid_search([1e-3, 1e-4])),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), stop={"training_iteration": 1}, verbose=0
        ),
    ).fit()
    assert not results.errors
    assert sorted(result.config["lr"] for result in results) == [1e-4, 1e-3]
    for result in results:
        assert result.metrics["reward"]["total"] <= 0
        assert result.metrics["reward"]["process_min"] < 0
        assert result.metrics["prm"]["retries"] == 0
