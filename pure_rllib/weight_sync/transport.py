"""Which way weights go: by Ray's object store, or sent from GPU to GPU."""

from typing import Any, Literal

from pure_rllib.weight_sync.nccl import NCCLBackend

WeightTransport = Literal["auto", "files", "broadcast"]
"""Values of `weight_transport`; "files" is the object store."""


def choose_backend(config: Any) -> NCCLBackend | None:
    """Returns by which backend weights are sent; None: by the object store.

    Args:
        config: the algorithm's.
    """
    if config.weight_transport == "files" or config.generator != "vllm":
        return None
    are_apart = config.num_env_runners and config.num_learners
    return NCCLBackend() if are_apart and _has_gpus(config) else None


def check_weight_transport(config: Any) -> None:
    """Checks a transport that was asked for.

    Args:
        config: the algorithm's.

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
    if not _has_gpus(config):
        raise ValueError(
            f"{asked} needs whole GPUs: `num_gpus_per_learner` "
            f"({config.num_gpus_per_learner}) and `num_gpus_per_env_runner` "
            f"({config.num_gpus_per_env_runner}) must both be at least 1, because NCCL "
            f"connects different GPUs only. Set them so, {else_files}."
        )


def _has_gpus(config: Any) -> bool:
    """Whether learners and env runners have GPUs that they share with nobody."""
    return bool(config.num_gpus_per_learner >= 1 <= config.num_gpus_per_env_runner)
