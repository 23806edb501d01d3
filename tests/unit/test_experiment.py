"""Experiments from YAML text and options; nothing is trained and Ray is not started."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pure_rllib.cli.experiment import Experiment, load_experiment
from pure_rllib.cli.search import check_sweep, make_scheduler, param_space
from pure_rllib.cli.study import Trial, reached, study_table

TINY = """
tiny:
  run: PURE
  stop: {training_iteration: 2}
  config:
    environment:
      env: pure_rllib/Arithmetic-v0
      env_config: {process_rewards: exact}
    env_runners: {group_size: 4}
    training: {lr: 5e-7}
"""


def read(tmp_path: Path, text: str = TINY, *options: str) -> Experiment:
    """Loads a text as a file, with `--set` options."""
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    return load_experiment(path).with_overrides(options)


def test_a_file_calls_the_setters(tmp_path: Path) -> None:
    config = read(tmp_path).build_config()
    assert (config.env, config.group_size) == ("pure_rllib/Arithmetic-v0", 4)
    assert config.env_config["process_rewards"] == "exact"


@pytest.mark.parametrize("number", ["5e-7", "5.0e-7", "0.0000005", "+5E-7"])
def test_a_number_is_a_number_however_it_is_written(
    tmp_path: Path, number: str
) -> None:
    text = TINY.replace("5e-7", number)
    assert read(tmp_path, text).build_config().lr == 5e-7
    assert read(tmp_path, TINY, f"training.lr={number}").build_config().lr == 5e-7


def test_options_reach_every_depth(tmp_path: Path) -> None:
    experiment = read(
        tmp_path,
        TINY,
        "environment.env_config.task=y",
        "rl_module.model_config.model={model_type: qwen2, vocab_size: 32}",
        "stop.training_iteration=7",
        "checkpoint.every=3",
    )
    config = experiment.build_config()
    assert config.env_config == {"process_rewards": "exact", "task": "y"}
    assert config.model_config["model"] == {"model_type": "qwen2", "vocab_size": 32}
    assert experiment.num_iterations == 7
    assert experiment.option("checkpoint", "every") == 3
    assert experiment.option("checkpoint", "keep") == 2


def test_seed_and_iterations_have_options_of_their_own(tmp_path: Path) -> None:
    experiment = read(tmp_path).with_overrides(seed=3, iterations=9)
    assert experiment.build_config().seed == 3
    assert experiment.num_iterations == 9
    study = read(tmp_path, TINY + "  seeds: [0, 1]\n").with_overrides(seed=3)
    assert study.seeds == [3]


def test_an_experiment_survives_its_own_file(tmp_path: Path) -> None:
    experiment = read(tmp_path, TINY, "training.lr=1e-3")
    again = tmp_path / "again.yaml"
    again.write_text(experiment.to_yaml())
    assert load_experiment(again).spec == experiment.spec


def broken(section: str, replacement: str) -> str:
    """The tiny experiment with one line changed."""
    assert section in TINY
    return TINY.replace(section, replacement)


BAD: dict[str, tuple[str, list[str]]] = {
    "section": (broken("training:", "trainning:"), ["`trainning`", "`training`"]),
    "key": (
        broken("group_size: 4", "grop_size: 4"),
        ["`grop_size`", "`env_runners`", "`group_size`"],
    ),
    "key of another section": (
        broken("lr: 5e-7", "group_size: 4"),
        ["`group_size`", "belongs to section `env_runners`"],
    ),
    "key of env_config": (
        broken("process_rewards: exact", "proces_rewards: exact"),
        ["`proces_rewards`", "`environment.env_config`", "`process_rewards`"],
    ),
    "environment": (
        broken("Arithmetic-v0", "Aritmetic-v0"),
        ["Aritmetic-v0", "`pure_rllib/Arithmetic-v0`"],
    ),
    "top-level key": (TINY + "  chekpoint: {}\n", ["`chekpoint`", "`checkpoint`"]),
    "key of ours": (
        TINY + "  checkpoint: {evry: 3}\n",
        ["`evry`", "`checkpoint`", "`every`"],
    ),
    "metric": (
        broken("{training_iteration: 2}", "{training_iteration: 2, acuracy: 1}"),
        ["`acuracy`", "`accuracy`"],
    ),
    "no end": (broken("{training_iteration: 2}", "{accuracy: 0.9}"), ["must end"]),
    "algorithm": (broken("run: PURE", "run: PPO"), ["`run` (PPO)"]),
    "text for a number": (broken("lr: 5e-7", "lr: fast"), ["training.lr", "'fast'"]),
    "number for a text": (
        broken("lr: 5e-7", "baseline: 3"),
        ["training.baseline", "(3)"],
    ),
    "fraction for a count": (
        broken("group_size: 4", "group_size: 4.5"),
        ["env_runners.group_size", "4.5"],
    ),
    "key given twice": (
        broken("{lr: 5e-7}", "{lr: 5e-7, lr: 1e-3}"),
        ["`lr`", "must stand once"],
    ),
    "group of one": (broken("group_size: 4", "group_size: 1"), ["group_size` (1)"]),
    "credit temperature": (
        broken("lr: 5e-7", "credit_temperature: 0"),
        ["credit_temperature` (0)"],
    ),
    "both coefficients 0": (
        broken("lr: 5e-7", "process_reward_coeff: 0, verifiable_reward_coeff: 0"),
        ["`process_reward_coeff`", "`verifiable_reward_coeff`"],
    ),
    "without effect": (
        broken("lr: 5e-7", "train_batch_size: 32"),
        ["training.train_batch_size", "env_runners.num_prompts"],
    ),
    "broken search space": (
        broken("lr: 5e-7", "lr: {loguniform: [1e-3, 1e-5]}"),
        ["training.lr", "low < high"],
    ),
    "not YAML": ("tiny: [", ["must be YAML"]),
    "two experiments": (TINY + "\nother: {}\n", ["one experiment"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    with pytest.raises(ValueError) as raised:
        experiment = read(tmp_path, text)
        check_sweep(experiment) if experiment.is_sweep else experiment.build_config()
    message = str(raised.value)
    assert "tiny.yaml" in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("training.lr", ["section.key=value"]),
        ("trainig.lr=1", ["`trainig`", "`training`"]),
        ("training.lrr=1", ["`lrr`", "`lr`", "with --set"]),
        ("training.lr=fast", ["training.lr", "'fast'"]),
        ("training.lr=[", ["must be YAML"]),
        ("stop.acuracy=1", ["`acuracy`", "`accuracy`"]),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, option: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as raised:
        read(tmp_path, TINY, option).build_config()
    assert [word for word in words if word not in str(raised.value)] == []


def test_an_unknown_example_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="did you mean `arithmetic`"):
        load_experiment("aritmetic")


def test_changes_name_old_and_new(tmp_path: Path) -> None:
    old = read(tmp_path)
    new = old.with_overrides(["training.lr=1e-3", "env_runners.top_p=0.9"])
    assert old.changes(new) == [
        "training.lr: 5e-07 -> 0.001",
        "env_runners.top_p: not set -> 0.9",
    ]
    assert old.changes(old.with_overrides(iterations=50)) == []


def test_search_spaces_become_those_of_tune(tmp_path: Path) -> None:
    from ray.tune.search.sample import Categorical, Float

    text = TINY.replace(
        "training: {lr: 5e-7}",
        "training:\n"
        "      lr: {loguniform: [1e-5, 1e-3]}\n"
        "      baseline: {grid_search: [token, response]}\n"
        "      gamma: {uniform: [1.0, 1.5]}\n"
        "      clip_param: {choice: [0.1, 0.2]}",
    ).replace("process_rewards: exact", "task: {grid_search: [z, y]}")
    experiment = read(tmp_path, text)
    assert experiment.is_sweep
    space = param_space(experiment)
    assert space["baseline"] == {"grid_search": ["token", "response"]}
    assert space["env_config"]["task"] == {"grid_search": ["z", "y"]}
    assert isinstance(space["lr"], Float) and isinstance(space["gamma"], Float)
    assert isinstance(space["clip_param"], Categorical)


def test_a_value_of_a_grid_that_cannot_work_is_found_before_anything_runs(
    tmp_path: Path,
) -> None:
    text = broken("lr: 5e-7", "baseline: {grid_search: [token, tokn]}")
    with pytest.raises(ValueError, match="tokn"):
        check_sweep(read(tmp_path, text))


ARMS = TINY + (
    "  arms:\n"
    "    process: {}\n"
    "    verifiable:\n"
    "      environment: {env_config: {process_rewards: none}}\n"
    "      training: {preset: paper, process_reward_coeff: 0.0}\n"
    "  seeds: [0, 1]\n"
)


def test_arms_are_whole_configurations(tmp_path: Path) -> None:
    from ray.tune.search.variant_generator import generate_variants

    space = param_space(read(tmp_path, ARMS))
    trials = [config for _, config in generate_variants(space)]
    found = [
        (
            t["arm"],
            t["seed"],
            t["process_reward_coeff"],
            t["baseline"],
            t["env_config"]["process_rewards"],
        )
        for t in trials
    ]
    assert sorted(found) == [
        ("process", 0, 1.0, "token", "exact"),
        ("process", 1, 1.0, "token", "exact"),
        # The preset's baseline comes with it.
        ("verifiable", 0, 0.0, "length", "none"),
        ("verifiable", 1, 0.0, "length", "none"),
    ]


def test_an_arm_is_checked_like_the_rest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="proces_reward_coeff"):
        check_sweep(read(tmp_path, ARMS.replace("process_reward_", "proces_reward_")))
    mixed = broken("lr: 5e-7", "lr: {choice: [1e-3]}") + "  arms: {a: {}}\n"
    with pytest.raises(ValueError, match="must not be a search space"):
        check_sweep(read(tmp_path, mixed))


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("{type: ASHA, grace_period: 1}", "AsyncHyperBandScheduler"),
        (
            "{type: PBT, hyperparam_mutations: "
            "{training.lr: {loguniform: [1e-5, 1e-3]}}}",
            "PopulationBasedTraining",
        ),
    ],
)
def test_schedulers_are_made(tmp_path: Path, scheduler: str, expected: str) -> None:
    text = f"{TINY}  metric: accuracy\n  mode: max\n  scheduler: {scheduler}\n"
    assert type(make_scheduler(read(tmp_path, text))).__name__ == expected


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("  scheduler: {type: AHSA}\n", "AHSA"),
        ("  scheduler: {type: ASHA}\n", "`metric`"),
        ("  metric: accuracy\n  scheduler: {type: ASHA, grace: 1}\n", "`grace`"),
    ],
)
def test_a_wrong_scheduler_is_named(tmp_path: Path, lines: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_scheduler(read(tmp_path, TINY + lines))


def rows(*accuracies: float) -> list[dict[str, Any]]:
    return [
        {"training_iteration": i, "accuracy": a}
        for i, a in enumerate(accuracies, start=1)
    ]


def test_a_level_is_reached_by_the_mean_of_a_window() -> None:
    # Means of 2: .1, .3, .5, .35; the single .5 at iteration 3 does not count.
    series = rows(0.0, 0.2, 0.4, 0.6, 0.1)
    assert reached(series, "accuracy", 0.3, 2) == 3
    assert reached(series, "accuracy", 0.5, 2) == 4
    assert reached(series, "accuracy", 0.6, 2) is None
    assert reached(rows(), "accuracy", 0.1, 5) is None


def test_the_table_has_a_row_per_trial_and_a_median_per_arm() -> None:
    trials = [
        Trial({"arm": arm, "seed": seed}, rows(0.0, last), None, "")
        for arm, lasts in (("a", (0.2, 0.6, 0.4)), ("b", (0.9, 0.1, 0.0)))
        for seed, last in enumerate(lasts)
    ]
    table = study_table(trials, {"levels": [0.3], "window": 1})
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["arm", "seed", "iterations", "accuracy", "to", "0.3"]
    assert lines[2] == ["a", "0", "2", "0.200", "-"]
    assert lines[8] == ["a", "median", "2", "0.400", "2"]
    # Two of three never reach the level: nor does the median.
    assert lines[9] == ["b", "median", "2", "0.100", "-"]


def test_yaml_of_an_experiment_is_plain(tmp_path: Path) -> None:
    assert yaml.safe_load(read(tmp_path).to_yaml())["tiny"]["run"] == "PURE"
