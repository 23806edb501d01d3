"""RLlib's callbacks, as classes and as functions."""

from typing import Any

import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback

from pure_rllib.algorithms import PUREConfig
from tests.integration.conftest import built, weights

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


class Sampling(RLlibCallback):
    """Notes each event of sampling, and logs as users do."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int]] = []

    def note(self, event: str, episode: Any, env_index: int, **kwargs: Any) -> None:
        assert kwargs["rl_module"] is kwargs["env_runner"].module
        assert kwargs["env"] is kwargs["env_runner"].env.unwrapped
        self.events.append((event, env_index, len(episode)))

    def on_episode_created(self, **kwargs: Any) -> None:
        self.note("created", **kwargs)
        kwargs["episode"].custom_data["of"] = kwargs["env_index"]

    def on_episode_start(self, **kwargs: Any) -> None:
        self.note("start", **kwargs)

    def on_episode_step(self, **kwargs: Any) -> None:
        self.note("step", **kwargs)

    def on_episode_end(self, *, metrics_logger: Any, **kwargs: Any) -> None:
        self.note("end", **kwargs)
        episode = kwargs["episode"]
        assert episode.is_done and episode.custom_data["of"] == kwargs["env_index"]
        reward = episode.get_infos(-1)["verifiable_reward"]
        metrics_logger.log_value("right", reward, reduce="mean", window=100)
        metrics_logger.log_value("written", len(episode), reduce="sum")

    def on_sample_end(self, *, env_runner: Any, samples: Any, **kwargs: Any) -> None:
        env_runner.metrics.log_value("calls", 1, reduce="sum")
        env_runner.metrics.log_value("sampled", len(samples), reduce="sum")


def test_sampling_calls_the_users_callbacks_in_rllibs_order(
    tiny_config: PUREConfig,
) -> None:
    made: list[Any] = []
    tiny_config.callbacks(Sampling, on_environment_created=lambda **k: made.append(k))
    with built(tiny_config) as algo:
        assert {"env", "env_context", "env_runner", "metrics_logger"} <= set(made[0])
        result = algo.train()
        (noted,) = algo.env_runner.callbacks._objects
    found = result["env_runners"]
    assert (found["calls"], found["sampled"]) == (1, 16)
    assert found["written"] == found["num_env_steps_sampled"]
    assert found["right"] == pytest.approx(result["accuracy"])
    ends = [t for event, _, t in noted.events if event == "end"]
    assert len(ends) == found["num_episodes"] == 16
    expected = [
        (event, i, t)
        for i, size in enumerate(ends)
        for event, t in (
            ("created", 0),
            ("start", 0),
            *(("step", t) for t in range(1, size + 1)),
            ("end", size),
        )
    ]
    assert noted.events == expected


@pytest.mark.slow
def test_remote_env_runners_and_evaluation_call_them_too(
    tiny_config: PUREConfig,
) -> None:
    tiny_config.callbacks(Sampling).env_runners(num_env_runners=2)
    tiny_config.evaluation(evaluation_interval=1)
    with built(tiny_config) as algo:
        result = algo.train()
    assert result["env_runners"]["calls"] == 2
    assert result["env_runners"]["sampled"] == 16
    assert result["env_runners"]["right"] == pytest.approx(result["accuracy"])
    # Greedy and sampled responses to 10 problems, by both env runners.
    evaluation = result["evaluation"]
    assert evaluation["env_runners"]["calls"] == 4
    assert evaluation["env_runners"]["sampled"] == 10 + 10 * 2
    assert evaluation["env_runners"]["num_episodes"] == 30


def reward_more(*, episode: Any, **kwargs: Any) -> None:
    episode.rewards.data[-1] += 1.0


def leave_one_out(*, samples: list[Any], **kwargs: Any) -> None:
    samples.pop()


@pytest.mark.parametrize(
    ("event", "callback", "told"),
    [
        ("on_episode_end", reward_more, "`rewards` of an episode .* step scorer"),
        ("on_sample_end", leave_one_out, "`samples` .15 episodes. must stay the 16"),
    ],
)
def test_what_learners_would_not_see_is_refused(
    tiny_config: PUREConfig, event: str, callback: Any, told: str
) -> None:
    tiny_config.callbacks(**{event: callback})
    with built(tiny_config) as algo, pytest.raises(ValueError, match=told):
        algo.train()


@pytest.mark.slow
def test_callbacks_change_nothing_of_a_run(tiny_config: PUREConfig) -> None:
    runs = []
    for classes in (None, Sampling):
        own = tiny_config.copy(copy_frozen=False).callbacks(classes)
        with built(own) as algo:
            algo.train()
            algo.env_runner.sample(num_episodes=1)
            result = algo.train()
            runs.append((result["accuracy"], result["loss"]["total"], weights(algo)))
    (*plain, before), (*noted, after) = runs
    assert plain == noted
    assert all((before[name] == after[name]).all() for name in before)
