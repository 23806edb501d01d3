"""Before a run: embedded models, Ray, and what the console is spared."""

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import ray
from tqdm import tqdm

from pure_rllib.algorithms import PUREConfig
from pure_rllib.arithmetic import cache
from pure_rllib.envs.arithmetic import NEURAL_PRM, TASKS


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


def embedded_models(configs: Iterable[PUREConfig]) -> list[str]:
    """Names the embedded models that runs will need, without the prefix."""
    wanted: dict[str, None] = {}
    for config in configs:
        env_config = config.env_config
        model = config.model_config.get("model")
        if config.env == "pure_rllib/Arithmetic-v0":
            task = env_config.get("task", "z")
            if model is None and task in TASKS:
                model = TASKS[task][1]
            is_neural = env_config.get("process_rewards", "neural") == "neural"
            if is_neural and task == "z" and env_config.get("prm") is None:
                wanted[NEURAL_PRM] = None
        for given in (model, *env_config.values()):
            for reference in given if isinstance(given, list | tuple) else [given]:
                if isinstance(reference, str) and reference.startswith(cache.PREFIX):
                    wanted[reference] = None
    return [name.removeprefix(cache.PREFIX) for name in wanted]


def prepare_models(configs: Iterable[PUREConfig], stream: TextIO | None = None) -> None:
    """Makes the embedded models that are not in the cache yet, and shows how far it is.

    Raises:
        ValueError: an embedded model has an unknown name.
        RuntimeError: training a model missed its target.
    """
    names = embedded_models(configs)
    missing = [name for name in names if not cache.model_folder(name).is_dir()]
    if not missing:
        return
    stream = sys.stderr if stream is None else stream
    stream.write(
        f"Preparing {', '.join(missing)}: trained from scratch once, then kept in "
        f"{cache.cache_folder()}\n"
    )
    if not stream.isatty():
        cache.prepare(missing, _Lines(stream))
        return
    form = "{percentage:3.0f}% {bar} {desc}"
    with tqdm(total=100, file=stream, leave=False, bar_format=form) as bar:

        def show(text: str, fraction: float) -> None:
            bar.set_description_str(text, refresh=False)
            bar.update(100 * fraction - bar.n)

        cache.prepare(missing, show)


class _Lines:
    """Progress in a file or a pipe: a line at every tenth."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._shown = -1

    def __call__(self, text: str, fraction: float) -> None:
        tenth = int(10 * fraction)
        if tenth > self._shown:
            self._shown = tenth
            self._stream.write(f"{fraction:4.0%} {text}\n")
            self._stream.flush()


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
        options: `num_cpus`, `num_gpus`, `address`.
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
