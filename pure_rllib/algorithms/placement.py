"""Where Ray puts learners and env runners, unless a trial of Tune has its places.

Learners are packed on as few nodes as possible, because they exchange gradients all the
time. Env runners are spread over the nodes: they share CPUs, memory and network evenly,
and a lost node takes few of them. Under Ray Tune a trial's placement group holds a
place for each actor, and its `placement_strategy` (`.resources()`) decides.
"""

import logging
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.annotations import override
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    remove_placement_group,
)

logger = logging.getLogger(__name__)

PLACEMENT_TIMEOUT_S = 120.0
"""How long to wait for room for the learners."""


def pack_learners(config: Any) -> PlacementGroup | None:
    """Reserves places for remote learners, on as few nodes as possible.

    Args:
        config: the `PUREConfig`.

    Returns:
        The places, which RLlib's learner group frees when it is shut down; None where
        there are no remote learners, or a trial has its places.

    Raises:
        RuntimeError: the cluster has no room.
    """
    if config.num_learners == 0 or ray.util.get_current_placement_group() is not None:
        return None
    num_cpus = config.num_cpus_per_learner
    if num_cpus == "auto":
        num_cpus = 0 if config.num_gpus_per_learner else 1
    wanted = {
        "CPU": num_cpus,
        "GPU": config.num_gpus_per_learner,
        **(config.custom_resources_per_learner or {}),
    }
    bundle = {name: amount for name, amount in wanted.items() if amount}
    places = placement_group([bundle] * config.num_learners, strategy="PACK")
    if not places.wait(PLACEMENT_TIMEOUT_S):
        remove_placement_group(places)
        raise RuntimeError(
            f"`num_learners` ({config.num_learners}), with {bundle} each, must fit "
            "into the cluster, because all learners work together. No room was found "
            f"in {PLACEMENT_TIMEOUT_S:g} s; all nodes together have "
            f"{ray.cluster_resources()}, of which {ray.available_resources()} are "
            "free. Set fewer learners, or add nodes."
        )
    return places


class SpreadEnvRunnerGroup(EnvRunnerGroup):
    """RLlib's group, whose remote env runners are spread over the nodes.

    Ray's default fills half of a node first.
    """

    @override(EnvRunnerGroup)
    def _setup(self, **kwargs: Any) -> None:
        if ray.util.get_current_placement_group() is None:
            self._remote_args["scheduling_strategy"] = "SPREAD"
        # Ray starts an actor again with the arguments of its first start, and forgets
        # large ones unless somebody holds them.
        self._held_env_creator = ray.put(self._env_creator)
        super()._setup(**kwargs)

    @override(EnvRunnerGroup)
    def _make_worker(self, **kwargs: Any) -> Any:
        if kwargs["worker_index"] > 0:
            kwargs["env_creator"] = self._held_env_creator
        return super()._make_worker(**kwargs)


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
    _warn_of_missing_cpus(config)
    return SpreadEnvRunnerGroup(
        env_creator=algorithm.env_creator,
        validate_env=algorithm.validate_env,
        default_policy_class=algorithm.get_default_policy_class(config),
        config=config,
        local_env_runner=config.create_local_env_runner,
        logdir=algorithm.logdir,
        tune_trial_id=algorithm.trial_id,
    )


def _warn_of_missing_cpus(config: Any) -> None:
    """Says what Ray waits for, without a word, until somebody adds a node."""
    if ray.util.get_current_placement_group() is not None:
        return
    needed = config.num_env_runners * config.num_cpus_per_env_runner
    free = ray.available_resources().get("CPU", 0.0)
    if needed > free:
        logger.warning(
            "`num_env_runners` (%d) at %g CPUs each need %g CPUs, and %g of the "
            "cluster's are free: the run waits until there are more. Lower it, start "
            "Ray with a larger `num_cpus`, or add nodes.",
            config.num_env_runners,
            config.num_cpus_per_env_runner,
            needed,
            free,
        )
