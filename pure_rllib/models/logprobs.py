"""Log-probabilities of given tokens, without ever holding `[B, T, V]` logits.

N tokens, H hidden size, V vocabulary, B rows, L columns, T response tokens.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pure_rllib.models.flat_attention import flat_inputs
from pure_rllib.models.flat_rows import FlatRow

LOGP, ENTROPY, MEAN_LOGP = "action_logp", "entropy", "mean_logp"
"""What can be asked for of each token: its log-probability (the name is RLlib's), the
entropy in nats of the distribution that it was drawn from, and the mean of the
log-probabilities of the whole vocabulary there, without gradient."""

_OUTPUTS = (LOGP, ENTROPY, MEAN_LOGP)
# Logits per chunk: 2**24 float32 are 64 MiB, small beside a model with a vocabulary
# that makes chunks necessary, and large enough to keep the matrix products efficient.
_LOGITS_PER_CHUNK = 2**24
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "final_logits_soft_cap")


class _ChunkedLogps(torch.autograd.Function):
    """Forward keeps one number per token; backward recomputes the logits by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor,
        temperature: float,
        chunk_tokens: int,
        outputs: Collection[str],
    ) -> tuple[Tensor | None, ...]:
        num_tokens = hidden.shape[0]
        logps = torch.empty(num_tokens, dtype=torch.float32, device=hidden.device)
        log_sums = torch.empty_like(logps)
        entropy = torch.empty_like(logps) if ENTROPY in outputs else None
        mean_logps = torch.empty_like(logps) if MEAN_LOGP in outputs else None
        for start in range(0, num_tokens, chunk_tokens):
            rows = slice(start, min(start + chunk_tokens, num_tokens))
            logits = _chunk_logits(hidden[rows], weight, bias, temperature)
            chosen = logits.gather(1, token_ids[rows, None]).squeeze(1)
            peak = logits.amax(dim=1, keepdim=True)
            logits.sub_(peak)
            if mean_logps is not None:
                mean_logps[rows] = logits.mean(dim=1)
            if entropy is None:
                sums = logits.exp_().sum(dim=1)
            else:
                exps = logits.exp()
                sums = exps.sum(dim=1)
                entropy[rows] = sums.log() - exps.mul_(logits).sum(dim=1) / sums
            log_sums[rows] = sums.log() + peak.squeeze(1)
            logps[rows] = chosen - log_sums[rows]
            if mean_logps is not None:
                mean_logps[rows] -= sums.log()
        ctx.save_for_backward(hidden, weight, bias, token_ids, log_sums, entropy)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        if mean_logps is not None:
            ctx.mark_non_differentiable(mean_logps)
        return logps, entropy, mean_logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_logps, grad_entropy, _ = grads
        hidden, weight, bias, token_ids, log_sums, entropy = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # float32 whatever the dtype: chunks are added up, and bfloat16 would lose the
        # small ones.
        grad_weight = (
            torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        )
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias else None
        for start in range(0, hidden.shape[0], ctx.chunk_tokens):
            rows = slice(start, min(start + ctx.chunk_tokens, hidden.shape[0]))
            chunk = hidden[rows]
            logits = _chunk_logits(chunk, weight, bias, ctx.temperature)
            logits.sub_(log_sums[rows, None])
            # d logp = onehot - p; d entropy = -p (log p + entropy).
            if grad_entropy is None or entropy is None:
                grad_logits = logits.exp_().mul_(-_column(grad_logps, rows))
            else:
                scale = logits.add(entropy[rows, None])
                scale.mul_(_column(grad_entropy, rows))
                if grad_logps is not None:
                    scale.add_(_column(grad_logps, rows))
                grad_logits = logits.exp_().mul_(scale).neg_()
                del scale
            if grad_logps is not None:
                grad_logits.scatter_add_(
                    1, token_ids[rows, None], _column(grad_logps, rows)
                )
            grad_logits.div_(ctx.temperature)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if grad_weight is not None and weight.dtype == torch.float32:
                grad_weight.addmm_(grad_logits.t(), chunk)
            elif grad_weight is not None:
                grad_weight += grad_logits.t() @ chunk
            del logits, grad_logits
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *(None,) * 4,
        )


def _column(values: Tensor | None, rows: slice) -> Tensor:
    assert values is not None, "a backward pass without any gradient"
    return values[rows, None].float()


def _chunk_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float
) -> Tensor:
    """Logits of one chunk, divided by the temperature: a fresh `[n, V]` float32."""
    logits = (hidden @ weight.t()).float()
    if bias is not None:
        logits += bias
    return logits.div_(temperature) if temperature != 1.0 else logits


def chunked_logps(
    hidden: Tensor,
    lm_head_weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    outputs: Collection[str] = (LOGP,),
) -> dict[str, Tensor]:
    """Log-probability of each token, and more of its distribution, by chunks.

    The same as `log_softmax(hidden @ weight.T / temperature)` read at `token_ids`, with
    a peak memory of a few chunks of logits instead of several times `[N, V]`. The
    softmax is float32 whatever the dtype of the inputs.

    Args:
        hidden: `[N, H]` last hidden states.
        lm_head_weight: `[V, H]` output embeddings.
        token_ids: `[N]` int64 in [0, V).
        bias: `[V]` bias of the output layer, if it has one.
        temperature: > 0; divides the logits.
        chunk_tokens: tokens per chunk, >= 1; by default about 64 MiB of logits.
        outputs: any of `LOGP`, `ENTROPY` and `MEAN_LOGP`.

    Returns:
        `[N]` float32 for each of `outputs`, differentiable but for `MEAN_LOGP`.

    Raises:
        ValueError: `temperature` is not positive, or an output is unknown.
    """
    if not temperature > 0.0:
        raise ValueError(
            f"`temperature` ({temperature}) must be > 0 because it divides the logits. "
            "Set `.env_runners(temperature=1.0)`."
        )
    if not set(outputs) <= set(_OUTPUTS):
        raise ValueError(
            f"`outputs` ({tuple(outputs)}) must be some of {_OUTPUTS}, because a pass "
            "over the vocabulary gives no others. Name them in the learner's `outputs`."
        )
    if chunk_tokens is None:
        chunk_tokens = max(1, _LOGITS_PER_CHUNK // lm_head_weight.shape[0])
    found: tuple[Tensor, ...] = _ChunkedLogps.apply(  # type: ignore[no-untyped-call]
        hidden,
        lm_head_weight.to(hidden.dtype),
        bias,
        token_ids,
        temperature,
        chunk_tokens,
        outputs,
    )
    by_name = dict(zip(_OUTPUTS, found, strict=True))
    return {name: by_name[name] for name in outputs}


def response_logps(
    model: Any,
    input_ids: Tensor,
    prompt_lens: Tensor,
    response_ids: Tensor,
    loss_mask: Tensor,
    *,
    flat_row: FlatRow | None = None,
    positions: Tensor | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    outputs: Collection[str] = (LOGP,),
    autocast_dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Log-probabilities of responses under a causal language model, and more.

    Serves old, new and reference log-probabilities alike. Only the hidden states that
    predict a token of the loss mask reach the output layer. Padding stands behind every
    real token, so that causal attention never sees it, and without a mask attention can
    take its fastest kernel.

    Args:
        model: a Hugging Face causal language model with `get_output_embeddings()`.
        input_ids: `[B, L]` prompt then response, padded on the right: every row starts
            in column 0.
        prompt_lens: `[B]` int64, tokens of each prompt, >= 1.
        response_ids: `[B, T]` int64; ignored where the mask is False.
        loss_mask: `[B, T]` bool, True on the tokens to be scored.
        flat_row: the same rows in one, which the model then takes in place of
            `input_ids`; see `set_flat_attention`.
        positions: `[B, T]` int64 columns of `input_ids` in which the responses' tokens
            stand; None: right behind the prompt.
        temperature: > 0, the sampling temperature.
        chunk_tokens: see `chunked_logps`.
        outputs: see `chunked_logps`.
        autocast_dtype: compute hidden states and logits in this precision by
            `torch.autocast`, whatever the weights'; the softmax stays float32. None: in
            that of the weights.

    Returns:
        `[B, T]` float32 for each of `outputs`; 0.0 where the mask is False.
    """
    is_mixed = autocast_dtype is not None
    inputs = {"input_ids": input_ids} if flat_row is None else flat_inputs(flat_row)
    with torch.autocast(input_ids.device.type, autocast_dtype, enabled=is_mixed):
        hidden = _decoder(model)(**inputs, use_cache=False)[0]
    if is_mixed:
        hidden = hidden.to(autocast_dtype)
    rows, times = loss_mask.nonzero(as_tuple=True)
    # The token at response position t is predicted one position earlier.
    if positions is None:
        before = prompt_lens[rows] - 1 + times
    else:
        before = positions[rows, times] - 1
    if flat_row is None:
        selected = hidden[rows, before]
    else:
        selected = hidden[0, flat_row.places[rows, before]]
    head = model.get_output_embeddings()

    def score(selected: Tensor) -> dict[str, Tensor]:
        return chunked_logps(
            selected,
            head.weight,
            response_ids[rows, times],
            bias=getattr(head, "bias", None),
            temperature=temperature,
            chunk_tokens=chunk_tokens,
            outputs=outputs,
        )

    found = _call_as_forward(head, score, selected)
    zeros = torch.zeros(loss_mask.shape, dtype=torch.float32, device=hidden.device)
    return {name: zeros.index_put((rows, times), each) for name, each in found.items()}


def sequence_logps(
    model: Any, token_ids: Sequence[int], device: torch.device | None = None
) -> np.ndarray:
    """Log-probabilities of L given ids: `[L - 1]` float32, of all but the first.

    Args:
        model: as for `response_logps`.
        token_ids: L >= 2 ids.
        device: the model's; None: the CPU.
    """
    ids = torch.tensor([list(token_ids)], device=device)
    one = torch.ones(1, dtype=torch.long, device=device)
    every = torch.ones_like(ids[:, 1:], dtype=torch.bool)
    logps = response_logps(model, ids, one, ids[:, 1:], every)[LOGP]
    return np.asarray(logps[0].cpu().numpy())


def direct_logps(model: Any, token_ids: Sequence[int]) -> np.ndarray:
    """The same as `sequence_logps`, from the model's own logits, all at one time."""
    ids = torch.tensor([list(token_ids)], device=next(model.parameters()).device)
    logps = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    return np.asarray(logps.gather(1, ids[0, 1:, None]).squeeze(1).cpu().numpy())


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts every submodule in evaluation mode, and back as it was afterwards."""
    # `model.train()` would also turn on parts that the caller keeps in evaluation mode.
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def check_chunked_logps(model: Any) -> None:
    """Makes sure that `response_logps` gives this model's own log-probabilities.

    Some architectures change the logits after the output layer (soft caps, scales);
    hidden states times output embeddings would then be another distribution.

    Args:
        model: a Hugging Face causal language model.

    Raises:
        ValueError: the model's logits are not hidden states times output embeddings.
    """
    name = type(model).__name__
    for cap in _SOFT_CAPS:
        # A soft cap hardly shows on the small logits of an untrained model, so it is
        # looked for by name too.
        if getattr(model.config, cap, None):
            raise ValueError(
                f"`model` ({name}) must take its logits straight from the output layer "
                f"because log-probabilities are computed in chunks from hidden states; "
                f"its `{cap}` is {getattr(model.config, cap)}. Choose another "
                f"architecture, or set `{cap}` to null in its config.json."
            )
    device = next(model.parameters()).device
    vocab_size = model.get_output_embeddings().weight.shape[0]
    token_ids = [7919 * i % vocab_size for i in range(8)]
    with evaluation_mode(model):
        chunked = sequence_logps(model, token_ids, device)
        gap = np.abs(chunked - direct_logps(model, token_ids)).max()
    dtype = model.get_output_embeddings().weight.dtype
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    if not gap <= tolerance:
        raise ValueError(
            f"`model` ({name}) must take its logits straight from the output layer "
            "because log-probabilities are computed in chunks from hidden states; its "
            f"own differ by {gap:.3g} (allowed: {tolerance}), so it scales or caps its "
            "logits. Choose another architecture."
        )


def _call_as_forward(
    layer: Any, compute: Callable[[Tensor], Any], hidden: Tensor
) -> Any:
    """Computes something with a layer's weights in place of its forward pass.

    The layer's hooks run around it as ever: those of DeepSpeed ZeRO 3 gather the
    weights there, for the forward and for the backward pass.
    """
    replaced = vars(layer).get("forward")
    layer.forward = compute
    try:
        return layer(hidden)
    finally:
        if replaced is None:
            del layer.forward
        else:
            layer.forward = replaced


def _decoder(model: Any) -> Any:
    """The model without its output layer."""
    decoder = getattr(model, model.base_model_prefix, None)
    if decoder is None or model.get_output_embeddings() is None:
        raise ValueError(
            f"`model` ({type(model).__name__}) must be a decoder with an output layer "
            "on top, because log-probabilities are computed in chunks from hidden "
            "states. Choose an architecture of AutoModelForCausalLM."
        )
    return decoder
