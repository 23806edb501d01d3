"""Before a run: Ray, and what the console is spared."""

import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

import ray

from pure_rllib.algorithms import PUREConfig


def quiet() -> None:
    """Keeps notes for developers of other libraries off the console."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"ray\.")
    for name in ("ray", "ray.rllib", "ray.tune", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def start_ray(
    config: PUREConfig,
    options: Mapping[str, Any] | None = None,
    *,
    verbose: bool = False,
) -> None:
    """Starts Ray on this machine, or joins a cluster, unless it runs already.

    Args:
        config: of a run; it gets at least the CPUs that it asks for, because Ray would
            else wait for them without end.
        options: `num_cpus`, `num_gpus`, `object_store_memory`, `address`.
        verbose: show what remote processes write.
    """
    if ray.is_initialized():
        return
    options = dict(options or {})
    options.setdefault("address", os.environ.get("RAY_ADDRESS"))
    if options["address"] is None:
        options["address"] = "local"
        options.setdefault("num_cpus", max(os.cpu_count() or 1, cpus_of(config)))
    ray.init(
        **options,
        include_dashboard=False,
        configure_logging=True,
        logging_level=logging.INFO if verbose else logging.ERROR,
        log_to_driver=verbose,
    )


def cpus_of(config: PUREConfig) -> int:
    """Returns how many CPUs a run asks Ray for."""
    runners = config.num_env_runners * config.num_cpus_per_env_runner
    per_learner = config.num_cpus_per_learner
    learners = config.num_learners * (1 if per_learner == "auto" else per_learner)
    return int(-(-(config.num_cpus_for_main_process + runners + learners) // 1))
