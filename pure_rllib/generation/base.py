"""What every generator offers and checks.

N prompts, G responses per prompt, T response tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pure_rllib.models.export import WeightSource
from pure_rllib.models.fingerprints import HeldTensors


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
        token_ids: `[T]` int64, EOS or the tokens of a stop string included where it
            ended with one.
        logps: `[T]` float32, log-probability of each sampled id under the whole
            distribution at the sampling temperature (at temperature 1 for greedy).
        terminated: True if it ended with EOS or a stop string, False if the token
            budget ran out.
        versions: `[T]` int64, never falling: of the weights that each token was sampled
            with; None: one, the generator's.
    """

    token_ids: np.ndarray
    logps: np.ndarray
    terminated: bool
    versions: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One response that is asked for.

    Attributes:
        prompt: token ids, at least one.
        params: how it is sampled.
        seed: with the weights all that the response depends on.
    """

    prompt: Sequence[int]
    params: SamplingParams
    seed: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A response without its log-probabilities.

    Attributes:
        number: of its request.
        token_ids: `[T]` int64, as a `Response`'s.
        terminated: likewise.
    """

    number: int
    token_ids: np.ndarray
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
        budgets: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        """Samples `group_size` responses to each of N prompts.

        Args:
            prompts: N lists of token ids, each of length >= 1.
            group_size: G, responses per prompt.
            params: temperature, nucleus and budget.
            seeds: N numbers. Response g of prompt i depends on `seeds[i]`, g and the
                weights only, not on the other prompts of the call.
            budgets: N numbers in place of `params.max_response_tokens`, where prompts
                differ in what is left to their responses.

        Returns:
            N lists of G responses.
        """

    def stream(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """Samples one response to each request, and yields them as they are finished.

        Args:
            requests: N, each with settings of its own; a response does not depend on
                the other requests.
        """

    def load_weights(self, weights: WeightSource) -> None:
        """Takes over the policy's weights and their version."""

    def sleep(self) -> None:
        """Gives its memory to others; it has no weights then until `wake`.

        By default it keeps what it has.
        """
        return

    def wake(self, weights: WeightSource) -> None:
        """Takes its memory back, and over the policy's weights; comes after `sleep`."""
        self.load_weights(weights)

    def logps(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Returns what the policy thinks of given sequences; nothing is sampled.

        Args:
            sequences: lists of L >= 2 token ids.

        Returns:
            For each its `[L - 1]` float32 log-probabilities of all ids but the first,
            at temperature 1.
        """

    def held_tensors(self, version: int) -> HeldTensors:
        """Returns fingerprints of the tensors that responses are sampled with.

        Always of the same tensors in the same order: those that can be read as what
        they were loaded from, which may be none.

        Args:
            version: of the weights; see `fingerprints.columns`.
        """

    def close(self) -> None:
        """Frees what the generator holds; it cannot be used afterwards."""


def checked_eos_ids(eos_token_ids: Iterable[int], vocab_size: int) -> tuple[int, ...]:
    """Returns the ids that end a response, each once and rising.

    Args:
        eos_token_ids: the ids, at least one.
        vocab_size: rows of the model's embedding.

    Raises:
        ValueError: there is none, or one outside the vocabulary.
    """
    checked = tuple(sorted(set(eos_token_ids)))
    if not checked:
        raise ValueError(
            "`eos_token_ids` must hold at least one id because responses end there. "
            "Pass the tokenizer's eos_token_id."
        )
    for token_id in checked:
        check_token_id("eos_token_ids", token_id, vocab_size)
    return checked


def check_token_id(name: str, token_id: int, vocab_size: int) -> None:
    """Raises ValueError, which names the setting, where the model lacks an id."""
    if not 0 <= token_id < vocab_size:
        raise ValueError(
            f"`{name}` ({token_id}) must lie in [0, {vocab_size}) because the model "
            "has no embedding for it. Use the model's own tokenizer."
        )


def check_request(
    prompts: Sequence[Sequence[int]],
    group_size: int,
    params: SamplingParams,
    seeds: Sequence[int],
    context: int | None,
    budgets: Sequence[int] | None = None,
) -> list[int]:
    """Checks the arguments of `Generator.generate`.

    Args:
        prompts: see `Generator.generate`.
        group_size: likewise.
        params: likewise.
        seeds: likewise.
        context: tokens of prompt and response together that the model has positions
            for; None: without a limit.
        budgets: see `Generator.generate`.

    Returns:
        N budgets.

    Raises:
        ValueError: a prompt is empty or, with the budget, over the context, or a
            setting is out of range.
    """
    assert len(seeds) == len(prompts), f"{len(seeds)} seeds, {len(prompts)} prompts"
    assert group_size >= 1, f"group_size {group_size}"
    budgets = list(budgets or [params.max_response_tokens] * len(prompts))
    assert len(budgets) == len(prompts), f"{len(budgets)} budgets, {len(prompts)}"
    least = min([params.max_response_tokens, *budgets])
    if least < 1:
        raise ValueError(
            f"`max_response_tokens` ({least}) must be >= 1 because EOS counts too. "
            "Set `.env_runners(max_response_tokens=...)`."
        )
    if not params.temperature >= 0.0:
        raise ValueError(
            f"`temperature` ({params.temperature}) must be >= 0.0 because it divides "
            "the logits. Set `.env_runners(temperature=1.0)`."
        )
    if not 0.0 < params.top_p <= 1.0:
        raise ValueError(
            f"`top_p` ({params.top_p}) must lie in (0, 1] because it is the share of "
            "probability that is kept. Set `.env_runners(top_p=1.0)`."
        )
    if not all(map(len, prompts)):
        raise ValueError("A prompt must have at least one token; one is empty.")
    needed = [len(p) + b for p, b in zip(prompts, budgets, strict=True)]
    if context and max(needed, default=0) > context:
        worst = needed.index(max(needed))
        budget, longest = budgets[worst], len(prompts[worst])
        raise ValueError(
            f"`max_response_tokens` ({budget}) and the longest prompt ({longest} "
            f"tokens) must fit the model's context ({context}) because it has no later "
            "positions. Set `.env_runners(max_response_tokens="
            f"{max(1, context - longest)})` or drop long prompts."
        )
    return budgets


def check_logps(logps: np.ndarray, weights_version: int) -> None:
    """Raises RuntimeError if a sampled id's log-probability is NaN; any shape."""
    if np.isnan(logps).any():
        raise RuntimeError(
            f"The policy's logits are NaN (weights version {weights_version}), so "
            "nothing can be sampled from it. Go back to an earlier checkpoint."
        )
