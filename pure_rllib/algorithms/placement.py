"""Room for learners and env runners, and what is said where there is none.

Where they go is up to Ray, and to `.resources(placement_strategy=...)`: under Ray Tune
for all actors of a trial, else for the learners.
"""

import logging
from typing import Any

import ray
from ray.rllib.algorithms.utils import _get_learner_bundles
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    remove_placement_group,
)

from pure_rllib.rewards.prm.actors import LEAST_BUNDLE

logger = logging.getLogger(__name__)

PLACEMENT_TIMEOUT_S = 120.0
"""How long to wait for room for the learners."""


def learners_places(config: Any) -> PlacementGroup | None:
    """Reserves places for remote learners, for which Ray would wait without a word.

    Args:
        config: the `LLMConfig`.

    Returns:
        The places, which RLlib's learner group frees when it is shut down; None where
        there are no remote learners, or a trial has its places.

    Raises:
        RuntimeError: the cluster has no room.
    """
    if config.num_learners == 0 or ray.util.get_current_placement_group() is not None:
        return None
    bundles = [
        {name: amount for name, amount in bundle.items() if amount} or LEAST_BUNDLE
        for bundle in _get_learner_bundles(config)
    ]
    places = placement_group(bundles, strategy=config.placement_strategy)
    if not places.wait(PLACEMENT_TIMEOUT_S):
        remove_placement_group(places)
        raise RuntimeError(
            f"`num_learners` ({config.num_learners}), with {bundles[0]} each, must fit "
            "into the cluster, because all learners work together. No room was found "
            f"in {PLACEMENT_TIMEOUT_S:g} s; all nodes together have "
            f"{ray.cluster_resources()}, of which {ray.available_resources()} are "
            "free. Set fewer learners, or add nodes."
        )
    return places


def warn_of_missing_cpus(config: Any) -> None:
    """Says what Ray waits for, until somebody adds a node, to start env runners."""
    if ray.util.get_current_placement_group() is not None:
        return
    of_learners = sum(b.get("CPU", 0.0) for b in _get_learner_bundles(config))
    needed = config.num_env_runners * config.num_cpus_per_env_runner
    needed += of_learners if config.num_learners else 0.0
    free = ray.available_resources().get("CPU", 0.0)
    if needed > free:
        logger.warning(
            "`num_env_runners` (%d) at %g CPUs each and `num_learners` (%d) need %g "
            "CPUs, and %g of the cluster's are free: the run waits until there are "
            "more. Lower them, start Ray with a larger `num_cpus`, or add nodes.",
            config.num_env_runners,
            config.num_cpus_per_env_runner,
            config.num_learners,
            needed,
            free,
        )
