"""Engines that sample, each in a Ray actor, and what makes up for one that dies."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from pure_rllib.evaluation.settings import PolicySettings
from pure_rllib.generation.base import Finished, Request
from pure_rllib.generation.make_generator import make_generator
from pure_rllib.generation.vllm_generator import VLLMGenerator
from pure_rllib.models.stop_strings import StopStrings

_LOGGER = logging.getLogger(__name__)
_MAX_ATTEMPTS = 3
"""How often work is asked for whose engine was lost: once, and twice again."""
_SEND_EVERY_S = 0.25


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How an engine is made.

    Attributes:
        policy: its settings; the model is a local folder.
        pad_token_id: fills the left of shorter prompts.
        eos_token_ids: the ids that end a response.
        stop: the strings that do, too.
        max_model_len: tokens of the longest prompt and response together.
    """

    policy: PolicySettings
    pad_token_id: int
    eos_token_ids: Sequence[int]
    max_model_len: int
    stop: StopStrings | None = None

    @property
    def tensor_parallel_size(self) -> int:
        """Parts that the model is in."""
        return int(self.policy.generator_kwargs.get("tensor_parallel_size", 1))

    @property
    def num_gpus(self) -> float:
        """Of one engine; to be asked for where Ray runs."""
        chosen = self.policy.num_gpus
        return default_gpus(self.tensor_parallel_size) if chosen is None else chosen


def default_gpus(wanted: int = 1) -> float:
    """Returns the wanted number of GPUs where Ray has any, else 0."""
    return float(wanted) if ray.cluster_resources().get("GPU") else 0.0


class Engine:
    """Samples what it is asked for; to be made a Ray actor.

    Args:
        settings: see `EngineSettings`.
    """

    def __init__(self, settings: EngineSettings):
        self._settings, policy = settings, settings.policy
        kwargs = dict(policy.generator_kwargs)
        if policy.generator == "transformers":
            kwargs["max_batch_size"] = policy.batch_size
        self._generator = make_generator(
            policy.generator,
            {
                "model": policy.model,
                "dtype": policy.dtype,
                "attn_implementation": None,
                "trust_remote_code": policy.trust_remote_code,
                "seed": 0,
            },
            kwargs,
            pad_token_id=settings.pad_token_id,
            eos_token_ids=settings.eos_token_ids,
            stop=settings.stop,
            max_model_len=settings.max_model_len,
        )
        if isinstance(self._generator, VLLMGenerator):
            self._generator.load_folder(Path(policy.model))

    def facts(self) -> dict[str, Any]:
        """Returns what of this engine can change a response."""
        policy = self._settings.policy
        libraries = ["torch", "transformers"]
        if policy.generator == "vllm":
            libraries.append("vllm")
        has_gpu = torch.cuda.is_available()
        return {
            "generator": policy.generator,
            # Not by the packages' names: builds of vLLM are called otherwise.
            "versions": {n: import_module(n).__version__ for n in libraries},
            "dtype": policy.dtype,
            "tensor_parallel_size": self._settings.tensor_parallel_size,
            "device": torch.cuda.get_device_name() if has_gpu else "CPU",
        }

    def sample(self, blocks: Sequence[Sequence[Request]]) -> Iterator[list[Finished]]:
        """Yields responses, a few at a time, as they are finished.

        Args:
            blocks: vLLM has all of them at once and makes its own batches; transformers
                decodes one after the other.
        """
        is_vllm = self._settings.policy.generator == "vllm"
        if is_vllm:
            blocks = [[request for block in blocks for request in block]]
        ready: list[Finished] = []
        sent, start = time.monotonic(), 0
        for block in blocks:
            for one in self._generator.stream(block):
                ready.append(replace(one, number=start + one.number))
                # Those of a transformers batch are finished together.
                if is_vllm and time.monotonic() - sent > _SEND_EVERY_S:
                    yield ready
                    ready, sent = [], time.monotonic()
            yield ready
            ready, start = [], start + len(block)


class EnginePool:
    """Engines on a cluster, as one.

    Args:
        settings: of each.
        num_engines: >= 1.
    """

    def __init__(self, settings: EngineSettings, num_engines: int):
        self._settings = settings
        self._resources = {"CPU": settings.policy.num_cpus, "GPU": settings.num_gpus}
        for kind, each in self._resources.items():
            there = ray.cluster_resources().get(kind, 0.0)
            if num_engines * each > there:
                _LOGGER.warning(
                    "%d engines want %g %ss and Ray has %g: some wait until there are "
                    "more.",
                    *(num_engines, num_engines * each, kind, there),
                )
        self._actors = [self._start() for _ in range(num_engines)]

    def _start(self) -> Any:
        cpus, gpus = self._resources.values()
        actor_class: Any = ray.remote(Engine)
        return actor_class.options(num_cpus=cpus, num_gpus=gpus).remote(self._settings)

    def facts(self) -> dict[str, Any]:
        """Returns what of the engines can change a response.

        Raises:
            RuntimeError: an engine cannot be started.
        """
        try:
            facts: dict[str, Any] = ray.get(self._actors[0].facts.remote())
        except RayActorError as error:
            raise RuntimeError(
                f"An engine could not be started: {error}. See policy.generator_kwargs "
                "for its settings."
            ) from error
        return facts

    def sample(self, blocks: Sequence[Sequence[Request]]) -> Iterator[list[Finished]]:
        """Samples blocks of requests, each on one engine, and yields as they finish.

        What an engine was lost with, a new one is asked for.

        Args:
            blocks: dealt to the engines in turn. A request's number is its place in
                all of them.

        Raises:
            RuntimeError: engines were lost with the same work three times.
        """
        numbered: list[list[tuple[int, Request]]] = []
        start = 0
        for block in blocks:
            numbered.append(list(enumerate(block, start)))
            start += len(block)
        shares = [
            _Share(actor, numbered[i :: len(self._actors)])
            for i, actor in enumerate(self._actors)
        ]
        running = {share.ask(): share for share in shares if share.blocks}
        while running:
            (stream,), _ = ray.wait([*running], num_returns=1)
            share = running[stream]
            try:
                finished = share.take(stream)
            except StopIteration:
                del running[stream]
                continue
            except RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except RayActorError as error:
                del running[stream]
                share.lost(error)
                if share.blocks:
                    share.actor = self._replace(share.actor)
                    running[share.ask()] = share
                continue
            if finished:
                yield finished

    def _replace(self, actor: Any) -> Any:
        self._actors[self._actors.index(actor)] = new = self._start()
        return new

    def stop(self) -> None:
        """Ends the engines."""
        for actor in self._actors:
            ray.kill(actor)


class _Share:
    """What one engine is asked for, and what of it is still to come."""

    def __init__(self, actor: Any, blocks: list[list[tuple[int, Request]]]):
        self.actor, self.blocks = actor, blocks
        self._numbers: list[int] = []
        self._done: set[int] = set()
        self._attempts = 0

    def ask(self) -> Any:
        """Has the engine begin; returns its stream of answers."""
        self._attempts += 1
        self._numbers = [number for block in self.blocks for number, _ in block]
        method = self.actor.sample.options(num_returns="streaming")
        return method.remote([[one for _, one in block] for block in self.blocks])

    def take(self, stream: Any) -> list[Finished]:
        """Returns the next answers, numbered as in all blocks."""
        answers = [
            replace(one, number=self._numbers[one.number])
            for one in ray.get(next(stream))
        ]
        new = [one for one in answers if one.number not in self._done]
        self._done.update(one.number for one in new)
        return new

    def lost(self, error: Exception) -> None:
        """Leaves the blocks that are not whole yet.

        These are asked for again as a whole: what shares a batch must stay the same for
        a response to stay the same to the last digit.
        """
        self.blocks = [b for b in self.blocks if not self._done.issuperset(dict(b))]
        missing = sum(n not in self._done for b in self.blocks for n, _ in b)
        if missing and self._attempts >= _MAX_ATTEMPTS:
            raise RuntimeError(
                f"{missing} samples could not be had in {_MAX_ATTEMPTS} attempts, "
                f"because the engine was lost each time: {error}. What is sampled is "
                "kept: go on with --resume. If memory ran out, lower `max_batch_size` "
                "or `gpu_memory_utilization` in policy.generator_kwargs."
            ) from error
        if missing:
            _LOGGER.warning(
                "An engine was lost with %d samples to come; a new one is asked for "
                "them.",
                missing,
            )
