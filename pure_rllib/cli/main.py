"""The command line: `pure-rllib train`, `eval`, `verify`, `prm-train`, and others."""

import argparse
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pure_rllib import __version__
from pure_rllib.cli import envs, evaluate, plan, prm_eval, prm_train, verify

if TYPE_CHECKING:
    from pure_rllib.cli.experiment import Experiment
    from pure_rllib.cli.folder import RunFolder

_USER_ERROR = 2
_DESCRIPTION = """\
PURE: reinforcement learning of language models from process rewards, in Ray RLlib.

A policy writes solutions step by step; a process reward model scores every step, and
a response is worth its worst step. Start with the embedded default, which brings its
own task, policy and reward model, and takes minutes on a CPU:

  pure-rllib train arithmetic
"""
_TRAIN = """\
Trains a policy as an experiment says.

An experiment is a YAML file or the name of a tuned example (`pure-rllib list`). Any of
its settings can be changed from here:

  pure-rllib train arithmetic --set training.lr=3e-4 --iterations 20
  pure-rllib train arithmetic --set training.credit_assignment=sum --out runs/sum
  pure-rllib train my_experiment.yaml --set rl_module.model_config.model=path/of/policy

An experiment with search spaces, arms or seeds runs as a Ray Tune sweep. Everything a
run makes goes into one folder: metrics, checkpoints, figures, the rollouts page and
the trained policy. Ctrl-C finishes the iteration and writes a checkpoint; go on with
`pure-rllib train --resume FOLDER`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: words after the program's name; default: those it was started with.

    Returns:
        The exit status: 0, 1 after a failure, 2 for a mistake in what was asked for,
        130 after Ctrl-C.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return options.function(options)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, FileNotFoundError, RuntimeError, FloatingPointError) as error:
        if options.traceback:
            traceback.print_exc()
        # What another process raised has its traceback in its text; the cause has not.
        print(f"error: {getattr(error, 'cause', None) or error}", file=sys.stderr)
        if isinstance(error, ValueError | FileNotFoundError):
            return _USER_ERROR
        # Ours name what went wrong; others are found by their traceback.
        if not options.traceback:
            print("(--traceback shows where)", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pure-rllib",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"pure-rllib {__version__}"
    )
    parser.set_defaults(traceback=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a policy, or run a sweep",
        description=_TRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.set_defaults(function=_train)
    train.add_argument(
        "experiment", nargs="?", metavar="FILE|NAME", help="YAML file or tuned example"
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a setting; can be given several times",
    )
    train.add_argument(
        "--out", metavar="DIR", help="folder of the run (default: runs/NAME/TIME)"
    )
    train.add_argument(
        "--resume", metavar="DIR", help="go on with a run, or from a checkpoint of one"
    )
    train.add_argument("--seed", type=int, metavar="N", help="same as debugging.seed=N")
    train.add_argument(
        "--iterations", type=int, metavar="N", help="same as stop.training_iteration=N"
    )
    train.add_argument(
        "--verbose", action="store_true", help="show what Ray's processes write"
    )
    for module in (evaluate, verify, prm_train, prm_eval, envs, plan):
        module.add_command(commands)
    for name in ("train", "eval", "verify", "prm-eval", "envs", "plan"):
        commands.choices[name].add_argument(
            "--traceback", action="store_true", help="show tracebacks of errors"
        )
    listing = commands.add_parser("list", help="list the tuned examples")
    listing.set_defaults(function=_list)
    return parser


def _train(options: argparse.Namespace) -> int:
    if options.experiment is None and options.resume is None:
        raise ValueError(
            "`FILE|NAME` must be given, or --resume DIR. `pure-rllib list` shows the "
            "tuned examples; the first to try is `pure-rllib train arithmetic`."
        )
    if options.out is not None and options.resume is not None:
        raise ValueError(
            f"`--out` ({options.out}) has no effect with --resume, because a run stays "
            "in its folder. Leave it out."
        )
    # Heavy libraries read these when they are imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors without a GPU of their own must not see any; said now, Ray does not warn.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from pure_rllib.cli.experiment import load_experiment
    from pure_rllib.cli.folder import new_folder, open_folder

    checkpoint = None
    if options.resume is None:
        experiment = _changed(load_experiment(options.experiment), options)
        folder = new_folder(options.out, experiment.name)
    else:
        folder, checkpoint = open_folder(options.resume)
        experiment = _resumed(folder, options)

    # Not before: this takes seconds.
    from pure_rllib.cli.sweep import Sweep
    from pure_rllib.cli.train import Run, quiet

    if not options.verbose:
        quiet()
    if experiment.is_sweep:
        is_resumed = options.resume is not None
        return Sweep(experiment, folder, is_resumed, options.verbose).run()
    return Run(experiment, folder, checkpoint, options.verbose).run()


def _changed(experiment: "Experiment", options: argparse.Namespace) -> "Experiment":
    return experiment.with_overrides(
        options.set, seed=options.seed, iterations=options.iterations
    )


def _resumed(folder: "RunFolder", options: argparse.Namespace) -> "Experiment":
    """Returns the experiment of a run that goes on, if it is still the same."""
    from pure_rllib.cli.experiment import load_experiment
    from pure_rllib.cli.folder import check_unchanged, stored_experiment

    stored = stored_experiment(folder)
    given = load_experiment(options.experiment) if options.experiment else stored
    experiment = _changed(given, options)
    check_unchanged(stored, experiment, folder)
    if options.experiment and options.iterations is None:
        # The file's own end of the run; that of an option before may be later.
        last = max(experiment.num_iterations, stored.num_iterations)
        experiment = experiment.with_overrides(iterations=last)
    return experiment


def _list(options: argparse.Namespace) -> int:
    from pure_rllib.cli.experiment import EXAMPLES, read_outline

    examples = dict(read_outline(path) for path in sorted(EXAMPLES.glob("*.yaml")))
    width = max(map(len, examples))
    for example, spec in examples.items():
        text = " ".join(str(spec.get("description", "")).split())
        name, indent = f"{example:<{width}}  ", " " * (width + 2)
        print(textwrap.fill(text, 88, initial_indent=name, subsequent_indent=indent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
