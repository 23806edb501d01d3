"""`pure-rllib eval`: how good a policy is, and whether it reasons."""

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pure_rllib.evaluation.benchmarks import Benchmark

Spec = dict[str, Any]

DESCRIPTION = """\
Asks a policy mathematics problems and says how many it solves, greedily and by several
samples (avg@n, pass@k, maj@k), with intervals; and with a judge, whether its right
answers have right reasons (CoT-Pass@K).

  pure-rllib eval runs/my_run                      the run's own held-out problems
  pure-rllib eval MODEL --benchmarks aime24,amc23,math500 --data-dir DATA
  pure-rllib eval MODEL --benchmarks paper --set policy.generator=vllm --engines 8
  pure-rllib eval MODEL --problems mine.jsonl --judge prm:FOLDER
  pure-rllib eval eval_arithmetic                  a tuned example, or a YAML file
  pure-rllib eval --resume DIR                     go on with a stopped one
  pure-rllib eval --compare A B                    two evaluations, problem by problem

MODEL is a folder in Hugging Face layout, a hub id or embedded:NAME. --set changes any
setting of the sections policy, sampling and judge: docs/evaluation.md lists them.
"""
_SECTIONS = ("policy", "sampling", "judge")
_KEYS = ("benchmarks", "data_dir", "problems", "env", "env_config", "limit")
_OUTLINE = ("run", "description", *_SECTIONS, *_KEYS)
_RULES = {
    **dict.fromkeys((*_SECTIONS, "env_config"), dict[str, Any]),
    "benchmarks": list[str],
    "problems": list[str | dict[str, Any]],
    "data_dir": str,
    "env": str,
}
"""What is looked into here; the other values are checked where they are used."""


def add_command(commands: Any) -> None:
    """Adds `eval` to the subparsers of the command line."""
    parser = commands.add_parser(
        "eval",
        help="measure a policy on benchmarks",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_run)
    parser.add_argument("policy", nargs="?", metavar="MODEL|RUN|FILE|NAME")
    parser.add_argument(
        "--benchmarks", metavar="A,B", help="known ones, or `paper` for PURE's five"
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="with NAME/test.jsonl (default: the hub)"
    )
    parser.add_argument("--problems", nargs="+", metavar="FILE", help="own files")
    parser.add_argument("--env", metavar="ID", help="an environment's problems")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a setting; can be given several times",
    )
    parser.add_argument("--engines", type=int, metavar="N", help="policy.engines=N")
    parser.add_argument("--samples", type=int, metavar="N", help="sampling.samples=N")
    parser.add_argument("--seed", type=int, metavar="N", help="sampling.seed=N")
    parser.add_argument(
        "--repeat-greedy", action="store_true", help="count greedy responses that vary"
    )
    parser.add_argument("--judge", metavar="KIND", help="checker, prm:NAME or lm:NAME")
    parser.add_argument("--limit", type=int, metavar="N", help="N first problems each")
    parser.add_argument("--out", metavar="DIR", help="default: evaluations/NAME")
    parser.add_argument("--resume", metavar="DIR", help="go on with a stopped one")
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="[LABEL=]DIR",
        help="finished ones, each with the first; DIR,DIR are seeds of one policy",
    )
    parser.add_argument(
        "--force", action="store_true", help="compare what was asked differently"
    )


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors without a GPU of their own must not see any; said now, Ray does not warn.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.compare:
        return _compare(options)
    spec, out = asked_for(options)
    # Not before: this takes seconds.
    from pure_rllib.cli.train import quiet, say
    from pure_rllib.evaluation.run import evaluate

    quiet()
    benchmarks = benchmarks_of(spec)
    try:
        report = evaluate(
            spec["policy"],
            benchmarks,
            spec.get("sampling"),
            spec.get("judge"),
            out=out,
            limit=spec.get("limit"),
            resume=options.resume is not None,
            command=spec,
        )
    except (KeyboardInterrupt, RuntimeError):
        if (out / "settings.json").is_file():
            say(f"Not finished. To go on:  pure-rllib eval --resume {quote(str(out))}")
        raise
    say(f"\n{report.table()}\n")
    for name, asked in report.figures["settings"]["benchmarks"].items():
        if "trained_in" in spec:
            say(
                f"{name}: {asked['num_training_prompts']} of {asked['num_problems']} "
                "problems are training prompts of the run"
            )
    for warning in report.warnings:
        say(f"warning: {warning}")
    say(
        f"\nfigures                 {out / 'evaluation.json'}\n"
        f"pass@k                  {out / 'pass_at_k.png'}\n"
        f"responses, in a browser {out / 'report.html'}\n"
        f"all samples             {out / 'samples.parquet'}"
    )
    return 0


def asked_for(options: argparse.Namespace) -> tuple[Spec, Path]:
    """Returns what is to be evaluated, as plain data, and the folder of its files."""
    from pure_rllib.setting_types import check_setting

    if options.resume is not None:
        if options.policy is not None or options.out is not None:
            raise ValueError(
                f"`--resume` ({options.resume}) must stand without a policy and --out, "
                "because its folder knows both. Leave them out."
            )
        out = Path(options.resume)
        spec, name = _stored(out), ""
    elif options.policy is None:
        raise ValueError(
            "`MODEL|RUN|FILE|NAME` must be given, or --resume DIR or --compare A B. "
            "The first to try is `pure-rllib eval eval_arithmetic`."
        )
    else:
        spec, name = _named(options.policy)
        out = Path(options.out or _free(Path("evaluations", name)))
    _apply(options, spec)
    for key, rule in _RULES.items():
        if spec.get(key) is not None:
            check_setting(key, spec[key], rule)
    return spec, out


def _free(path: Path) -> Path:
    """The path, or with a number behind where there is something already."""
    number, free = 2, path
    while free.exists():
        free = path.with_name(f"{path.name}.{number}")
        number += 1
    return free


def _stored(folder: Path) -> Spec:
    from pure_rllib.evaluation.run import stored_command

    command = stored_command(folder)
    if command is None:
        raise ValueError(
            f"`--resume` ({folder}) must be an evaluation of this command, and was "
            "made in Python. Go on with evaluate(..., resume=True) there."
        )
    return command


def _named(policy: str) -> tuple[Spec, str]:
    """Reads a YAML file, a tuned example, a run or a model; and the name of it."""
    from pure_rllib.cli.experiment import EXAMPLES

    path, example = Path(policy), EXAMPLES / f"{policy}.yaml"
    if path.suffix in (".yaml", ".yml"):
        return _from_yaml(path)
    if not path.exists() and example.is_file():
        return _from_yaml(example)
    if (path / "experiment.yaml").is_file():
        return _from_run(path), path.resolve().name
    return {"policy": {"model": policy}}, path.name.removeprefix("embedded:")


def _from_yaml(path: Path) -> tuple[Spec, str]:
    from pure_rllib.cli.experiment import read_outline
    from pure_rllib.cli.settings import check_known, naming

    name, spec = read_outline(path)
    with naming(path.name):
        hint = f"It may be one of {', '.join(_OUTLINE)}."
        check_known(spec, _OUTLINE, "key `{}`", hint)
        if spec.get("run") != "EVAL":
            raise ValueError(
                f"`run` ({spec.get('run')}) must be EVAL, because this is an "
                f"evaluation. Train with `pure-rllib train {path.stem}`."
            )
        if "model" not in (spec.get("policy") or {}):
            raise ValueError("`policy.model` (not set) must name the policy.")
    return {k: v for k, v in spec.items() if k not in ("run", "description")}, name


def _from_run(folder: Path) -> Spec:
    """A run's policy, asked as it was trained, and by default what it held out."""
    from pure_rllib.cli.folder import RunFolder, stored_experiment

    policy = folder / "policy"
    if not policy.is_dir():
        raise FileNotFoundError(
            f"`RUN` ({folder}) must have a policy/, because that is evaluated; it has "
            f"none, so go on with `pure-rllib train --resume {folder}` first."
        )
    config = stored_experiment(RunFolder(folder)).config
    environment = config.get("environment", {})
    env_config = dict(environment.get("env_config") or {})
    budget = config.get("env_runners", {}).get("max_response_tokens")
    if budget is not None:
        env_config["max_response_tokens"] = budget
    trained_in = {"env": environment["env"], "env_config": env_config}
    return {"policy": {"model": str(policy)}, "trained_in": trained_in}


def _apply(options: argparse.Namespace, spec: Spec) -> None:
    """Puts the options over what a file, a run or an earlier command said."""
    from pure_rllib.cli.experiment import read_setting
    from pure_rllib.cli.settings import put

    if options.benchmarks is not None:
        spec["benchmarks"] = options.benchmarks.split(",")
    for name in ("data_dir", "problems", "env", "limit"):
        value = getattr(options, name)
        if value is not None:
            spec[name] = value
    if options.judge is not None:
        kind, _, model = options.judge.partition(":")
        spec["judge"] = {"kind": kind, **({"model": model} if model else {})}
    short = {
        "policy.engines": options.engines,
        "sampling.samples": options.samples,
        "sampling.seed": options.seed,
        "sampling.repeat_greedy": options.repeat_greedy or None,
    }
    for name, value in short.items():
        if value is not None:
            put(spec, name.split("."), value)
    for option in options.set:
        path, value = read_setting(option)
        if path[0] not in (*_SECTIONS, *_KEYS):
            raise ValueError(
                f"`--set {option}`: unknown section `{path[0]}`. It may be one of "
                f"{', '.join(_SECTIONS)}, followed by `.key=value`, or one of "
                f"{', '.join(_KEYS)}."
            )
        put(spec, path, value)


def benchmarks_of(spec: Spec) -> list["Benchmark"]:
    """Loads what is asked; a run's template and budget become the settings'."""
    from pure_rllib.evaluation.benchmarks import (
        CARDS,
        PAPER,
        environment_benchmark,
        file_benchmark,
        load_benchmark,
    )

    names = [
        name
        for given in spec.get("benchmarks") or []
        for name in (PAPER if given == "paper" else [given])
    ]
    found = [load_benchmark(name, spec.get("data_dir")) for name in names]
    found += [file_benchmark(source) for source in spec.get("problems") or []]
    if spec.get("env"):
        found.append(environment_benchmark(spec["env"], spec.get("env_config") or {}))
    if "trained_in" in spec:
        own = environment_benchmark(**spec["trained_in"])
        if not found:
            return [own]
        sampling = spec.setdefault("sampling", {})
        if own.template is not None:
            sampling.setdefault("template", asdict(own.template))
        sampling.setdefault("max_response_tokens", own.max_response_tokens)
        return [
            replace(
                one,
                training_prompts=own.training_prompts,
                training_prms=own.training_prms,
            )
            for one in found
        ]
    if not found:
        raise ValueError(
            f"`--benchmarks` (not set) must name {', '.join(CARDS)} or `paper`; or "
            "give --problems FILE or --env ID, because a policy is asked problems."
        )
    return found


def _compare(options: argparse.Namespace) -> int:
    from pure_rllib.evaluation.compare import COMPARISON_FILE, compare

    policies: dict[str, list[str]] = {}
    for given in options.compare:
        label, equals, folders = given.partition("=")
        label, folders = (label, folders) if equals else (Path(given).name, given)
        if label in policies:
            raise ValueError(
                f"`--compare` ({' '.join(options.compare)}) must have different "
                f"labels, and {label} stands twice. Write LABEL=DIR."
            )
        policies[label] = folders.split(",")
    out = Path(options.out or "comparison")
    found, table = compare(policies, out, force=options.force)
    for line in found["unequal_settings"]:
        print(f"warning: asked differently: {line}")
    print(f"{table}\n\nwritten to {out / COMPARISON_FILE} and {out / 'pass_at_k.png'}")
    return 0
