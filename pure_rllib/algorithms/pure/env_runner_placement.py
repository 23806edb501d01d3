"""Where Ray puts env runners: spread over the nodes, unless a trial has its places."""

from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.annotations import override


class SpreadEnvRunnerGroup(EnvRunnerGroup):
    """RLlib's group, whose remote env runners are spread over the nodes.

    Ray's default fills a node to a half first. Spread, env runners share the nodes'
    CPUs, memory and network evenly, and a lost node takes few of them. Learners need
    the opposite, and RLlib packs them. Under Ray Tune a trial's placement group holds
    a place for each actor, and its `placement_strategy` (`.resources()`) decides.
    """

    @override(EnvRunnerGroup)
    def _setup(self, **kwargs: Any) -> None:
        if ray.util.get_current_placement_group() is None:
            self._remote_args["scheduling_strategy"] = "SPREAD"
        super()._setup(**kwargs)


def without_env_runners(config: Any) -> Any:
    """Returns a configuration with which RLlib leaves env runners to us.

    RLlib makes them in `Algorithm.setup`, with a class that cannot be chosen.
    """
    local: Any = config.copy(copy_frozen=False)
    local.num_env_runners = 0
    local.freeze()
    return local


def spread_env_runners(algorithm: Any) -> EnvRunnerGroup:
    """Returns the env runners of an algorithm whose setup is through.

    Returns:
        RLlib's group where there is only a local env runner, else one in its place.
    """
    config = algorithm.config
    if config.num_env_runners == 0:
        return algorithm.env_runner_group
    algorithm.env_runner_group.stop()
    return SpreadEnvRunnerGroup(
        env_creator=algorithm.env_creator,
        validate_env=algorithm.validate_env,
        default_policy_class=algorithm.get_default_policy_class(config),
        config=config,
        local_env_runner=config.create_local_env_runner,
        logdir=algorithm.logdir,
        tune_trial_id=algorithm.trial_id,
    )
