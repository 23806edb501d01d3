"""Experiments: tuned-example YAML files and `--set` options -> a config to run.

A file holds one experiment in RLlib's classic outline, keyed by setter name:

    my-run:
      run: PURE
      stop: {training_iteration: 60}
      config:
        environment: {env: pure_rllib/Arithmetic-v0, env_config: {task: z}}
        training: {lr: 6e-4, credit_assignment: min}

Nothing in it is ignored: a key that nobody knows is an error that names the file, the
section, the key and the nearest known name.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import Field, FiniteFloat

from pure_rllib.cli.settings import (
    SECTIONS,
    check_known,
    flatten,
    is_search_space,
    make_config,
    naming,
    nearest,
    put,
    search_spaces,
)
from pure_rllib.reporting.metrics import FAMILIES, METRICS
from pure_rllib.setting_types import Count, Why, check_setting

if TYPE_CHECKING:
    from pure_rllib.algorithms import LLMConfig

EXAMPLES = Path(__file__).parents[1] / "tuned_examples"
_KEYS = {
    "checkpoint": ("every", "keep"),
    "report": ("rollouts_every", "max_groups", "figure", "reach"),
    "ray": ("num_cpus", "num_gpus", "object_store_memory", "address"),
}
"""Top-level sections with a fixed set of keys of their own."""
_MAPPINGS = ("stop", "config", "arms", "wandb", "scheduler", *_KEYS)
OUTLINE: tuple[str, ...] = ("run", "env", "stop", "config", "description")
OUTLINE += ("num_samples", "metric", "mode", "scheduler", "max_concurrent")
OUTLINE += ("arms", "seeds", "wandb", *_KEYS)
DEFAULTS = {
    "checkpoint.every": 10,
    "checkpoint.keep": 2,
    "report.rollouts_every": 10,
    "report.max_groups": 8,
}
BOOKKEEPING = ("training_iteration", "time_total_s", "num_env_steps_sampled_lifetime")
"""RLlib's own numbers that are logged, and can end a run, beside our metrics."""
REQUIRED = "REQUIRED:"
"""A text that starts so stands for a setting that the user must give."""
_COUNTS = ("num_samples", "max_concurrent", *DEFAULTS)
_LAST = Annotated[
    int,
    Field(ge=1),
    Why("because every run must end; set `stop: {training_iteration: 60}`"),
]
_NO_CHANGE = ("stop", "description")


@dataclass(frozen=True)
class Experiment:
    """One experiment, as it was read and after `--set` options.

    Attributes:
        name: names the run.
        source: the file, for messages.
        spec: the outline below the name; plain YAML data.
    """

    name: str
    source: str
    spec: dict[str, Any]

    @property
    def run(self) -> str:
        """The algorithm's name."""
        return self.spec["run"]

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """Setter name -> its arguments."""
        return self.spec["config"]

    @property
    def stop(self) -> dict[str, float]:
        """Metric -> the value at which the run is over."""
        return self.spec["stop"]

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """Label -> settings that differ from `config`, and maybe `run`."""
        return self.spec.get("arms") or {}

    @property
    def seeds(self) -> list[int]:
        """Seeds that every arm is run with; empty if only the config's."""
        return self.spec.get("seeds") or []

    @property
    def num_iterations(self) -> int:
        """The last iteration, if no other stop criterion is met before."""
        return int(self.stop["training_iteration"])

    def option(self, section: str, key: str) -> Any:
        """Returns a setting of `checkpoint` or `report`, or its default."""
        default = DEFAULTS.get(f"{section}.{key}")
        return self.spec.get(section, {}).get(key, default)

    @property
    def is_sweep(self) -> bool:
        """Whether there is more than one trial to run."""
        several = self.spec.get("num_samples", 1) > 1
        return bool(self.arms or self.seeds or search_spaces(self.config) or several)

    def settings(self, arm: str | None = None) -> dict[str, dict[str, Any]]:
        """Returns `config` with the settings of an arm over it.

        Those within `env_config` and `model_config` are set one by one.
        """
        settings = copy.deepcopy(self.config)
        for section, values in (self.arms[arm] if arm is not None else {}).items():
            if section == "run":
                continue
            merged = settings.setdefault(section, {})
            for key, value in copy.deepcopy(values).items():
                old = merged.get(key)
                is_nested = key in ("env_config", "model_config")
                is_plain = isinstance(value, dict) and not is_search_space(value)
                if is_nested and is_plain and isinstance(old, dict):
                    old.update(value)
                else:
                    merged[key] = value
        return settings

    def run_of(self, arm: str | None) -> str:
        """Returns the name of the algorithm that an arm trains with."""
        run: str = self.run if arm is None else self.arms[arm].get("run", self.run)
        return run

    def arm_config(self, arm: str | None) -> "LLMConfig":
        """Returns the config of an arm; see `build_config`."""
        return self.build_config(self.settings(arm), run=self.run_of(arm))

    def build_config(
        self,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        run: str | None = None,
        validate: bool = True,
    ) -> "LLMConfig":
        """Calls the setters.

        Args:
            settings: setter name -> arguments; default: this experiment's `config`.
            run: name of the algorithm; default: this experiment's.
            validate: also check values against each other.

        Raises:
            ValueError: a key is unknown, a value has the wrong type, a required setting
                is missing, or a combination cannot work.
        """
        settings = self.config if settings is None else settings
        with naming(self.source):
            _check_required(settings)
            return make_config(run or self.run, settings, validate=validate)

    def with_overrides(
        self,
        options: Sequence[str] = (),
        *,
        seed: int | None = None,
        iterations: int | None = None,
    ) -> "Experiment":
        """Returns the experiment with `--set`, `--seed` and `--iterations` applied.

        Raises:
            ValueError: an option is not `section.key=value`, or names nothing known.
        """
        spec = copy.deepcopy(self.spec)
        for option in options:
            _apply(spec, option)
        if seed is not None:
            if spec.get("seeds"):
                spec["seeds"] = [seed]
            else:
                put(spec["config"], ["debugging", "seed"], seed)
        if iterations is not None:
            spec["stop"]["training_iteration"] = iterations
        source = f"{self.source} with --set" if options else self.source
        return _checked(self.name, source, spec)

    def to_yaml(self) -> str:
        """Returns the experiment as a file that `load_experiment` reads."""
        return yaml.safe_dump({self.name: self.spec}, sort_keys=False)

    def changes(self, other: "Experiment") -> list[str]:
        """Lists what is set otherwise in another experiment: `key: old -> new`.

        `stop` and `description` are left out: they do not change what a run computes.
        """
        old, new = (
            {
                key.removeprefix("config."): value
                for key, value in flatten(experiment.spec).items()
                if key.partition(".")[0] not in _NO_CHANGE
            }
            for experiment in (self, other)
        )

        def shown(settings: Mapping[str, Any], key: str) -> str:
            return repr(settings[key]) if key in settings else "not set"

        return [
            f"{key}: {shown(old, key)} -> {shown(new, key)}"
            for key in {**old, **new}
            if key not in old or key not in new or old[key] != new[key]
        ]


def load_experiment(file_or_name: str | Path) -> Experiment:
    """Reads an experiment from a YAML file, or a tuned example by its name.

    Raises:
        FileNotFoundError: there is no such file or example.
        ValueError: the file is not an experiment; the message names the key.
    """
    path = _find(file_or_name)
    name, spec = read_outline(path)
    return _checked(name, path.name, spec)


def read_outline(path: Path) -> tuple[str, Any]:
    """Reads a YAML file that holds one thing by its name.

    Raises:
        ValueError: it is no YAML, or holds several things.
    """
    try:
        outline = yaml.load(path.read_text(encoding="utf-8"), SettingsLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must be YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(outline, dict) or len(outline) != 1:
        found = list(outline) if isinstance(outline, dict) else type(outline).__name__
        raise ValueError(
            f"{path} ({found}) must hold one experiment, `name: {{run: PURE, ...}}`. "
            "Put every experiment in a file of its own."
        )
    ((name, spec),) = outline.items()
    return str(name), spec


def _find(file_or_name: str | Path) -> Path:
    """Returns the path of a file, or of the tuned example of that name."""
    path = Path(file_or_name)
    if path.is_file():
        return path
    example = EXAMPLES / f"{file_or_name}.yaml"
    if path.suffix not in (".yaml", ".yml") and example.is_file():
        return example
    names = [p.stem for p in EXAMPLES.glob("*.yaml")]
    raise FileNotFoundError(
        f"`{file_or_name}` must be a YAML file or a tuned example, and is neither"
        f"{nearest(str(file_or_name), names)} `pure-rllib list` shows the examples."
    )


class SettingsLoader(yaml.SafeLoader):
    """Safe YAML that reads `5e-7` as a number and refuses a key given twice."""


def _mapping(loader: SettingsLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            raise ValueError(
                f"`{key}` must stand once in its section, because the second would "
                f"silently replace the first; line {node.start_mark.line + index + 1}."
            )
    return loader.construct_mapping(node, deep=True)


SettingsLoader.add_constructor("tag:yaml.org,2002:map", _mapping)
SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_setting(option: str) -> tuple[list[str], Any]:
    """Reads one `section.key=value`: its path and its value.

    Raises:
        ValueError: it has another form.
    """
    path, equals, text = option.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise ValueError(
            f"`--set {option}` must be section.key=value, such as "
            "--set training.lr=1e-4."
        )
    try:
        return names, yaml.load(text, SettingsLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"`--set {option}`: {text!r} must be YAML: {error}") from error


def _apply(spec: dict[str, Any], option: str) -> None:
    """Applies one `section.key=value`."""
    names, value = read_setting(option)
    own = [key for key in OUTLINE if key not in ("config", "run", "env")]
    section, *keys = names[1:] if names[0] == "config" and len(names) > 1 else names
    if section in SECTIONS and keys:
        put(spec["config"], [section, *keys], value)
    elif section in own:
        put(spec, [section, *keys], value)
    else:
        known = [*SECTIONS, *own]
        raise ValueError(
            f"`--set {option}`: unknown section `{section}`{nearest(section, known)} "
            f"It may be one of {', '.join(known)}, followed by `.key=value`."
        )


def _checked(name: str, source: str, spec: Any) -> Experiment:
    """Makes an experiment of an outline; the setters check the sections of `config`."""
    with naming(source):
        check_setting(name, spec, dict)
        if spec.get("run") == "EVAL":
            raise ValueError(
                "`run` (EVAL) must name an algorithm, because this trains. Evaluate "
                f"with `pure-rllib eval {Path(source).stem}`."
            )
        hint = f"It may be one of {', '.join(OUTLINE)}."
        check_known(spec, OUTLINE, "key `{}` beside `run`, `stop` and `config`", hint)
        for section in _MAPPINGS:
            values, known = spec.get(section, {}), _KEYS.get(section)
            check_setting(section, values, dict)
            if known is not None:
                hint = f"It may hold {', '.join(known)}."
                check_known(values, known, f"key `{{}}` in section `{section}`", hint)
        spec = {"run": "PURE", "stop": {}, "config": {}, **spec}
        if "env" in spec:
            environment = spec["config"].setdefault("environment", {})
            environment.setdefault("env", spec.pop("env"))
        arms = {f"arms.{arm}": values for arm, values in spec.get("arms", {}).items()}
        for section, values in {**spec["config"], **arms}.items():
            check_setting(section, values, dict)
        _check_numbers(spec)
    return Experiment(name, source, spec)


def _check_numbers(spec: Mapping[str, Any]) -> None:
    for key in _COUNTS:
        section, _, name = key.rpartition(".")
        check_setting(
            key, (spec.get(section, {}) if section else spec).get(name, 1), Count
        )
    check_setting("seeds", spec.get("seeds", []), list[int])
    stop = spec["stop"]
    hint = "docs/metrics.md lists the metrics."
    named = [key for key in stop if not str(key).startswith(FAMILIES)]
    check_known(named, [*BOOKKEEPING, *METRICS], "metric `{}` in section `stop`", hint)
    for key, value in stop.items():
        check_setting(f"stop.{key}", value, FiniteFloat)
    check_setting("stop.training_iteration", stop.get("training_iteration"), _LAST)


def _check_required(settings: Mapping[str, Any]) -> None:
    missing = {
        key: value.removeprefix(REQUIRED).strip()
        for key, value in flatten(settings).items()
        if isinstance(value, str) and value.startswith(REQUIRED)
    }
    if missing:
        wanted = "; ".join(f"`{key}` ({hint})" for key, hint in missing.items())
        options = " ".join(f"--set {key}=..." for key in missing)
        raise ValueError(
            f"{wanted} must be given, because the package brings no such file. "
            f"Add {options}"
        )
