"""Settings that name a function or an object of the user's by "module:name"."""

import importlib
from typing import Any


def import_named(setting: str, name: str) -> Any:
    """Imports what "module:name" names.

    Args:
        setting: that holds the name, for the message.
        name: the module's dotted name, a colon and a name in the module.

    Raises:
        ValueError: the name has another form, or there is nothing of that name.
    """
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise ValueError(
            f'`{setting}` ("{name}") must be of the form "module:name", because it is '
            'imported. Set it to something like "my_package.my_module:my_function".'
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f'`{setting}` ("{name}") must be importable in every process that uses '
            f"it, because it is given by name: {error}. Correct the name, set "
            "PYTHONPATH, or install the package."
        ) from error
