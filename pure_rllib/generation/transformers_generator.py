"""Batched sampling from a Hugging Face causal language model.

N prompts, G responses per prompt, B rows in a batch, P prompt tokens (padded),
T response tokens, V vocabulary.
"""

import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from pure_rllib.generation.base import (
    Finished,
    Generator,
    Request,
    Response,
    SamplingParams,
    check_logps,
    check_request,
    check_token_id,
    checked_eos_ids,
)
from pure_rllib.models.ends import is_ended
from pure_rllib.models.export import WeightSource, copy_weights, untied_tensors
from pure_rllib.models.fingerprints import HeldTensors, fingerprint
from pure_rllib.models.logprobs import direct_logps, evaluation_mode
from pure_rllib.models.stop_strings import StopStrings

# Finished rows are dropped once they are this share of the batch: dropping copies the
# cache of the rows that stay, so it is not worth it for each single row.
_DROP_SHARE = 0.15
# Counting finished rows makes a CUDA device wait for the processor, so there it is not
# done at each token.
_TOKENS_PER_COUNT = {"cpu": 1, "cuda": 8}


class TransformersGenerator(Generator):
    """Samples responses from any causal language model with a KV cache.

    Each prompt is run once and its cache repeated for its G responses; rows leave the
    batch (and the cache) as their responses end. Every row has its own random numbers,
    made from the prompt's seed and the row's number in the group, so a response does
    not depend on what else is in the call, up to the rounding of batched products.

    Args:
        model: a live module, shared with the caller: whatever it holds when `generate`
            is called is what is sampled from.
        pad_token_id: fills the left of shorter prompts; never attended to.
        eos_token_ids: the ids that end a response, at least one.
        stop: the strings that end a response.
        max_batch_size: rows decoded at once, >= 1; bounds the memory of the cache.

    Raises:
        ValueError: no EOS id, an id outside the vocabulary, or an empty batch.
    """

    def __init__(
        self,
        model: Any,
        *,
        pad_token_id: int,
        eos_token_ids: Iterable[int],
        stop: StopStrings | None = None,
        max_batch_size: int = 256,
    ):
        self.model = model
        self.pad_token_id = pad_token_id
        self.max_batch_size = max_batch_size
        self.weights_version = 0
        self.stop = stop
        vocab_size = model.get_output_embeddings().weight.shape[0]
        self.eos_token_ids = checked_eos_ids(eos_token_ids, vocab_size)
        check_token_id("pad_token_id", pad_token_id, vocab_size)
        if max_batch_size < 1:
            raise ValueError(
                f"`max_batch_size` ({max_batch_size}) must be >= 1 because it is the "
                "number of rows decoded at once. Set it to 256."
            )
        config = model.config.get_text_config()
        self._context = getattr(config, "max_position_embeddings", None)
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_logits_to_keep = "logits_to_keep" in accepted

    def load_weights(self, weights: WeightSource) -> None:
        """Copies weights into the model in place. See `Generator.load_weights`.

        Raises:
            ValueError: a name or a shape differs from the model's.
        """
        copy_weights(weights, self.model)
        self.weights_version = weights.version

    @torch.inference_mode()
    def logps(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probabilities of given sequences. See `Generator.logps`."""
        with evaluation_mode(self.model):
            # By the pass that also samples.
            return [direct_logps(self.model, ids) for ids in sequences]

    def held_tensors(self, version: int) -> HeldTensors:
        """All of the model's. See `Generator.held_tensors`."""
        return [
            ((name,), fingerprint(tensor, version))
            for name, tensor in untied_tensors(self.model)
        ]

    def close(self) -> None:
        """Nothing: the model is the caller's."""

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        params: SamplingParams,
        seeds: Sequence[int],
        budgets: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        """Samples `group_size` responses to each prompt. See `Generator.generate`.

        Raises:
            ValueError: a prompt is empty or, with the budget, over the model's context,
                or a setting is out of range.
        """
        budgets = check_request(
            prompts, group_size, params, seeds, self._context, budgets
        )
        # Prompts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        rows = [(i, g) for i in order for g in range(group_size)]
        responses: dict[tuple[int, int], Response] = {}
        with evaluation_mode(self.model):
            for start in range(0, len(rows), self.max_batch_size):
                batch = rows[start : start + self.max_batch_size]
                sampled = self._sample_batch(
                    [prompts[i] for i, _ in batch],
                    params,
                    [(seeds[i], g) for i, g in batch],
                    [budgets[i] for i, _ in batch],
                )
                responses.update(zip(batch, sampled, strict=True))
        return [
            [responses[i, g] for g in range(group_size)] for i in range(len(prompts))
        ]

    def stream(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """Samples one response to each request. See `Generator.stream`.

        Neighbours with equal settings share a batch, of `max_batch_size` at most.
        """
        numbered = enumerate(requests)
        for params, alike in itertools.groupby(numbered, lambda item: item[1].params):
            rows = iter(alike)
            while batch := list(itertools.islice(rows, self.max_batch_size)):
                groups = self.generate(
                    [request.prompt for _, request in batch],
                    1,
                    params,
                    [request.seed for _, request in batch],
                )
                for (number, _), (response,) in zip(batch, groups, strict=True):
                    yield Finished(number, response.token_ids, response.terminated)

    def _sample_batch(
        self,
        prompts: list[Sequence[int]],
        params: SamplingParams,
        keys: list[tuple[int, int]],
        budgets: list[int],
    ) -> list[Response]:
        """Decodes one batch of rows; each has a key of its `row_uniforms`."""
        device = next(self.model.parameters()).device
        budget, num_rows = max(budgets), len(prompts)
        cache, logits, positions, mask = self._prefill(prompts, budget, device)
        uniforms = row_uniforms(keys, budget)
        columns = torch.from_numpy(np.ascontiguousarray(uniforms.T)).to(device)
        is_eos = torch.zeros(logits.shape[-1], dtype=torch.bool, device=device)
        is_eos[list(self.eos_token_ids)] = True
        can_stop = None
        if self.stop is not None:
            can_stop = torch.from_numpy(self.stop.can_complete).to(device)
        token_ids = torch.full((budget, num_rows), self.pad_token_id, device=device)
        logps = torch.zeros(budget, num_rows, device=device)
        # `alive[k]` is the row of the call that row k of the batch belongs to.
        alive = torch.arange(num_rows, device=device)
        done = torch.zeros(num_rows, dtype=torch.bool, device=device)
        first_column = mask.shape[1] - budget
        ends = torch.tensor(budgets, device=device)
        tokens_per_count = _TOKENS_PER_COUNT.get(device.type, 8)
        for t in range(budget):
            chosen, chosen_logps = self._choose(logits, params, columns, alive, t)
            token_ids[t, alive] = chosen
            logps[t, alive] = chosen_logps
            ended = (is_eos[chosen] | (ends[alive] == t + 1)) & ~done
            ends[alive] = torch.where(ended, t + 1, ends[alive])
            done |= ended
            counted = (t + 1) % tokens_per_count == 0 or t + 1 == budget
            if counted and can_stop is not None:
                num_new = t % tokens_per_count + 1
                stopped = self._stopped(token_ids[: t + 1], num_new, ends, can_stop)
                ends = torch.minimum(ends, stopped)
                done |= ends[alive] <= t + 1
            num_done = int(done.sum()) if counted else 0
            if num_done == len(done) or t + 1 == budget:
                break
            if num_done >= max(1, _DROP_SHARE * len(done)):
                keep = (~done).nonzero().squeeze(1)
                cache.reorder_cache(keep)  # type: ignore[arg-type]
                alive, chosen, positions = alive[keep], chosen[keep], positions[keep]
                mask, done = mask[keep], done[keep]
            logits = self._forward(
                chosen[:, None], mask[:, : first_column + t + 1], positions + t, cache
            )
        return self._collect(token_ids, logps, ends)

    def _stopped(
        self, token_ids: Tensor, num_new: int, ends: Tensor, can_stop: Tensor
    ) -> Tensor:
        """Looks for stop strings that the newest tokens complete.

        Args:
            token_ids: `[T, B]`, so far.
            num_new: how many of the T were not looked at yet.
            ends: `[B]` tokens of each response, as far as EOS and earlier looks say.
            can_stop: `[V]` bool, True on tokens that may complete a stop string.

        Returns:
            `[B]` the number of tokens after which each response stops, `ends` where it
            does not.
        """
        assert self.stop is not None, "asked only with stop strings"
        num_tokens = len(token_ids)
        new = torch.arange(num_tokens - num_new, num_tokens, device=ends.device)
        candidates = can_stop[token_ids[new]] & (new[:, None] < ends)
        found = ends.clone()
        for row in candidates.any(0).nonzero().squeeze(1).tolist():
            ids = token_ids[:, row].cpu().numpy()
            for at in new[candidates[:, row]].tolist():
                if self.stop.begins_at(ids[: at + 1]) is not None:
                    found[row] = at + 1
                    break
        return found

    def _choose(
        self,
        logits: Tensor,
        params: SamplingParams,
        columns: Tensor,
        alive: Tensor,
        t: int,
    ) -> tuple[Tensor, Tensor]:
        """Token t of the rows `alive` of the batch; `columns` is `[T, B]` uniforms."""
        return choose_tokens(logits, params, columns[t, alive])

    def _prefill(
        self, prompts: list[Sequence[int]], budget: int, device: torch.device
    ) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
        """Runs each different prompt once and repeats the result for its rows.

        Returns:
            The cache of B rows, `[B, V]` logits of the first token, `[B, 1]` position
            of the first token and `[B, P + T]` attention mask.
        """
        distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        where = {prompt: i for i, prompt in enumerate(distinct)}
        width = max(len(prompt) for prompt in distinct)
        ids = np.full((len(distinct), width), self.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(distinct), width + budget), dtype=np.int64)
        for i, prompt in enumerate(distinct):
            ids[i, width - len(prompt) :] = prompt
            mask[i, width - len(prompt) :] = 1
        masks = torch.from_numpy(mask).to(device)
        positions = (masks[:, :width].cumsum(1) - 1).clamp_(min=0)
        cache = DynamicCache(config=self.model.config)
        logits = self._forward(
            torch.from_numpy(ids).to(device), masks[:, :width], positions, cache
        )
        repeat = torch.tensor([where[tuple(p)] for p in prompts], device=device)
        cache.reorder_cache(repeat)  # type: ignore[arg-type]
        return cache, logits[repeat], positions[repeat, -1:] + 1, masks[repeat]

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
    ) -> Tensor:
        """One pass of the model: `[B, V]` float32 logits after the last column."""
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self._takes_positions:
            arguments["position_ids"] = positions
        if self._takes_logits_to_keep:
            arguments["logits_to_keep"] = 1
        output = self.model(**arguments, past_key_values=cache, use_cache=True)
        return output.logits[:, -1].float()

    def _collect(
        self, token_ids: Tensor, logps: Tensor, ends: Tensor
    ) -> list[Response]:
        """Cuts the `[T, B]` tensors into responses."""
        all_ids = np.ascontiguousarray(token_ids.t().cpu().numpy())
        all_logps = np.ascontiguousarray(logps.t().cpu().numpy())
        check_logps(all_logps, self.weights_version)
        responses = []
        for row, end in enumerate(ends.tolist()):
            ids = all_ids[row, :end].copy()
            terminated = is_ended(ids, self.eos_token_ids, self.stop)
            responses.append(Response(ids, all_logps[row, :end].copy(), terminated))
        return responses


def row_uniforms(keys: Sequence[tuple[int, int]], num_tokens: int) -> np.ndarray:
    """Random numbers of each row, which depend on the row's own key only.

    Philox is counter-based: a key is a whole stream, and neighbouring keys give
    independent ones.

    Args:
        keys: B pairs (seed, number in the group); any integers.
        num_tokens: T; a smaller T gives the beginning of the same numbers.

    Returns:
        `[B, T]` float32 in [0, 1).
    """
    uniforms = np.empty((len(keys), num_tokens), dtype=np.float32)
    for row, (seed, member) in enumerate(keys):
        key = np.array([seed % 2**64, member % 2**64], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        generator.random(num_tokens, dtype=np.float32, out=uniforms[row])
    return uniforms


def choose_tokens(
    logits: Tensor, params: SamplingParams, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Chooses one token per row by inverting the cumulative distribution.

    Args:
        logits: `[B, V]` float32, before the temperature.
        params: temperature (0.0 takes the likeliest token) and nucleus.
        uniforms: `[B]` float32 in [0, 1); not used by greedy.

    Returns:
        `[B]` int64 token ids, and `[B]` float32 log-probabilities of them under the
        whole distribution (not the nucleus) at the sampling temperature, at temperature
        1 for greedy.
    """
    if params.temperature == 0.0:
        logps = logits.log_softmax(-1)
        best = logps.argmax(-1)
        return best, logps.gather(1, best[:, None]).squeeze(1)
    if params.temperature != 1.0:
        logits = logits / params.temperature
    logps = logits.log_softmax(-1)
    probs = logps.exp()
    if params.top_p < 1.0:
        probs = _nucleus(probs, params.top_p)
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1]
    # Below the total even after rounding, so that the answer always exists and has a
    # probability above 0.
    target = torch.minimum(
        uniforms * total, torch.nextafter(total, torch.zeros_like(total))
    )
    chosen = torch.searchsorted(cumulative, target[:, None], right=True)
    # NaN logits find nothing; the NaN is then seen in the log-probability.
    chosen = chosen.clamp_(max=logits.shape[1] - 1)
    return chosen.squeeze(1), logps.gather(1, chosen).squeeze(1)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Zeroes what lies outside the fewest likeliest tokens that hold `top_p`."""
    descending, order = probs.sort(dim=-1, descending=True, stable=True)
    before = descending.cumsum(-1) - descending
    descending = descending.masked_fill(before >= top_p, 0.0)
    # The likeliest token stays even if rounding says otherwise.
    return torch.zeros_like(probs).scatter_(1, order, descending)
