"""Experiments from YAML text and options; nothing is trained and Ray is not started."""

import re
from pathlib import Path
from types import SimpleNamespace
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
    assert yaml.safe_load(again.read_text())["tiny"]["run"] == "PURE"
    assert load_experiment(again).spec == experiment.spec


# What is replaced, by what, and words of the message in their order.
IN_A_FILE = [
    ("training:", "trainning:", "`trainning` ... `training`?"),
    (
        "group_size: 4",
        "grop_size: 4",
        "`grop_size` ... `env_runners` ... `group_size`?",
    ),
    ("lr: 5e-7", "group_size: 4", "`group_size` ... belongs to section `env_runners`"),
    (
        "process_rewards: exact",
        "proces_rewards: exact",
        "`proces_rewards` ... `environment.env_config` ... `process_rewards`?",
    ),
    ("Arithmetic", "Aritmetic", "Aritmetic-v0 ... `pure_rllib/Arithmetic-v0`?"),
    ("  run:", "  chekpoint: {}\n  run:", "`chekpoint` ... `checkpoint`?"),
    (
        "  run:",
        "  checkpoint: {evry: 3}\n  run:",
        "`evry` ... `checkpoint` ... `every`?",
    ),
    ("{training_", "{acuracy: 1, training_", "`acuracy` ... `accuracy`?"),
    ("{training_iteration: 2}", "{accuracy: 0.9}", "every run must end"),
    ("run: PURE", "run: PPO", "`run` (PPO) must be one of PURE"),
    ("run: PURE", "run: PUR", "`run` (PUR) ... did you mean `PURE`?"),
    ("lr: 5e-7", "lr: fast", "`training.lr` ('fast') must be a number"),
    ("lr: 5e-7", "baseline: 3", "`training.baseline` (3)"),
    ("group_size: 4", "group_size: 4.5", "`env_runners.group_size` (4.5)"),
    ("{lr: 5e-7}", "{lr: 5e-7, lr: 1e-3}", "`lr` must stand once"),
    ("group_size: 4", "group_size: 1", "`env_runners.group_size` (1)"),
    ("lr: 5e-7", "credit_temperature: 0", "`training.credit_temperature` (0)"),
    (
        "lr: 5e-7",
        "process_reward_coeff: 0, verifiable_reward_coeff: 0",
        "`process_reward_coeff` ... `verifiable_reward_coeff`",
    ),
    (
        "lr: 5e-7",
        "train_batch_size: 32",
        "`training.train_batch_size` ... `env_runners.num_prompts`",
    ),
    ("lr: 5e-7", "lr: {loguniform: [1e-3, 1e-5]}", "`training.lr` ... low < high"),
    ("lr: 5e-7", "baseline: {grid_search: [token, tokn]}", "tokn"),
    (
        "process_rewards: exact",
        "task: {choice: []}",
        "`environment.env_config.task` ... must hold a list",
    ),
    ("tiny:\n", "tiny: [", "must be YAML"),
    ("tiny:\n", "other: {}\ntiny:\n", "one experiment"),
]
IN_AN_OPTION = [
    ("training.lr", "section.key=value"),
    ("trainig.lr=1", "`trainig` ... `training`?"),
    ("training.lrr=1", "with --set ... `lrr` ... `lr`?"),
    ("training.lr=fast", "training.lr ... 'fast'"),
    ("training.lr=[", "must be YAML"),
    ("stop.acuracy=1", "`acuracy` ... `accuracy`?"),
]


def says(error: pytest.ExceptionInfo[ValueError], words: str) -> bool:
    """Whether a message holds words in their order, with anything between them."""
    pattern = ".*".join(re.escape(part) for part in words.split(" ... "))
    return re.search(pattern, str(error.value), re.DOTALL) is not None


@pytest.mark.parametrize(("replaced", "given", "words"), IN_A_FILE)
def test_a_mistake_is_named_with_its_file(
    tmp_path: Path, replaced: str, given: str, words: str
) -> None:
    assert replaced in TINY
    with pytest.raises(ValueError, match=r"tiny\.yaml") as raised:
        experiment = read(tmp_path, TINY.replace(replaced, given))
        check_sweep(experiment) if experiment.is_sweep else experiment.build_config()
    assert says(raised, words)


@pytest.mark.parametrize(("option", "words"), IN_AN_OPTION)
def test_a_wrong_option_is_named(tmp_path: Path, option: str, words: str) -> None:
    with pytest.raises(ValueError) as raised:
        read(tmp_path, TINY, option).build_config()
    assert says(raised, words)


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
    names = ("arm", "seed", "process_reward_coeff", "baseline")
    assert sorted(
        (*(t[name] for name in names), t["env_config"]["process_rewards"])
        for t in trials
    ) == [
        ("process", 0, 1.0, "token", "exact"),
        ("process", 1, 1.0, "token", "exact"),
        # The preset's baseline comes with it.
        ("verifiable", 0, 0.0, "length", "none"),
        ("verifiable", 1, 0.0, "length", "none"),
    ]


def test_an_arm_may_name_its_algorithm(tmp_path: Path) -> None:
    text = ARMS + "    grpo: {run: GRPO}\n    back: {run: PURE}\n"
    text = text.replace("  seeds: [0, 1]\n", "") + "  seeds: [0]\n"
    experiment = read(tmp_path, text)
    assert [type(config).__name__ for config in check_sweep(experiment)] == [
        *("PUREConfig", "PUREConfig", "GRPOConfig", "PUREConfig")
    ]
    space = param_space(experiment)
    of_arm = space["run"].func
    assert [of_arm(SimpleNamespace(config={"arm": a})) for a in experiment.arms] == [
        *("PURE", "PURE", "GRPO", "PURE")
    ]
    with pytest.raises(ValueError, match=r"`run` \(GRPPO\) must be one of PURE, GRPO"):
        check_sweep(read(tmp_path, text.replace("GRPO", "GRPPO")))


def test_an_arm_is_checked_like_the_rest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="proces_reward_coeff"):
        check_sweep(read(tmp_path, ARMS.replace("process_reward_", "proces_reward_")))
    mixed = TINY.replace("lr: 5e-7", "lr: {choice: [1e-3]}") + "  arms: {a: {}}\n"
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
