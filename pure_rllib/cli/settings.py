"""The settings of an experiment: the sections of its `config`, and search spaces.

A section is a setter of the algorithm's config class, its keys are the setter's
arguments. Messages name no file here: `naming` puts it before them.
"""

import copy
import difflib
import functools
import inspect
import operator
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from pure_rllib.setting_types import check_setting

if TYPE_CHECKING:
    from pure_rllib.algorithms import LLMConfig

SECTIONS = (
    "environment",
    "env_runners",
    "training",
    "rl_module",
    "learners",
    "evaluation",
    "reporting",
    "debugging",
    "resources",
    "fault_tolerance",
    "checkpointing",
    "framework",
)
"""Setters whose arguments can be written in a file."""
SEARCH_SPACES = ("grid_search", "choice", "uniform", "loguniform")
_DEPRECATED = -1  # RLlib's default of arguments that only raise an error
# Refused whatever the value: RLlib's default, written down, would not be true either.
_NO_EFFECT = {
    "training.train_batch_size": "env_runners.num_prompts",
    "training.train_batch_size_per_learner": "env_runners.num_prompts",
    "training.model": "rl_module.model_config",
    "env_runners.rollout_fragment_length": "env_runners.num_prompts",
    "rl_module.model_config_dict": "rl_module.model_config",
}
_PLAIN = {int, float, bool, str, types.NoneType, list, dict}


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Puts the name of a file before what is wrong with its settings."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Ends a sentence: `; did you mean ...?` with the nearest known name, or `.`"""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else "."


def check_known(
    names: Iterable[str], known: Collection[str], what: str, hint: str
) -> None:
    """Raises a ValueError that names the first unknown name and the one nearest to it.

    Args:
        names: to be checked.
        known: allowed names.
        what: says what a name is, with braces in its place: "key `{}` in section ...".
        hint: ends the message.
    """
    for name in names:
        if name not in known:
            found = what.format(name)
            raise ValueError(f"unknown {found}{nearest(name, known)} {hint}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested mappings into one, with dotted keys; search spaces stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and not is_search_space(value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Sets a value in nested mappings, which are made where there are none."""
    for name in path[:-1]:
        child = tree.get(name)
        if not isinstance(child, dict) or is_search_space(child):
            child = tree[name] = {}
        tree = child
    tree[path[-1]] = value


def with_values(
    settings: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns settings with other values at some dotted keys."""
    changed = copy.deepcopy(dict(settings))
    for key, value in values.items():
        put(changed, key.split("."), value)
    return changed


def is_search_space(value: Any) -> bool:
    """Whether a value is `{grid_search: [...]}` or another search space."""
    return (
        isinstance(value, Mapping)
        and len(value) == 1
        and set(value) <= set(SEARCH_SPACES)
    )


def search_spaces(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the search space of every setting that is swept, by its dotted key."""
    return {k: v for k, v in flatten(settings).items() if is_search_space(v)}


def make_config(
    run: str, settings: Mapping[str, Mapping[str, Any]], *, validate: bool
) -> "LLMConfig":
    """Checks names and types of settings, and calls the setters.

    Args:
        run: the algorithm's name.
        settings: section -> key -> value; the setters get the first value of a search
            space.
        validate: also check values against each other.

    Raises:
        ValueError: naming section, key and the nearest known name.
    """
    from pure_rllib.algorithms import ALGORITHMS

    if str(run) not in ALGORITHMS:
        raise ValueError(
            f"`run` ({run}) must be one of {', '.join(ALGORITHMS)}"
            f"{nearest(run, ALGORITHMS)}"
        )
    config: LLMConfig = ALGORITHMS[run].get_default_config()
    config_class: Any = type(config)
    hint = f"A section is a setter of {config_class.__name__}: {', '.join(SECTIONS)}."
    check_known(settings, SECTIONS, "section `{}`", hint)
    for section, values in settings.items():
        for key, value in values.items():
            _check_key(run, config_class, section, key)
            rule = section_keys(config_class, section)[key]
            _check_value(f"{section}.{key}", value, rule)
    _check_env_config(settings.get("environment", {}))
    spaces = search_spaces(settings)
    first = {key: _arguments_of_space(key, s)[0] for key, s in spaces.items()}
    for section, values in with_values(settings, first).items():
        with naming(f"section `{section}`"):
            getattr(config, section)(**values)
    if validate:
        config.validate()
    return config


def resolved(config: "LLMConfig") -> dict[str, dict[str, Any]]:
    """Returns every setting of a config by section, defaults included."""
    from pure_rllib.algorithms.rllib_settings import is_refused

    # Not by getattr: a property such as `is_atari` would make an environment.
    stored, config_class = vars(config), cast(Any, type(config))
    return {
        section: {
            key: stored.get(key, stored.get(f"_{key}"))
            for key in section_keys(config_class, section)
            if not is_refused(key) and (key in stored or f"_{key}" in stored)
        }
        for section in SECTIONS
    }


@functools.cache
def section_keys(config_class: Any, section: str) -> dict[str, Any]:
    """Returns the arguments of a setter, RLlib's own included, with their types."""
    rules = config_class.rules()
    keys: dict[str, Any] = {}
    for cls in config_class.__mro__:
        setter = vars(cls).get(section)
        if setter is None:
            continue
        for name, parameter in inspect.signature(setter).parameters.items():
            is_key = parameter.kind in (
                parameter.KEYWORD_ONLY,
                parameter.POSITIONAL_OR_KEYWORD,
            )
            if is_key and name != "self" and parameter.default is not _DEPRECATED:
                keys.setdefault(name, rules.get(name, _outer(parameter.annotation)))
    return keys


def _outer(annotation: Any) -> Any:
    """The plain types that RLlib's annotation allows; `Any` if it allows others too."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    options = typing.get_args(annotation) if is_union else (annotation,)
    origins = [typing.get_origin(option) or option for option in options]
    # YAML has no tuples.
    outer = [list if origin is tuple else origin for origin in origins]
    if not set(outer) <= _PLAIN:
        return Any
    return functools.reduce(operator.or_, outer)


def _check_key(run: str, config_class: Any, section: str, key: str) -> None:
    from pure_rllib.algorithms import ALGORITHMS

    instead = _NO_EFFECT.get(f"{section}.{key}")
    if instead is not None:
        raise ValueError(
            f"`{section}.{key}` has no effect with {run}. Set `{instead}`."
        )
    keys = {name: section_keys(config_class, name) for name in SECTIONS}
    if key in keys[section]:
        return
    elsewhere = [name for name in SECTIONS if key in keys[name]]
    if elsewhere:
        hint = f"; it belongs to section `{elsewhere[0]}`."
    elif owners := [n for n in ALGORITHMS if key in _keys_of(n, section) and n != run]:
        hint = f"; it is a setting of {' and '.join(owners)}, and `run` is {run}."
    else:
        hint = nearest(key, keys[section])
        if hint == ".":
            others = [f"{name}.{other}" for name in SECTIONS for other in keys[name]]
            hint = nearest(f"{section}.{key}", others)
    raise ValueError(f"unknown key `{key}` in section `{section}`{hint}")


def _keys_of(run: str, section: str) -> dict[str, Any]:
    from pure_rllib.algorithms import ALGORITHMS

    config_class: Any = type(ALGORITHMS[run].get_default_config())
    return section_keys(config_class, section)


def _check_value(name: str, value: Any, rule: Any) -> None:
    """Checks one value, or all values of a search space."""
    if is_search_space(value):
        for argument in _arguments_of_space(name, value):
            _check_value(name, argument, rule)
    else:
        check_setting(name, value, rule)


def _arguments_of_space(name: str, space: Mapping[str, Any]) -> list[Any]:
    ((kind, arguments),) = space.items()
    if not isinstance(arguments, list) or not arguments:
        raise ValueError(f"`{name}` ({space}) must hold a list of values.")
    if kind in ("uniform", "loguniform"):
        is_pair = len(arguments) == 2 and {*map(type, arguments)} <= {int, float}
        if not is_pair or arguments[0] >= arguments[1]:
            raise ValueError(
                f"`{name}` ({space}) must be {{{kind}: [low, high]}} with low < high."
            )
        if kind == "loguniform" and arguments[0] <= 0:
            raise ValueError(f"`{name}` ({space}) must have low > 0.")
    return arguments


def _check_env_config(environment: Mapping[str, Any]) -> None:
    """Checks the keys of `env_config` against the environment's arguments."""
    import gymnasium as gym

    env_config, env = environment.get("env_config") or {}, environment.get("env")
    if not isinstance(env, str) or is_search_space(env_config):
        return
    if env not in gym.registry:
        ours = [name for name in gym.registry if name.startswith("pure_rllib/")]
        if env.startswith("pure_rllib/") or "." not in env:
            raise ValueError(
                f"`environment.env` ({env}) must be an environment's id"
                f"{nearest(env, ours)} Ours are {', '.join(ours)}; or name a class "
                "as package.module.Class."
            )
        return
    env_class: Any = gym.registry[env].entry_point
    if isinstance(env_class, str):
        env_class = gym.envs.registration.load_env_creator(env_class)
    known = _arguments(env_class)
    if known is not None:
        hint = f"{env} takes {', '.join(known)}."
        what = "key `{}` in section `environment.env_config`"
        check_known(env_config, known, what, hint)


def _arguments(env_class: Any) -> list[str] | None:
    """Arguments of a class; of its bases too, where it hands `**kwargs` on."""
    known: set[str] = set()
    if not inspect.isclass(env_class):
        return None
    for cls in env_class.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
        known |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return sorted(known)
    return None
