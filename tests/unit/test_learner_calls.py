"""What becomes of the other learners, whatever Ray says of one of them."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ObjectStoreFullError,
    OwnerDiedError,
    RayError,
    RayTaskError,
)

from pure_rllib.distributed import calls as learner_calls
from pure_rllib.distributed.calls import LearnerLostError, on_learners
from pure_rllib.distributed.collectives import CollectiveTimeoutError


class FakeRay:
    """Two learners: one call ends, perhaps with an error; the other one never ends."""

    def __init__(self, error: RayError | None):
        self.error = error
        self.killed: list[Any] = []

    def wait(self, calls: list[str], timeout: float) -> tuple[list[str], list[str]]:
        return [c for c in calls if c == "ends"], [c for c in calls if c == "hangs"]

    def get(self, call: str) -> None:
        if self.error is not None:
            raise self.error

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


class FakeLearners:
    """A learner group with these actors."""

    is_local = False
    config = SimpleNamespace(collective_timeout_s=0.1)

    def __init__(self, actors: dict[int, Any]):
        self._worker_manager = SimpleNamespace(actors=lambda: actors)

    def __len__(self) -> int:
        return len(self._worker_manager.actors())


def actor(call: str) -> Any:
    return SimpleNamespace(apply=SimpleNamespace(remote=lambda function: call))


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (OwnerDiedError("ab", None, ""), LearnerLostError, "Learner 1 .* answer was l"),
        (ActorDiedError(), LearnerLostError, r"Learner 1 \(of 0 to 1\) died"),
        (ObjectStoreFullError("no room"), ObjectStoreFullError, "no room"),
        (
            RayTaskError("f", "traceback", ValueError("own")).as_instanceof_cause(),
            ValueError,
            "traceback",
        ),
    ],
)
def test_any_error_of_rays_stops_the_learners_that_wait(
    monkeypatch: pytest.MonkeyPatch,
    error: RayError,
    expected: type[Exception],
    message: str,
) -> None:
    fake = FakeRay(error)
    monkeypatch.setattr(learner_calls, "ray", fake)
    monkeypatch.setattr(learner_calls, "GRACE_S", 0.05)
    waits = actor("hangs")
    learners: Any = FakeLearners({0: waits, 1: actor("ends")})
    with pytest.raises(expected, match=message):
        on_learners(learners, lambda learner: None)
    assert fake.killed == [waits]


@pytest.mark.parametrize("limits", [{"longer_s": 0.1}, {"within_s": 0.1}])
def test_the_driver_does_not_wait_for_ever_for_one_learner(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any]
) -> None:
    fake = FakeRay(None)
    monkeypatch.setattr(learner_calls, "ray", fake)
    waits, ends = actor("hangs"), actor("ends")
    learners: Any = FakeLearners({0: ends, 1: waits})
    message = r"`collective_timeout_s` \(0\.1\) .*: learner 1 gave no answer for 0 s"
    with pytest.raises(CollectiveTimeoutError, match=message):
        on_learners(learners, lambda learner: None, **limits)
    assert waits in fake.killed and ends in fake.killed
