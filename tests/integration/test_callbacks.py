"""RLlib's callbacks, as classes and as functions."""

from typing import Any

import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback

from pure_rllib.algorithms import PUREConfig
from tests.integration.conftest import built

SEEN: list[str] = []


class Notes(RLlibCallback):
    def on_evaluate_start(self, **kwargs: Any) -> None:
        SEEN.append("evaluate start")

    def on_evaluate_end(
        self, *, evaluation_metrics: dict[str, float], **kwargs: Any
    ) -> None:
        SEEN.append("evaluate end")
        evaluation_metrics["mine"] = 1.0

    def on_train_result(self, *, result: dict[str, Any], **kwargs: Any) -> None:
        SEEN.append("train result")
        result["mine"] = result["response"]["tokens"]


@pytest.mark.slow
def test_evaluation_and_training_call_the_users_callbacks(
    tiny_config: PUREConfig,
) -> None:
    SEEN.clear()
    tiny_config.evaluation(evaluation_interval=1)
    tiny_config.callbacks(
        Notes,
        on_evaluate_start=lambda algorithm, **_: SEEN.append(type(algorithm).__name__),
    )
    with built(tiny_config) as algo:
        result = algo.train()
    assert SEEN == ["evaluate start", "PURE", "evaluate end", "train result"]
    assert result["evaluation"]["mine"] == 1.0
    assert result["mine"] == result["response"]["tokens"]
