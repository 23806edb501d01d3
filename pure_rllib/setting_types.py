"""Rules of settings as types, which stand beside the settings and are checked anywhere.

    def env_runners(self, *, group_size: Annotated[int, Field(ge=2)] = NotProvided): ...

The setters check what they are given, `validate()` what came by other ways, and YAML
files and `--set` the same types before.
"""

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

Count = Annotated[int, Field(ge=1)]
NaturalNumber = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
_BOUNDS = {
    "greater_than": ">",
    "greater_than_equal": ">=",
    "less_than": "<",
    "less_than_equal": "<=",
}
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
NonEmptyText = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Why:
    """Of a rule: the reason and the way out, put behind what must be.

    Attributes:
        text: such as "because ..; set X to Y", without a period.
    """

    text: str


def check_setting(name: str, value: Any, rule: Any) -> None:
    """Checks one value against its type; nothing is converted.

    Args:
        name: the setting, for the message.
        value: NumPy's numbers count as Python's.
        rule: a type, with its bounds as `Annotated`; `Any` allows everything.

    Raises:
        ValueError: naming the setting, its value and what it must be.
    """
    try:
        _adapter(rule).validate_python(_plain(value), strict=True)
    except ValidationError as error:
        found = error.errors()
        must = ", or ".join(dict.fromkeys(_must(details) for details in found))
        # A reason is one of a bound; what is of another kind altogether needs none.
        why = _why(rule) if value is None or found[0]["type"] in _BOUNDS else ""
        raise ValueError(f"`{name}` ({value!r}) must be {must}{why}.") from None


def _plain(value: Any) -> Any:
    """Python's own in place of NumPy's, and a dict for any mapping."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return dict(value) if isinstance(value, Mapping) else value


def is_search_space(value: Any) -> bool:
    """Whether Ray Tune will put others in the place of a value, or of one inside it."""
    if isinstance(value, Mapping):
        is_grid = set(value) == {"grid_search"}
        return is_grid or any(map(is_search_space, value.values()))
    if isinstance(value, list | tuple):
        return any(map(is_search_space, value))
    # By its module: what only checks settings should not import Tune.
    return type(value).__module__ == "ray.tune.search.sample"


def check_fields(settings: Any) -> None:
    """Checks every field of a dataclass against its annotation.

    Raises:
        ValueError: see `check_setting`.
    """
    rules = typing.get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        check_setting(field.name, getattr(settings, field.name), rules[field.name])


@cache
def rules_of(setter: Any) -> Mapping[str, Any]:
    """Returns the keyword-only arguments of a setter with their types."""
    hints = typing.get_type_hints(setter, include_extras=True)
    parameters = inspect.signature(setter).parameters.values()
    return {
        p.name: hints.get(p.name, Any) for p in parameters if p.kind is p.KEYWORD_ONLY
    }


@cache
def _adapter(rule: Any) -> TypeAdapter[Any]:
    return TypeAdapter(rule, config=ConfigDict(arbitrary_types_allowed=True))


def _why(rule: Any) -> str:
    options = [rule, *typing.get_args(rule)]
    extras = [
        extra for option in options for extra in getattr(option, "__metadata__", ())
    ]
    return "".join(f", {extra.text}" for extra in extras if isinstance(extra, Why))


def _must(details: ErrorDetails) -> str:
    """Says in our words what pydantic found wrong."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in _BOUNDS:
        return f"{_BOUNDS[kind]} {next(iter(context.values())):g}"
    if kind == "literal_error":
        return f"one of {context['expected']}"
    names = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "True or False",
        "string_type": "a text",
        "string_too_short": "a text that is not empty",
        "sequence_str": "a list",
        "list_type": "a list",
        "dict_type": "a mapping",
        "mapping_type": "a mapping",
        "none_required": "None",
        "is_instance_of": f"a {context.get('class')}",
    }
    if kind in ("too_short", "too_long"):
        return f"of length {context.get('min_length', context.get('max_length'))}"
    return names.get(kind, f"of another form ({details['msg']})")
