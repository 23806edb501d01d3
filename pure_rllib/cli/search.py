"""From arms, seeds and search spaces to what Ray Tune samples."""

import copy
import inspect
import itertools
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler

from pure_rllib.algorithms import LLMConfig
from pure_rllib.cli.experiment import Experiment
from pure_rllib.cli.settings import (
    check_known,
    is_search_space,
    naming,
    put,
    search_spaces,
    with_values,
)

RUN = "run"
"""Where a trial's config names its algorithm, in a sweep with arms."""
_MAX_CHECKED = 64
_SCHEDULERS = {"ASHA": ASHAScheduler, "PBT": PopulationBasedTraining}


def check_sweep(experiment: Experiment) -> list[LLMConfig]:
    """Checks every combination that will be run, or the ends of every range.

    Returns:
        The configurations that were checked.

    Raises:
        ValueError: one of them cannot work, or arms and search spaces are mixed.
    """
    settings = experiment.settings()
    spaces = search_spaces(settings)
    if experiment.arms:
        mixed = [*spaces, *search_spaces(experiment.arms)]
        if mixed:
            raise ValueError(
                f"{experiment.source}: `{mixed[0]}` must not be a search space beside "
                "`arms`, because each arm is one fixed setting. Write its values as "
                "arms of their own."
            )
        return [experiment.arm_config(arm) for arm in experiment.arms]
    experiment.build_config(settings, validate=False)
    if "training.preset" in spaces:
        raise ValueError(
            f"{experiment.source}: `training.preset` must not be a search space, "
            "because it sets other settings. Write the presets as `arms`."
        )
    options = [next(iter(space.values())) for space in spaces.values()]
    combinations = itertools.islice(itertools.product(*options), _MAX_CHECKED)
    return [
        experiment.build_config(
            with_values(settings, dict(zip(spaces, values, strict=True)))
        )
        for values in combinations
    ]


def param_space(experiment: Experiment) -> dict[str, Any]:
    """Returns what `tune.Tuner(..., param_space=...)` takes."""
    if experiment.arms:
        space = _space_of_arms(experiment)
    else:
        settings = experiment.settings()
        space = experiment.build_config(settings, validate=False).to_dict()
        for key, swept in search_spaces(settings).items():
            put(space, flat_path(key), _tune_space(swept))
    if experiment.seeds:
        space["seed"] = tune.grid_search(experiment.seeds)
    return space


def _space_of_arms(experiment: Experiment) -> dict[str, Any]:
    """A base, and every setting in which arms differ as a function of `arm`."""
    configs = {
        arm: experiment.arm_config(arm).to_dict() | {RUN: experiment.run_of(arm)}
        for arm in experiment.arms
    }
    # Those of one algorithm alone are None in arms of others.
    space = {key: value for config in configs.values() for key, value in config.items()}
    for key in space:
        values = {arm: config.get(key) for arm, config in configs.items()}
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
    with naming(experiment.source):
        hint = f"{kind} takes {', '.join(known)}."
        check_known(settings, known, "key `{}` in section `scheduler`", hint)
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
        domains: dict[str, Any] = {}
        for key, space in mutations.items():
            domain = _tune_space(space) if is_search_space(space) else space
            put(domains, flat_path(key), domain)
        settings["hyperparam_mutations"] = domains
    return scheduler(**settings)


def flat_path(key: str) -> list[str]:
    """Where `section.key.nested` lies in a config's `to_dict()`."""
    _, name, *nested = key.split(".")
    return ["_model_config" if name == "model_config" else name, *nested]


def _tune_space(space: Mapping[str, Any]) -> Any:
    ((kind, values),) = space.items()
    make = getattr(tune, kind)
    return make(*values) if kind in ("uniform", "loguniform") else make(values)
