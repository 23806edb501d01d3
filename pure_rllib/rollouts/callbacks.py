"""The user's callbacks of sampling, called as RLlib's own env runners call them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils import force_list

from pure_rllib.rollouts.group import Group, SampledResponse

_WHILE_WRITTEN = ("on_episode_created", "on_episode_start", "on_episode_step")
EVENTS = (
    "on_environment_created",
    *_WHILE_WRITTEN,
    "on_episode_end",
    "on_sample_end",
)
"""What env runners call, in this order; the rest is the algorithm's."""


class SamplingCallbacks:
    """Calls what `.callbacks(...)` was given, classes and functions, as RLlib does.

    RLlib calls the events of an episode while it steps an environment. Here a response
    is sampled as a whole, and its events are called once it has been judged: an episode
    is created, begins, grows token by token and ends as it would have done. Without a
    callback for an event nothing is made for it.

    Args:
        env_runner: an `LLMEnvRunner`; each has callback objects of its own.
    """

    def __init__(self, env_runner: Any):
        self._env_runner = env_runner
        self._config = env_runner.config
        self._objects = [make() for make in force_list(self._config.callbacks_class)]
        self._given = {event for event in EVENTS if self._is_given(event)}

    def _is_given(self, event: str) -> bool:
        methods = [getattr(callback, event) for callback in self._objects]
        nothing = getattr(RLlibCallback, event)
        return bool(self._functions(event)) or any(
            getattr(method, "__func__", None) is not nothing for method in methods
        )

    def _functions(self, event: str) -> list[Any]:
        functions: list[Any] = force_list(getattr(self._config, f"callbacks_{event}"))
        return functions

    def call(self, event: str, **kwargs: Any) -> None:
        """Calls one event, if there is a callback for it."""
        if event in self._given:
            make_callback(
                event,
                callbacks_objects=self._objects,
                callbacks_functions=self._functions(event),
                kwargs={
                    "env_runner": self._env_runner,
                    "metrics_logger": self._env_runner.metrics,
                    **kwargs,
                },
            )

    def call_for_episodes(self, groups: Sequence[Group]) -> None:
        """Calls the events of each response's episode, one response after another.

        Raises:
            ValueError: a callback changed what learners read elsewhere.
        """
        if self._given.isdisjoint((*_WHILE_WRITTEN, "on_episode_end")):
            return
        env_index = 0
        for group in groups:
            assert isinstance(group.episodes, list), "just sampled"
            for i, whole in enumerate(group.episodes):
                group.episodes[i] = self._episode(whole, env_index)
                env_index += 1

    def _episode(self, whole: SingleAgentEpisode, env_index: int) -> SingleAgentEpisode:
        """Calls the events of one episode, and returns the one that they were given."""
        kwargs = {
            "env": self._env_runner.env.unwrapped,
            "env_index": env_index,
            "rl_module": self._env_runner.module_or_none(),
        }
        episode = whole
        if not self._given.isdisjoint(_WHILE_WRITTEN):
            episode = self._grown(whole, kwargs)
        self.call("on_episode_end", episode=episode, prev_episode_chunks=[], **kwargs)
        episode = episode if episode.is_numpy else episode.to_numpy()
        check_unchanged(episode)
        return episode

    def _grown(
        self, whole: SingleAgentEpisode, kwargs: dict[str, Any]
    ) -> SingleAgentEpisode:
        """Writes an episode a second time, and calls the events meanwhile."""
        episode = SingleAgentEpisode()
        episode.custom_data.update(whole.custom_data)
        self.call("on_episode_created", episode=episode, **kwargs)
        observations, infos = whole.get_observations(), whole.get_infos()
        actions, rewards = whole.get_actions(), whole.get_rewards()
        outputs = {k: b.data for k, b in whole.extra_model_outputs.items()}
        episode.add_env_reset(observation=observations[0], infos=infos[0])
        self.call("on_episode_start", episode=episode, **kwargs)
        for t, action in enumerate(actions):
            is_last = t + 1 == len(actions)
            episode.add_env_step(
                observation=observations[t + 1],
                action=action,
                reward=rewards[t],
                infos=infos[t + 1],
                terminated=is_last and whole.is_terminated,
                truncated=is_last and whole.is_truncated,
                extra_model_outputs={k: data[t] for k, data in outputs.items()},
            )
            self.call("on_episode_step", episode=episode, **kwargs)
        return episode

    def call_for_sample(self, episodes: list[SingleAgentEpisode]) -> None:
        """Calls `on_sample_end`.

        Raises:
            ValueError: see `call_for_episodes`; or a callback took episodes away.
        """
        if "on_sample_end" not in self._given:
            return
        samples = list(episodes)
        self.call("on_sample_end", samples=samples)
        if [id(e) for e in samples] != [id(e) for e in episodes]:
            raise ValueError(
                f"`samples` ({len(samples)} episodes) must stay the {len(episodes)} "
                "that a callback was given, because groups are learned from whole. Set "
                "`.training(mask_truncated=True)` or `no_signal_groups` to leave some "
                "out."
            )
        for episode in episodes:
            check_unchanged(episode)


def check_unchanged(episode: SingleAgentEpisode) -> None:
    """Checks that an episode still holds what was sampled and judged.

    Raises:
        ValueError: it does not; advantages follow from the response's judged steps, so
            that a change would be half ignored.
    """
    whole = SampledResponse.of(episode).episode()
    pairs = {
        "observations": (episode.get_observations(), whole.get_observations()),
        "actions": (episode.get_actions(), whole.get_actions()),
        "rewards": (episode.get_rewards(), whole.get_rewards()),
        **{
            name: (episode.get_extra_model_outputs(name), buffer.data)
            for name, buffer in whole.extra_model_outputs.items()
        },
    }
    for name, (now, sampled) in pairs.items():
        if not np.array_equal(now, sampled):
            raise ValueError(
                f"`{name}` of an episode must not be changed by a callback, because "
                "advantages follow from the judged steps. Change rewards in the "
                "environment's step scorer or verifier, advantages in a learner "
                "connector."
            )
