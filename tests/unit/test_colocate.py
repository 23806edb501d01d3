"""One GPU for engine and learner in turn: what is refused, and the order of things."""

import gc
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from pure_rllib.algorithms import RLOOConfig
from pure_rllib.generation.vllm_generator import VLLMGenerator
from pure_rllib.weight_sync.handle import Probe, WeightReceiver, Weights
from pure_rllib.weight_sync.object_store import LiveWeights


def colocated() -> RLOOConfig:
    config = RLOOConfig().environment("pure_rllib/Arithmetic-v0")
    return config.env_runners(generator="vllm", colocate=True)


@pytest.mark.parametrize(
    ("setter", "setting", "message"),
    [
        ("env_runners", {"generator": "transformers"}, r"must be 'vllm'.*memory back"),
        ("training", {"max_weight_lag": 1}, r"\(1\) must be 0.*sleeps while"),
        ("env_runners", {"num_env_runners": 1}, r"\(1\) must be 0.*share a process"),
        ("learners", {"num_learners": 2}, r"\(2\) must be 0.*share a process"),
    ],
)
def test_what_cannot_take_turns_is_refused(setter, setting, message):
    config = getattr(colocated(), setter)(**setting)
    (name,) = setting
    with pytest.raises(ValueError, match=f"`{name}` .*{message}.*`colocate` out"):
        config.validate()


class Engine:
    """Stands for a `vllm.LLM`, and writes down what is asked of it."""

    def __init__(self, events: list[str]):
        self.events = events
        self.llm_engine = self  # which says what is under way

    def has_unfinished_requests(self) -> bool:
        return False

    def set_weight_version(self, version: str) -> None:
        pass

    def sleep(self, level: int) -> None:
        self.events.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.events.append(f"wake {', '.join(tags)}")

    def collective_rpc(self, call: Any, kwargs: Any = None) -> None:
        if call == "reload_weights":
            list(kwargs["weights_iterator"])
            self.events.append("load")

    def reset_prefix_cache(self, reset_running_requests: bool) -> bool:
        return True


class Recorded(VLLMGenerator):
    """The generator with another engine; what it samples is not asked for."""

    def __init__(self, events: list[str]):
        self.weights_version = 0
        self._llm, self._is_in_process, self._sizes = Engine(events), True, {"w": 1}

    def logps(self, sequences: Any) -> list[np.ndarray]:
        assert self._is_loaded
        self._llm.events.append("check")
        return [np.zeros(1, np.float32)]

    def held_tensors(self, version: int) -> Any:
        return []


def test_an_engine_wakes_part_by_part_and_is_always_given_weights(monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: None)  # of all that tests have imported
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("free"))
    generator = Recorded(events)
    receiver = WeightReceiver(lambda: generator, max_logp_gap=1.0)
    probe = Probe(((1, 2),), (np.zeros(1, np.float32),))

    def weights(version: int) -> Weights:
        source = LiveWeights(version, lambda: iter([{"w": torch.zeros(1)}]))
        return Weights(version, f"sync {version}", source, probe)

    waking = ["free", "wake weights", "load", "free", "wake kv_cache", "check"]
    receiver.take_over(weights(0))
    assert events == ["load", "check"]
    receiver.take_over(weights(0))  # an evaluation before the update
    receiver.sleep()
    receiver.take_over(weights(1))
    assert events[2:] == ["sleep 2", *waking]
    # The same weights again, as for an evaluation without an update.
    receiver.sleep()
    receiver.take_over(weights(1))
    assert events[9:] == ["sleep 2", *waking]
    assert generator.weights_version == 1


def test_an_engine_that_is_not_whole_again_sleeps_on(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: None)
    events: list[str] = []
    generator = Recorded(events)
    receiver = WeightReceiver(lambda: generator, max_logp_gap=1.0)
    probe = Probe(((1, 2),), (np.zeros(1, np.float32),))
    receiver.sleep()
    for name, raises in (("other", pytest.raises(ValueError)), ("w", nullcontext())):
        events.clear()
        source = LiveWeights(1, partial(iter, [{name: torch.zeros(1)}]))
        with raises:
            receiver.take_over(Weights(1, "1", source, probe))
        assert events[0] == "wake weights"
    assert events[-1] == "check"
