"""The sections of `config`: setters of `PUREConfig` and their arguments."""

import inspect
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

import gymnasium as gym

from pure_rllib.algorithms import PUREConfig
from pure_rllib.cli.section_names import SECTIONS
from pure_rllib.cli.yaml_text import is_search_space, nearest
from pure_rllib.setting_types import check_setting

_DEPRECATED = -1  # RLlib's default of arguments that only raise an error
_NO_EFFECT = {
    "training.train_batch_size": "env_runners.num_prompts",
    "training.train_batch_size_per_learner": "env_runners.num_prompts",
    "training.model": "rl_module.model_config",
    "env_runners.rollout_fragment_length": "env_runners.num_prompts",
    "env_runners.num_envs_per_env_runner": "env_runners.num_prompts",
    "env_runners.batch_mode": "env_runners.max_response_tokens",
    "env_runners.explore": "env_runners.temperature",
    "rl_module.model_config_dict": "rl_module.model_config",
}
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def check_settings(settings: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """Checks names and types of settings, not yet their values.

    Args:
        settings: section -> key -> value; search spaces are allowed for values.
        source: file, for messages.

    Raises:
        ValueError: naming file, section, key and the nearest known name.
    """
    for section, values in settings.items():
        if section not in SECTIONS:
            raise ValueError(
                f"{source}: unknown section `{section}`{nearest(section, SECTIONS)}. "
                f"A section is a setter of PUREConfig: {', '.join(SECTIONS)}."
            )
        known = section_keys(section)
        for key, value in values.items():
            _check_key(source, section, key, known)
            _check_value(source, section, key, value, known[key])
    environment = settings.get("environment", {})
    _check_env_config(source, environment)


def make_config(
    settings: Mapping[str, Mapping[str, Any]], source: str, *, validate: bool
) -> PUREConfig:
    """Calls the setters of a new `PUREConfig`; see `Experiment.build_config`."""
    config = PUREConfig()
    for section, values in settings.items():
        try:
            getattr(config, section)(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: section `{section}`: {error}") from error
    if validate:
        try:
            config.validate()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from error
    return config


def resolved(config: PUREConfig) -> dict[str, dict[str, Any]]:
    """Returns every setting of a config by section, defaults included."""
    # Not by getattr: a property such as `is_atari` would make an environment.
    stored = vars(config)
    settings: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
        settings[section] = {
            key: stored.get(key, stored.get(f"_{key}"))
            for key in section_keys(section)
            if f"{section}.{key}" not in _NO_EFFECT
            and (key in stored or f"_{key}" in stored)
        }
    return settings


@cache
def section_keys(section: str) -> dict[str, Any]:
    """Returns the arguments of a setter, RLlib's own included, with annotations."""
    keys: dict[str, Any] = {}
    for cls in PUREConfig.__mro__:
        setter = vars(cls).get(section)
        if setter is None:
            continue
        for parameter in inspect.signature(setter).parameters.values():
            is_key = parameter.kind is parameter.KEYWORD_ONLY or (
                parameter.kind is parameter.POSITIONAL_OR_KEYWORD
                and parameter.name != "self"
            )
            if is_key and parameter.default is not _DEPRECATED:
                keys.setdefault(parameter.name, parameter.annotation)
    return keys


def _check_key(source: str, section: str, key: str, known: Mapping[str, Any]) -> None:
    instead = _NO_EFFECT.get(f"{section}.{key}")
    if instead is not None:
        raise ValueError(
            f"{source}: `{section}.{key}` has no effect with PURE. Set `{instead}`."
        )
    if key in known:
        return
    elsewhere = [name for name in SECTIONS if key in section_keys(name)]
    hint = nearest(key, list(known))
    if elsewhere:
        hint = f"; it belongs to section `{elsewhere[0]}`"
    elif not hint:
        others = [f"{name}.{k}" for name in SECTIONS for k in section_keys(name)]
        hint = nearest(f"{section}.{key}", others)
    raise ValueError(f"{source}: unknown key `{key}` in section `{section}`{hint}")


def _check_value(
    source: str, section: str, key: str, value: Any, annotation: Any
) -> None:
    name = f"{section}.{key}"
    if is_search_space(value):
        _check_space(source, name, value, annotation)
        return
    rule = PUREConfig.rules().get(key)
    if rule is not None:
        try:
            check_setting(name, value, rule)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        return
    wanted = _wanted(annotation)
    if wanted and not _fits(value, wanted):
        text = " or ".join(
            _NAMES.get(t, "null" if t is type(None) else t.__name__) for t in wanted
        )
        raise ValueError(
            f"{source}: `{name}` ({value!r}) must be {text}, and is "
            f"{_NAMES.get(type(value), type(value).__name__)}."
        )


def _check_space(source: str, name: str, value: Any, annotation: Any) -> None:
    ((kind, arguments),) = value.items()
    if not isinstance(arguments, list) or not arguments:
        raise ValueError(f"{source}: `{name}` ({value}) must hold a list of values.")
    if kind in ("uniform", "loguniform"):
        is_pair = len(arguments) == 2 and all(_fits(a, (float,)) for a in arguments)
        if not is_pair or arguments[0] >= arguments[1]:
            raise ValueError(
                f"{source}: `{name}` ({value}) must be {{{kind}: [low, high]}} with "
                "low < high."
            )
        if kind == "loguniform" and arguments[0] <= 0:
            raise ValueError(f"{source}: `{name}` ({value}) must have low > 0.")
    section, _, key = name.partition(".")
    for argument in arguments:
        _check_value(source, section, key, argument, annotation)


def _wanted(annotation: Any) -> tuple[type, ...]:
    """The plain types that an annotation allows; empty if it allows others too."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    options = typing.get_args(annotation) if is_union else (annotation,)
    plain = {int, float, bool, str, type(None)}
    origins = [typing.get_origin(option) or option for option in options]
    collections = {list: list, tuple: list, dict: dict}
    known = [collections.get(o, o) for o in origins]
    if any(o not in plain and o not in (list, dict) for o in known):
        return ()
    return tuple(dict.fromkeys(known))


def _fits(value: Any, wanted: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in wanted
    if isinstance(value, int) and float in wanted:
        return True
    return isinstance(value, wanted)


def _check_env_config(source: str, environment: Mapping[str, Any]) -> None:
    """Checks the keys of `env_config` against the environment's arguments."""
    env_config = environment.get("env_config", {})
    env = environment.get("env")
    if not isinstance(env, str) or is_search_space(env_config):
        return
    if env not in gym.registry:
        known_envs = [name for name in gym.registry if name.startswith("pure_rllib/")]
        if env.startswith("pure_rllib/") or "." not in env:
            raise ValueError(
                f"{source}: `environment.env` ({env}) must be an environment's id"
                f"{nearest(env, known_envs)}. Ours are {', '.join(known_envs)}; or "
                "name a class as package.module.Class."
            )
        return
    entry_point = gym.registry[env].entry_point
    env_class = (
        gym.envs.registration.load_env_creator(entry_point)
        if isinstance(entry_point, str)
        else entry_point
    )
    known = _arguments(env_class)
    for key in env_config:
        if known is not None and key not in known:
            names = ", ".join(sorted(known))
            raise ValueError(
                f"{source}: unknown key `{key}` in section `environment.env_config`"
                f"{nearest(key, sorted(known))}. {env} takes {names}."
            )


def _arguments(env_class: Any) -> set[str] | None:
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
            return known
    return None
