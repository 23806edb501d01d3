"""PURE: process-reward reinforcement learning of language models in Ray RLlib.

Importing it registers the environments' ids with Gymnasium, now or when that is
imported: Gymnasium itself takes longer to import than all of this.
"""

import sys
from collections.abc import Sequence
from importlib import import_module, util
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from pure_rllib import old_paths

__version__ = "0.1.0"


class _AfterGymnasium(MetaPathFinder):
    """Asked first; has Gymnasium found by the others, and registers after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: object = None
    ) -> ModuleSpec | None:
        if fullname != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = util.find_spec(fullname)
        if spec is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                import_module("pure_rllib.envs")

            loader.exec_module = exec_module
        return spec


old_paths.install()
if "gymnasium" in sys.modules:
    import_module("pure_rllib.envs")
else:
    sys.meta_path.insert(0, _AfterGymnasium())
