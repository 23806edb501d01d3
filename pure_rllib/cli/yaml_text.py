"""YAML text and nested settings, before anything is known of their meaning."""

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

SEARCH_SPACES = ("grid_search", "choice", "uniform", "loguniform")
REQUIRED = "REQUIRED:"
"""A text that starts so stands for a setting that the user must give."""


class SettingsLoader(yaml.SafeLoader):
    """Safe YAML that reads `5e-7` as a number and refuses a key given twice."""


SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


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


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns `; did you mean ...?` with the nearest of the known names, or nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested mappings into one, with dotted keys; search spaces stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and not is_search_space(value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_search_space(value: Any) -> bool:
    """Whether a value is `{grid_search: [...]}` or another search space."""
    return (
        isinstance(value, Mapping)
        and len(value) == 1
        and set(value) <= set(SEARCH_SPACES)
    )


def search_spaces(settings: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields dotted key and search space of every setting that is to be swept."""
    for key, value in flatten(settings).items():
        if is_search_space(value):
            yield key, value


def merge(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets a value; mappings such as `env_config` are merged key by key."""
    old = tree.get(key)
    if (
        key in ("env_config", "model_config")
        and isinstance(old, dict)
        and isinstance(value, dict)
        and not is_search_space(value)
    ):
        for name, item in value.items():
            old[name] = copy.deepcopy(item)
    else:
        tree[key] = copy.deepcopy(value)
