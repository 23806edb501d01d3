"""Modules at the names that earlier versions gave them, for earlier checkpoints.

A checkpoint is a pickle, which names classes by their modules' paths. Importing an old
path gives the names of the module that stands for it today.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_ROOT = "pure_rllib."
MOVED = {
    "algorithms.hacking_monitor": "hacking.monitor",
    "algorithms.pure.deepspeed_learner": "learners.deepspeed_learner",
    "algorithms.pure.group_env_runner": "rollouts.env_runner",
    "algorithms.pure.llm_rl_module": "models.llm_rl_module",
    "algorithms.pure.pure_learner_group": "learners.learner_group",
    "algorithms.pure.pure_config": "algorithms.pure.pure",
    "algorithms.pure.pure_torch_learner": "learners.torch_learner",
    "algorithms.pure.zero_policy": "learners.zero_weights",
    "envs.generative_prm": "rewards.prm.generative",
    "envs.process_rewards": "rewards.make",
    "envs.verifiers": "rewards.make",
    "generation.weights": "models.export",
    "rewards.prm_formats": "rewards.prm.formats",
    "rewards.prm_input": "rewards.prm.rows",
    "rewards.prm_text": "rewards.prm.rows",
    "rewards.process_reward": "rewards.prm.model",
    "rewards.row_scorer": "rewards.prm.scoring",
    "rewards.generative_prm": "rewards.prm.generative",
    "rewards.score_adjustment": "rewards.prm.scoring",
    "rewards.minimum_scorer": "rewards.prm.scoring",
    "rewards.hybrid_verifier": "rewards.verifier.hybrid",
    "embedded": "arithmetic",
    "embedded.checker": "arithmetic.checker",
    "embedded.simulated_prm": "arithmetic.simulated_prm",
    "embedded.task": "arithmetic.task",
}
"""Old name -> new name, both below `pure_rllib`."""


class _OldPaths(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: object = None
    ) -> ModuleSpec | None:
        if fullname.removeprefix(_ROOT) in MOVED:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = import_module(_ROOT + MOVED[module.__name__.removeprefix(_ROOT)])
        names = vars(new).items()
        vars(module).update({k: v for k, v in names if not k.startswith("__")})


def install() -> None:
    """Makes the old paths importable; asked last, after all others."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(_OldPaths())
