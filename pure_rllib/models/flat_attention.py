"""Attention over a flat row: each segment sees its prefix and, causally, itself.

It is registered with transformers and computes by SDPA, segments of like size at once.
N tokens of a flat row, H heads, D channels of a head; S segments at once, of at most Q
tokens, which see at most K.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pure_rllib.models import columns
from pure_rllib.models.flat_rows import FlatRow, Segment, lay_out

_NAME = "flat_row"
_LAYER_TYPES = {"full_attention", "sliding_attention"}
# A call of SDPA may pad its pairs of query and key by so much, or be so small that
# this does not matter beside the time of a call.
_MAX_PADDED, _SMALL = 1.5, 2**18
# Of the norm of a hidden state: rounding stays well below, a neighbour's tokens do not.
_MAX_GAP, _MAX_GAP_HALF = 1e-3, 0.1


@dataclass(slots=True)
class _Call:
    """Segments whose attention is one call of SDPA.

    Attributes:
        queries: `[S, Q]` places in the flat row; behind a segment its first one.
        keys: `[S, K]` places of what they see, the prefix before the segment.
        query_columns: `[S, Q]` where a query stands among its keys.
        num_keys: `[S]` keys that are not padding.
        is_plain: whether no segment has a prefix, so that Q = K.
        masks: by sliding window, as layers ask for them.
    """

    queries: Tensor
    keys: Tensor
    query_columns: Tensor
    num_keys: Tensor
    is_plain: bool
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """Returns `[S, 1, Q, K]` bool; None: SDPA's own causal mask will do."""
        width = self.keys.shape[1]
        window = None if window is None or window >= width else window
        if self.is_plain and window is None:
            return None
        if window not in self.masks:
            key_columns = torch.arange(width, device=self.keys.device)
            distance = self.query_columns[:, :, None] - key_columns
            is_seen = (distance >= 0) & (distance < (window or width))
            is_seen &= (key_columns < self.num_keys[:, None])[:, None]
            self.masks[window] = is_seen[:, None]
        return self.masks[window]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The attention of a flat row, the same in all layers.

    Attributes:
        calls: together they have every segment once.
        order: `[N]` where each token stands in the calls' results.
    """

    calls: Sequence[_Call]
    order: Tensor


def takes_flat_rows(model: Any) -> bool:
    """Returns whether `set_flat_attention` took a model."""
    return bool(model.config._attn_implementation == _NAME)


def flat_inputs(row: FlatRow) -> dict[str, Any]:
    """Returns a flat row as keywords for the decoder of a model that takes it."""
    device = row.token_ids.device
    return {
        "input_ids": row.token_ids[None],
        "position_ids": row.positions[None],
        # Four dimensions make it one's own mask: transformers would make one, N x N.
        # Nobody reads it; an attention that did would not go unnoticed.
        "attention_mask": torch.full((1, 1, 1, 1), torch.nan, device=device),
        _NAME: _plan(row.segments, device),
    }


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Takes `[1, H, N, D]` each and returns `[1, N, H, D]`; other rows go to SDPA."""
    plan: _Plan | None = kwargs.pop(_NAME, None)
    if plan is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return result
    results = []
    for call in plan.calls:
        found, _ = sdpa_attention_forward(
            module,
            _take(query, call.queries),
            _take(key, call.keys),
            _take(value, call.keys),
            call.mask(sliding_window),
            **kwargs,
        )
        results.append(found.flatten(0, 1).flatten(1))
    ordered = embedding(plan.order, torch.cat(results))
    return ordered.unflatten(1, (query.shape[1], -1))[None], None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def _take(heads: Tensor, places: Tensor) -> Tensor:
    """Takes `[S, K]` places out of `[1, H, N, D]`: `[S, H, K, D]`."""
    # Not by an index: the backward pass of `embedding` adds whole rows at a time.
    taken = embedding(places, heads[0].transpose(0, 1).flatten(1))
    return taken.unflatten(2, (heads.shape[1], -1)).transpose(1, 2)


def _plan(segments: Sequence[Segment], device: torch.device) -> _Plan:
    order = torch.empty(sum(s.stop - s.start for s in segments), dtype=torch.int64)
    calls, end = [], 0
    for batch in _alike(segments):
        start, stop, prefix_start, prefix_stop = torch.tensor(batch).t()[..., None]
        num_own, num_prefix = stop - start, prefix_stop - prefix_start
        num_keys = num_prefix + num_own
        query, key = torch.arange(int(num_own.max())), torch.arange(int(num_keys.max()))
        own = query.where(query < num_own, 0)
        keys = torch.where(
            key < num_prefix, prefix_start + key, start + key - num_prefix
        )
        calls.append(
            _Call(
                (start + own).to(device),
                keys.where(key < num_keys, 0).to(device),
                (num_prefix + own).to(device),
                num_keys[:, 0].to(device),
                is_plain=not num_prefix.any(),
            )
        )
        is_real = query < num_own
        numbers = torch.arange(end, end + is_real.numel()).view(is_real.shape)
        order[(start + own)[is_real]] = numbers[is_real]
        end += is_real.numel()
    return _Plan(calls, order.to(device))


def _alike(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Puts segments together whose attention needs little padding as one call."""

    def size(segment: Segment) -> tuple[bool, int, int]:
        num_own = segment.stop - segment.start
        num_prefix = segment.prefix_stop - segment.prefix_start
        # Without prefixes attention is plainly causal, and needs no mask.
        return num_prefix > 0, num_prefix + num_own, num_own

    batches: list[list[Segment]] = []
    num_pairs, longest, most_keys, kind = 0, 0, 0, False
    for segment in sorted(segments, key=size, reverse=True):
        has_prefix, num_keys, num_own = size(segment)
        num_pairs, longest = num_pairs + num_own * num_keys, max(longest, num_own)
        fits = False
        if batches and has_prefix == kind:
            padded = (len(batches[-1]) + 1) * longest * most_keys
            fits = padded <= max(_SMALL, _MAX_PADDED * num_pairs)
        if fits:
            batches[-1].append(segment)
            continue
        batches.append([segment])
        kind, most_keys, longest = has_prefix, num_keys, num_own
        num_pairs = num_own * num_keys
    return batches


def set_flat_attention(model: Any) -> str | None:
    """Has a model take flat rows, where its hidden states are then those of rows alone.

    Args:
        model: a Hugging Face causal language model in evaluation mode.

    Returns:
        None, or why the model was left as it is.
    """
    if not (model._supports_attention_backend and model._supports_sdpa):
        return "its attention is its own, and not one that transformers can exchange"
    kinds = set(getattr(model.config, "layer_types", None) or ()) - _LAYER_TYPES
    if kinds:
        return f"its layers of {', '.join(sorted(kinds))} read a row as one text"
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    gap = _largest_gap(model)
    is_exact = next(model.parameters()).dtype == torch.float32
    if gap <= (_MAX_GAP if is_exact else _MAX_GAP_HALF):
        return None
    model.set_attn_implementation(before)
    return (
        f"its hidden states differ by {gap:.2g} of their norm from those of rows alone"
    )


@torch.no_grad()
def _largest_gap(model: Any) -> float:
    """Compares three rows, two of one prompt, in a flat row with each alone."""
    device = next(model.parameters()).device
    row_lens = torch.tensor([9, 7, 8])
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ids = (7919 * torch.arange(27).view(3, 9) + 1) % vocab_size
    ids[1, :5] = ids[0, :5]
    row = lay_out(
        {
            columns.INPUT_IDS: ids,
            columns.PROMPT_LENS: torch.tensor([5, 5, 3]),
            columns.RESPONSE_LENS: row_lens - torch.tensor([5, 5, 3]),
            columns.GROUP_ID: torch.tensor([0, 0, 1]),
        }
    ).to(device)
    decoder = model.base_model
    flat = decoder(**flat_inputs(row), use_cache=False)[0][0].float()
    gaps = []
    for length, own, places in zip(row_lens, ids.to(device), row.places, strict=True):
        alone = decoder(input_ids=own[None, :length], use_cache=False)[0][0].float()
        gaps.append((flat[places[:length]] - alone).norm(dim=-1) / alone.norm(dim=-1))
    return float(torch.cat(gaps).max())
