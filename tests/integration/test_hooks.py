"""RLlib's hooks of learners and modules act, or are refused by name."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from pure_rllib.algorithms import PUREConfig
from pure_rllib.algorithms.rllib_settings import ACTS
from pure_rllib.learners.hooks import (
    NEVER_CALLED,
    NEVER_CALLED_OF_CALLBACKS,
    NEVER_CALLED_OF_MODULE,
)
from pure_rllib.learners.torch_learner import LLMTorchLearner
from pure_rllib.models.llm_rl_module import LLMRLModule
from pure_rllib.rollouts.callbacks import EVENTS
from tests.integration.conftest import TINY_POLICY, built, make_tiny_config, weights

NOT_HOOKS = {
    # called by users, or by a learner group with remote learners
    *("apply", "_get_tensor_variable", "_set_learner_index_and_placement_group"),
    # of an update without a name in RLlib any more
    *("compute_loss", "update_from_batch", "update_from_episodes", "_reset"),
}
MODULE_HOOKS = {
    *("setup", "forward_train", "_forward_train", "get_state", "set_state", "train"),
    *("get_ctor_args_and_kwargs", "as_multi_rl_module", "unwrapped"),
}
MODULE_NOT_HOOKS = {
    # RLlib's descriptions of a module, and catalogs, which an own policy has none of
    *(f"{io}_specs_{use}" for io in ("input", "output") for use in ("train",)),
    *(f"{io}_specs_inference" for io in ("input", "output")),
    *(f"{io}_specs_exploration" for io in ("input", "output")),
    *("_default_input_specs", "get_catalog", "to_dict", "from_dict"),
}


def methods(cls: type, package: str) -> set[str]:
    """RLlib's methods of a class, static ones included."""
    return {
        name
        for base in cls.__mro__
        if base.__module__.startswith(package)
        for name, value in vars(base).items()
        if inspect.isfunction(value) or isinstance(value, staticmethod | classmethod)
        if not name.startswith("__")
    }


CALLED: set[str] = set()


class Traced(LLMTorchLearner):
    """Notes which of RLlib's methods a run calls."""


def trace(name: str) -> None:
    found = inspect.getattr_static(LLMTorchLearner, name)
    is_static = isinstance(found, staticmethod | classmethod)
    function = getattr(LLMTorchLearner, name)

    def traced(*args: Any, **kwargs: Any) -> Any:
        CALLED.add(name)
        return function(*args, **kwargs)

    setattr(Traced, name, staticmethod(traced) if is_static else traced)


@pytest.mark.slow
def test_every_method_of_rllibs_learner_is_called_or_refused(
    tiny_config: PUREConfig, tmp_path: Any
) -> None:
    ours = methods(TorchLearner, "ray.rllib.core.learner")
    for name in ours - NEVER_CALLED:
        trace(name)
    with built(tiny_config.training(learner_class=Traced)) as algo:
        algo.train()
        algo.restore_from_path(algo.save_to_path(tmp_path / "checkpoint"))
    assert ours - CALLED - {"rl_module_required_apis"} == NEVER_CALLED | NOT_HOOKS


@pytest.mark.parametrize("name", sorted(NEVER_CALLED))
def test_a_learners_method_that_is_never_called_is_refused(name: str) -> None:
    own = type("Own", (LLMTorchLearner,), {name: lambda self, *_, **__: None})
    config = make_tiny_config().training(learner_class=own)
    with pytest.raises(ValueError, match=rf"Own.*`{name}`.*compute_loss_for_module"):
        config.validate()


def test_every_method_of_rllibs_module_is_known() -> None:
    known = NEVER_CALLED_OF_MODULE | MODULE_HOOKS | MODULE_NOT_HOOKS
    found = methods(TorchRLModule, "ray.rllib.core.rl_module")
    assert found <= known, found - known


@pytest.mark.parametrize("name", sorted(NEVER_CALLED_OF_MODULE))
def test_a_modules_method_that_is_never_called_is_refused(name: str) -> None:
    own = type("Own", (LLMRLModule,), {name: lambda self, *_, **__: None})
    config = make_tiny_config().rl_module(rl_module_spec=RLModuleSpec(module_class=own))
    with pytest.raises(ValueError, match=rf"Own.*`{name}`.*`setup`"):
        config.validate()


def test_every_callback_of_rllib_acts_or_is_refused() -> None:
    acting = {name for names in ACTS.values() for name in names.split()}
    events = {name for name in vars(RLlibCallback) if name.startswith("on_")}
    assert events - acting == NEVER_CALLED_OF_CALLBACKS
    for name in NEVER_CALLED_OF_CALLBACKS:
        own = type("Own", (RLlibCallback,), {name: lambda self, **_: None})
        with pytest.raises(ValueError, match=rf"`callbacks_class` \(Own\).*`{name}`"):
            make_tiny_config().callbacks([RLlibCallback, own]).validate()


class Halved(LLMTorchLearner):
    """Changes gradients where RLlib's users do."""

    def postprocess_gradients(self, gradients_dict: Any) -> Any:
        halves = {ref: gradient / 2 for ref, gradient in gradients_dict.items()}
        return super().postprocess_gradients(halves)


class Stopped(LLMTorchLearner):
    def apply_gradients(self, gradients_dict: Any) -> None:
        self.metrics.log_value((DEFAULT_MODULE_ID, "steps"), 1, reduce="sum")


class Plain(LLMTorchLearner):
    """An optimiser of one's own."""

    def configure_optimizers_for_module(
        self, module_id: str, config: Any = None
    ) -> None:
        params = self.trained_tensors
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.SGD(params, lr=0.0),
            params=params,
            lr_or_lr_schedule=config.lr,
        )


class Unknown(LLMTorchLearner):
    def configure_optimizers_for_module(
        self, module_id: str, config: Any = None
    ) -> None:
        params = [torch.nn.Parameter(torch.zeros(1))]
        self.register_optimizer(
            module_id=module_id, optimizer=torch.optim.SGD(params), params=params
        )


def steps_of(config: PUREConfig, learner_class: Any) -> tuple[dict[str, Tensor], Any]:
    """By how much one iteration moves each tensor, and the iteration's result."""
    own = config.copy(copy_frozen=False).training(learner_class=learner_class)
    with built(own) as algo:
        before = weights(algo)
        result = algo.train()
        after = weights(algo)
    del before["lm_head.weight"]  # tied
    return {n: torch.tensor(after[n] - before[n]) for n in before}, result


@pytest.mark.slow
def test_gradient_hooks_and_optimisers_act(tiny_config: PUREConfig) -> None:
    tiny_config.training(grad_clip=None, lr=0.5)
    whole, result = steps_of(tiny_config, Plain)
    norm = torch.cat([step.flatten() for step in whole.values()]).norm()
    assert norm == pytest.approx(0.5 * result["gradient_norm"], rel=1e-4)
    halved, _ = steps_of(tiny_config, type("Both", (Halved, Plain), {}))
    for name, step in whole.items():
        torch.testing.assert_close(halved[name], step / 2, atol=1e-6, rtol=1e-3)
    stopped, result = steps_of(tiny_config, Stopped)
    assert not any(step.any() for step in stopped.values())
    assert result["learners"]["default_policy"]["steps"] == 1


@pytest.mark.slow
def test_clipping_follows_the_users_gradients(tiny_config: PUREConfig) -> None:
    tiny_config.training(grad_clip=1.0e-3, lr=1.0)
    for learner in (Plain, type("Both", (Halved, Plain), {})):
        steps, _ = steps_of(tiny_config, learner)
        norm = torch.cat([step.flatten() for step in steps.values()]).norm()
        assert norm == pytest.approx(1.0e-3, rel=1e-2)


def test_an_optimiser_of_other_tensors_is_refused(tiny_config: PUREConfig) -> None:
    own = tiny_config.training(learner_class=Unknown)
    with pytest.raises(ValueError, match=r"configure_optimizers_for_module.*trained_"):
        own.build_algo()


class Noted(LLMRLModule):
    """A module of one's own, whose loss sees more."""

    def _forward_train(self, batch: Any, outputs: Any = (), **kwargs: Any) -> Any:
        found = super()._forward_train(batch, outputs, **kwargs)
        return {name: values * 2 for name, values in found.items()}


def test_a_modules_forward_train_acts(tiny_config: PUREConfig) -> None:
    tiny_config.rl_module(
        rl_module_spec=RLModuleSpec(
            module_class=Noted, model_config={"model": TINY_POLICY}
        )
    )
    with built(tiny_config) as algo:
        assert algo.train()["ratio"]["first_minibatch_max_deviation"] > 0.5
        assert isinstance(algo.get_module(), Noted)


def test_the_page_names_every_event_and_method() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rllib.md").read_text("utf-8")
    learner = methods(TorchLearner, "ray.rllib.core.learner") - NOT_HOOKS
    names = {*EVENTS, *learner, *NEVER_CALLED_OF_MODULE, *MODULE_HOOKS}
    missing = {name for name in names if f"`{name}`" not in page}
    assert missing == {"rl_module_required_apis"}
