"""From arms, seeds and search spaces to what Ray Tune samples."""

import copy
import inspect
import itertools
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler

from pure_rllib.algorithms import PUREConfig
from pure_rllib.cli.experiment import Experiment
from pure_rllib.cli.yaml_text import is_search_space, nearest, search_spaces

Settings = dict[str, dict[str, Any]]

_MAX_CHECKED = 64
_SCHEDULERS = {"ASHA": ASHAScheduler, "PBT": PopulationBasedTraining}


def check_sweep(experiment: Experiment) -> list[PUREConfig]:
    """Checks every combination that will be run, or the ends of every range.

    Returns:
        The configurations that were checked.

    Raises:
        ValueError: one of them cannot work, or arms and search spaces are mixed.
    """
    if experiment.arms:
        mixed = [key for key, _ in search_spaces(experiment.settings())]
        mixed += [key for key, _ in search_spaces(experiment.arms)]
        if mixed:
            raise ValueError(
                f"{experiment.source}: `{mixed[0]}` must not be a search space beside "
                "`arms`, because each arm is one fixed setting. Write its values as "
                "arms of their own."
            )
        return [
            experiment.build_config(experiment.settings(a)) for a in experiment.arms
        ]
    settings = experiment.settings()
    experiment.build_config(settings, validate=False)
    spaces = list(search_spaces(settings))
    for key, _ in spaces:
        if key == "training.preset":
            raise ValueError(
                f"{experiment.source}: `{key}` must not be a search space, because it "
                "sets other settings. Write the presets as `arms`."
            )
    options = [next(iter(space.values())) for _, space in spaces]
    combinations = list(itertools.islice(itertools.product(*options), _MAX_CHECKED))
    return [
        experiment.build_config(
            _filled(settings, dict(zip([k for k, _ in spaces], values, strict=True)))
        )
        for values in combinations
    ]


def param_space(experiment: Experiment) -> dict[str, Any]:
    """Returns what `tune.Tuner("PURE", param_space=...)` takes."""
    if experiment.arms:
        space = _space_of_arms(experiment)
    else:
        settings = experiment.settings()
        sampled = {key: _tune_space(space) for key, space in search_spaces(settings)}
        config = experiment.build_config(_first(settings), validate=False).to_dict()
        for key, domain in sampled.items():
            _put(config, flat_path(key), domain)
        space = config
    if experiment.seeds:
        space["seed"] = tune.grid_search(experiment.seeds)
    return space


def _space_of_arms(experiment: Experiment) -> dict[str, Any]:
    """A base, and every setting in which arms differ as a function of `arm`."""
    configs = {
        arm: experiment.build_config(experiment.settings(arm)).to_dict()
        for arm in experiment.arms
    }
    space = dict(next(iter(configs.values())))
    for key in space:
        values = {arm: config[key] for arm, config in configs.items()}
        if any(value != space[key] for value in values.values()):
            space[key] = tune.sample_from(_OfArm(values))
    space["arm"] = tune.grid_search(list(configs))
    return space


class _OfArm:
    """The value of one setting in a trial's arm."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = dict(values)

    def __call__(self, spec: Any) -> Any:
        return copy.deepcopy(self._values[spec.config["arm"]])


def make_scheduler(experiment: Experiment) -> TrialScheduler | None:
    """Makes the scheduler that an experiment names, or None.

    Raises:
        ValueError: an unknown type or argument, or no metric to compare trials by.
    """
    settings = dict(experiment.spec.get("scheduler") or {})
    if not settings:
        return None
    kind = settings.pop("type", None)
    if kind not in _SCHEDULERS:
        raise ValueError(
            f"{experiment.source}: `scheduler.type` ({kind!r}) must be one of "
            f"{', '.join(_SCHEDULERS)}."
        )
    scheduler = _SCHEDULERS[kind]
    known = list(inspect.signature(scheduler.__init__).parameters)[1:]
    for key in settings:
        if key not in known:
            raise ValueError(
                f"{experiment.source}: unknown key `{key}` in section `scheduler`"
                f"{nearest(key, known)}. {kind} takes {', '.join(known)}."
            )
    if "metric" not in experiment.spec:
        raise ValueError(
            f"{experiment.source}: `metric` (None) must be given with a `scheduler`, "
            "because trials are compared by it. Set `metric: accuracy` and `mode: max`."
        )
    settings.setdefault("time_attr", "training_iteration")
    if kind == "ASHA":
        settings.setdefault("max_t", experiment.num_iterations)
    mutations = settings.get("hyperparam_mutations")
    if mutations is not None:
        settings["hyperparam_mutations"] = _mutations(mutations)
    return scheduler(**settings)


def _mutations(mutations: Mapping[str, Any]) -> dict[str, Any]:
    converted: dict[str, Any] = {}
    for key, space in mutations.items():
        domain = _tune_space(space) if is_search_space(space) else space
        _put(converted, flat_path(key), domain)
    return converted


def flat_path(key: str) -> list[str]:
    """Where `section.key.nested` lies in a config's `to_dict()`."""
    _, name, *nested = key.split(".")
    return ["_model_config" if name == "model_config" else name, *nested]


def _tune_space(space: Mapping[str, Any]) -> Any:
    ((kind, values),) = space.items()
    if kind == "grid_search":
        return tune.grid_search(values)
    if kind == "choice":
        return tune.choice(values)
    return getattr(tune, kind)(*values)


def _first(settings: Settings) -> Settings:
    """Puts the first value of every search space in its place."""
    spaces = dict(search_spaces(settings))
    return _filled(settings, {k: next(iter(s.values()))[0] for k, s in spaces.items()})


def _filled(settings: Settings, values: Mapping[str, Any]) -> Settings:
    filled = copy.deepcopy(settings)
    for key, value in values.items():
        _put(filled, key.split("."), value)
    return filled


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
