"""Every tuned example loads, builds a configuration and passes its checks."""

import argparse
import re
from pathlib import Path

import pytest

from pure_rllib.cli.evaluate import add_command, asked_for
from pure_rllib.cli.experiment import (
    EXAMPLES,
    REQUIRED,
    Experiment,
    load_experiment,
    read_outline,
)
from pure_rllib.cli.search import check_sweep, param_space
from pure_rllib.cli.settings import flatten
from pure_rllib.evaluation.benchmarks import CARDS
from pure_rllib.evaluation.settings import (
    JudgeSettings,
    PolicySettings,
    SamplingSettings,
    settings_of,
)

EVALUATIONS = sorted(EXAMPLES.glob("eval_*.yaml"))
FILES = sorted(set(EXAMPLES.glob("*.yaml")) - set(EVALUATIONS))


def with_required(experiment: Experiment) -> Experiment:
    """Gives every setting that the user must give."""
    missing = [
        key
        for key, value in flatten(experiment.config).items()
        if isinstance(value, str) and value.startswith(REQUIRED)
    ]
    return experiment.with_overrides([f"{key}=given" for key in missing])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_example_builds_and_says_what_to_expect(path: Path) -> None:
    experiment = with_required(load_experiment(path))
    if experiment.is_sweep:
        assert check_sweep(experiment)
        assert param_space(experiment)["env"].startswith("pure_rllib/")
    else:
        assert experiment.build_config().env.startswith("pure_rllib/")
    assert experiment.name == path.stem
    assert experiment.spec["description"].endswith(".")
    assert path.read_text().startswith("# Expect: ")


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_evaluation_has_settings_that_fit(path: Path, tmp_path: Path) -> None:
    name, spec = read_outline(path)
    assert name == path.stem and spec["description"].endswith(".")
    assert path.read_text().startswith("# Expect: ")
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    asked, _ = asked_for(parser.parse_args(["eval", name]))
    settings_of(PolicySettings, "policy", asked["policy"])
    settings_of(SamplingSettings, "sampling", asked["sampling"])
    if "judge" in asked:
        settings_of(JudgeSettings, "judge", asked["judge"])
    assert set(asked.get("benchmarks", [])) <= set(CARDS)
    with pytest.raises(ValueError, match=f"pure-rllib eval {name}"):
        load_experiment(name)


def test_a_file_that_must_be_given_is_named_with_its_option() -> None:
    with pytest.raises(ValueError) as raised:
        load_experiment("math_prompts").build_config()
    options = set(re.findall(r"--set (\S+)=", str(raised.value)))
    assert options == {
        "environment.env_config.problems",
        "environment.env_config.tokenizer",
    }


def test_the_published_variants_differ_as_published() -> None:
    openrlhf, verl = (
        with_required(
            load_experiment(f"pure_prm_vr_qwen2_5_math_7b{suffix}")
        ).build_config()
        for suffix in ("", "_verl")
    )
    assert (openrlhf.temperature, verl.temperature) == (0.5, 1.0)
    assert (openrlhf.group_size, verl.group_size) == (4, 8)
    assert (openrlhf.lr, verl.lr) == (5e-7, 1e-6)
    assert (openrlhf.mask_separators, verl.mask_separators) == (True, False)
