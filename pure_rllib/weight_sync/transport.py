"""How weights travel from learners to env runners: by files, or sent directly."""

from typing import Any, Literal

from pure_rllib.generation.weight_transfer import GLOO, NCCL

WeightTransport = Literal["auto", "files", "broadcast"]
"""Values of `weight_transport`."""


def transfer_backend(config: Any) -> str | None:
    """Returns by which backend weights are sent; None: they lie in files.

    Args:
        config: the `PUREConfig`.
    """
    if config.weight_transport == "files":
        return None
    on_gpus = _on_gpus(config)
    if config.weight_transport == "broadcast":
        return NCCL if all(on_gpus) else GLOO
    are_apart = config.num_env_runners and config.num_learners
    return NCCL if config.generator == "vllm" and are_apart and all(on_gpus) else None


def workers_per_engine(config: Any) -> int:
    """Returns how many processes an env runner's engine consists of."""
    return int(config.generator_kwargs.get("tensor_parallel_size", 1))


def check_weight_transport(config: Any) -> None:
    """Checks a transport that was asked for.

    Args:
        config: the `PUREConfig`.

    Raises:
        ValueError: weights cannot be sent between these learners and env runners.
    """
    # RLlib validates a copy for evaluation, whose env runners are never made.
    if config.weight_transport != "broadcast" or config.in_evaluation:
        return
    asked = '`weight_transport` ("broadcast")'
    else_files = 'or set `.learners(weight_transport="files")`'
    if config.generator != "vllm":
        raise ValueError(
            f'{asked} must be "auto" or "files" with `generator` '
            f'("{config.generator}"), because vLLM\'s engines receive what is sent. '
            f'Set `.env_runners(generator="vllm")`, {else_files}.'
        )
    for setter in ("env_runners", "learners"):
        name = f"num_{setter}"
        if not getattr(config, name):
            raise ValueError(
                f"{asked} needs a `{name}` ({getattr(config, name)}) of at least 1, "
                "because sender and receivers wait for each other in processes of "
                f"their own. Set `.{setter}({name}=1)`, {else_files}."
            )
    gpus = (config.num_gpus_per_learner, config.num_gpus_per_env_runner)
    if any(gpus) and not all(_on_gpus(config)):
        raise ValueError(
            f"{asked} needs whole GPUs for all or for none: `num_gpus_per_learner` "
            f"({gpus[0]}) and `num_gpus_per_env_runner` ({gpus[1]}) must both be at "
            "least 1, or both 0, because NCCL connects different GPUs only. Set them "
            f"so, {else_files}."
        )
    if not any(gpus) and workers_per_engine(config) > 1:
        raise ValueError(
            f"{asked} needs a `tensor_parallel_size` ({workers_per_engine(config)}) of "
            "1 on CPUs, because vLLM's further processes do not know how weights are "
            f"sent there. Leave it out, {else_files}."
        )


def _on_gpus(config: Any) -> tuple[bool, bool]:
    """Whether a learner, and an env runner, has a GPU that it shares with nobody."""
    return config.num_gpus_per_learner >= 1, config.num_gpus_per_env_runner >= 1
