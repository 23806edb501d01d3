"""Experiments: tuned-example YAML files and `--set` options -> a `PUREConfig`.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pure_rllib.cli.outline import (
    OUTLINE_DEFAULTS,
    OUTLINE_KEYS,
    check_outline,
)
from pure_rllib.cli.section_names import SECTIONS
from pure_rllib.cli.yaml_text import (
    REQUIRED,
    SettingsLoader,
    flatten,
    is_search_space,
    merge,
    nearest,
    search_spaces,
)

if TYPE_CHECKING:
    from pure_rllib.algorithms import PUREConfig

EXAMPLES = Path(__file__).parents[1] / "tuned_examples"
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
    def config(self) -> dict[str, dict[str, Any]]:
        """Setter name -> its arguments."""
        return self.spec["config"]

    @property
    def stop(self) -> dict[str, float]:
        """Metric -> the value at which the run is over."""
        return self.spec["stop"]

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """Label -> settings that differ from `config`; empty without arms."""
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
        return {**OUTLINE_DEFAULTS[section], **self.spec.get(section, {})}[key]

    @property
    def is_sweep(self) -> bool:
        """Whether there is more than one trial to run."""
        has_space = any(True for _ in search_spaces(self.config))
        several = self.spec.get("num_samples", 1) > 1
        return bool(self.arms or self.seeds or has_space or several)

    def settings(self, arm: str | None = None) -> dict[str, dict[str, Any]]:
        """Returns `config` with the settings of an arm over it."""
        merged = copy.deepcopy(self.config)
        for section, values in (self.arms[arm] if arm is not None else {}).items():
            for key, value in values.items():
                merge(merged.setdefault(section, {}), key, value)
        return merged

    def build_config(
        self,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        validate: bool = True,
    ) -> "PUREConfig":
        """Calls the setters.

        Args:
            settings: setter name -> arguments; default: this experiment's `config`.
            validate: also check values against each other.

        Raises:
            ValueError: a key is unknown, a value has the wrong type, a required setting
                is missing, or a combination cannot work.
        """
        from pure_rllib.cli.sections import check_settings, make_config

        settings = self.config if settings is None else settings
        self._check_required(settings)
        check_settings(settings, self.source)
        return make_config(settings, self.source, validate=validate)

    def _check_required(self, settings: Mapping[str, Any]) -> None:
        missing = {
            key: value.removeprefix(REQUIRED).strip()
            for key, value in flatten(settings).items()
            if isinstance(value, str) and value.startswith(REQUIRED)
        }
        if missing:
            wanted = "; ".join(f"`{key}` ({hint})" for key, hint in missing.items())
            options = " ".join(f"--set {key}=..." for key in missing)
            raise ValueError(
                f"{self.source}: {wanted} must be given, because the package brings no "
                f"such file. Add {options}"
            )

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
                spec["config"].setdefault("debugging", {})["seed"] = seed
        if iterations is not None:
            spec["stop"]["training_iteration"] = iterations
        source = f"{self.source} with --set" if options else self.source
        return Experiment(self.name, source, check_outline(self.name, source, spec))

    def to_yaml(self) -> str:
        """Returns the experiment as a file that `load_experiment` reads."""
        return yaml.safe_dump({self.name: self.spec}, sort_keys=False)

    def changes(self, other: "Experiment") -> list[str]:
        """Lists what is set otherwise in another experiment: `key: old -> new`.

        `stop` and `description` are left out: they do not change what a run computes.
        """
        old, new = (
            flatten(
                {k: v for k, v in e.spec.items() if k not in ("stop", "description")}
            )
            for e in (self, other)
        )
        missing = object()

        def shown(value: Any) -> str:
            return "not set" if value is missing else repr(value)

        return [
            f"{key.removeprefix('config.')}: {shown(old.get(key, missing))} -> "
            f"{shown(new.get(key, missing))}"
            for key in [*old, *(k for k in new if k not in old)]
            if old.get(key, missing) != new.get(key, missing)
        ]


def load_experiment(file_or_name: str | Path) -> Experiment:
    """Reads an experiment from a YAML file, or a tuned example by its name.

    Raises:
        FileNotFoundError: there is no such file or example.
        ValueError: the file is not an experiment; the message names the key.
    """
    path = find_experiment(file_or_name)
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
    return Experiment(str(name), path.name, check_outline(str(name), path.name, spec))


def find_experiment(file_or_name: str | Path) -> Path:
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
        f"{nearest(str(file_or_name), names)}. `pure-rllib list` shows the examples."
    )


def _apply(spec: dict[str, Any], option: str) -> None:
    """Applies one `section.key=value`."""
    path, equals, text = option.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise ValueError(
            f"`--set {option}` must be section.key=value, such as "
            "--set training.lr=1e-4."
        )
    try:
        value = yaml.load(text, SettingsLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"`--set {option}`: {text!r} must be YAML: {error}") from error
    own = [key for key in OUTLINE_KEYS if key not in ("config", "run", "env")]
    if names[0] == "config":
        names = names[1:]
    if names and names[0] in SECTIONS and len(names) > 1:
        tree = spec["config"]
    elif names and names[0] in own:
        tree = spec
    else:
        known = [*SECTIONS, *own]
        raise ValueError(
            f"`--set {option}`: unknown section `{names[0] if names else ''}`"
            f"{nearest(names[0] if names else '', known)}. It may be one of "
            f"{', '.join(known)}, followed by `.key=value`."
        )
    for name in names[:-1]:
        child = tree.get(name)
        if not isinstance(child, dict) or is_search_space(child):
            child = tree[name] = {}
        tree = child
    tree[names[-1]] = value
