"""`pure-rllib plan`: the memory that an experiment needs, before anything is loaded."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from pure_rllib.cli.envs import make_environment

if TYPE_CHECKING:
    from pure_rllib.algorithms import LLMConfig
    from pure_rllib.algorithms.memory import RunPlan
    from pure_rllib.cli.experiment import Experiment

DESCRIPTION = """\
Works out how much memory an experiment needs on each device: what lies there while the
policy learns, while responses are sampled and while they are scored.

  pure-rllib plan math_1_5b_one_gpu --gpu-gib 40
  pure-rllib plan my_experiment.yaml --set rl_module.model_config.lora.r=16

Of models only their config.json is read. A plan that does not fit comes with settings
that would lower its peak. Training on a GPU in one process starts with the same check.
"""


def add_command(commands: Any) -> None:
    """Adds `plan` to the subparsers of the command line."""
    parser = commands.add_parser(
        "plan",
        help="say how much memory an experiment needs",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_run)
    parser.add_argument(
        "experiment", metavar="FILE|NAME", help="YAML file or tuned example"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a setting; can be given several times",
    )
    parser.add_argument(
        "--gpu-gib",
        type=float,
        default=24.0,
        metavar="N",
        help="memory of one device, of which 5%% are held back (default: 24)",
    )


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from pure_rllib.cli.experiment import load_experiment
    from pure_rllib.models.memory_plan import GIB, USABLE

    if not options.gpu_gib > 0:
        raise ValueError(f"`--gpu-gib` ({options.gpu_gib}) must be > 0.")
    plan = plan_of(load_experiment(options.experiment).with_overrides(options.set))
    room = USABLE * options.gpu_gib * GIB
    print(plan.table())
    print(f"\n{plan.verdict(room)}")
    return 0 if plan.peak[1] <= room else 1


def plan_of(experiment: "Experiment") -> "RunPlan":
    """Returns an experiment's plan; of several arms that of `config` alone.

    What it needs beside models and lengths may be missing yet.

    Raises:
        ValueError: a model, or a length, is not known.
    """
    from pure_rllib.algorithms.memory import RunPlan
    from pure_rllib.cli.settings import make_config, naming

    with naming(experiment.source):
        config = make_config(experiment.run, experiment.settings(), validate=False)
        return RunPlan.of(config, **_lengths(config, experiment))


def _lengths(config: "LLMConfig", experiment: "Experiment") -> dict[str, int]:
    """Returns the limits of prompts and responses; the config is given a model.

    What the file does not say the environment does, which is made for a moment.
    """
    given = config.full_env_config()
    model = config.model_config.get("model")
    names = ("max_prompt_tokens", "max_response_tokens")
    if not all(name in given for name in names) or _is_missing(model):
        experiment.build_config(validate=False)  # says what is missing
        env = make_environment(config.env, given)
        given = {name: getattr(env, name) for name in names}
        if model is None:
            settings = {**config.model_config, "model": env.default_policy}
            config.rl_module(model_config=settings)
        env.close()
    return {name: given[name] for name in names}


def _is_missing(model: Any) -> bool:
    from pure_rllib.cli.experiment import REQUIRED

    return model is None or (isinstance(model, str) and model.startswith(REQUIRED))
