"""What every generator offers. N prompts, G responses per prompt, T response tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How responses are sampled.

    Attributes:
        max_response_tokens: the budget T, EOS included; >= 1.
        temperature: divides the logits; 0.0 is greedy.
        top_p: nucleus size in (0, 1]; the tokens outside are never sampled.
    """

    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled response.

    Attributes:
        token_ids: `[T]` int64, EOS included when it was sampled.
        logps: `[T]` float32, log-probability of each sampled id under the whole
            distribution at the sampling temperature (at temperature 1 for greedy).
        terminated: True if it ended with EOS, False if the token budget ran out.
    """

    token_ids: np.ndarray
    logps: np.ndarray
    terminated: bool


class WeightSource(Protocol):
    """A policy's weights of one version, to be read one shard at a time.

    Names are those of the policy's Hugging Face parameters and persistent buffers; of
    tied tensors there is one name.
    """

    version: int

    @property
    def folder(self) -> Path | None:
        """Where they lie as safetensors on this node; None: in this process only."""

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """Yields tensors by name: to be read only, and before the next shard."""


class Generator(Protocol):
    """Samples responses: token ids in, token ids and log-probabilities out."""

    weights_version: int

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        params: SamplingParams,
        seeds: Sequence[int],
    ) -> list[list[Response]]:
        """Samples `group_size` responses to each of N prompts.

        Args:
            prompts: N lists of token ids, each of length >= 1.
            group_size: G, responses per prompt.
            params: temperature, nucleus and budget.
            seeds: N numbers. Response g of prompt i depends on `seeds[i]`, g and the
                weights only, not on the other prompts of the call.

        Returns:
            N lists of G responses.
        """

    def load_weights(self, weights: WeightSource) -> None:
        """Takes over the policy's weights and their version."""

    def logps(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Returns what the policy thinks of given sequences; nothing is sampled.

        Args:
            sequences: lists of L >= 2 token ids.

        Returns:
            For each its `[L - 1]` float32 log-probabilities of all ids but the first,
            at temperature 1.
        """

    def close(self) -> None:
        """Frees what the generator holds; it cannot be used afterwards."""
