"""What every generator offers. N prompts, G responses per prompt, T response tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


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

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Takes over the policy's weights, by parameter name, and their version."""
