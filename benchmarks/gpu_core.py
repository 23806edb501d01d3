"""The core of a learner on one GPU: updates, parking weights, log-probabilities.

    python benchmarks/gpu_core.py learn --shape 0.5b 1.5b --budget 8192 16384 32768
    python benchmarks/gpu_core.py learn --shape 3b
    python benchmarks/gpu_core.py learn --shape 7b --lora 16
    python benchmarks/gpu_core.py learn --shape 7b --adam cpu
    python benchmarks/gpu_core.py park --shape 1.5b 7b
    python benchmarks/gpu_core.py logps --shape 7b --chunk-mib 64 256 1024

Shapes are Qwen2.5's, with random bfloat16 weights. Neither Ray nor vLLM is needed, so
that it runs where only PyTorch, transformers and (for `--lora`) PEFT are. On a CPU
`--shape tiny` shows that it works.

- `learn`: one optimiser step on groups of responses, forward and backward by
  micro-batches of at most `--budget` tokens, with float32 masters and AdamW. Tokens are
  those of prompts and responses, without padding, a prompt once per response, whatever
  the layout. Model FLOPs are those of tokens that pass, so that a prompt that passes
  once counts once, padding and recomputing not at all: 6 per parameter and token (with
  LoRA 4), 12 per layer, channel and pair of query and key. Beside the peak stands what
  `models/memory_plan.py` plans for the largest pass.
- `park`: all weights to pinned memory and back; what is allocated after the first and
  the last time.
- `logps`: the head alone, forward and backward, by the size of a chunk of logits, and
  without the gradient of its weights.

Each measures the card's own rate of a bfloat16 matrix product first. The last line is
a JSON object with all rows.
"""

import argparse
import gc
import json
import resource
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from shapes import SHAPES
from timing import matrix_rate, seconds_of
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pure_rllib.learners.master_weights import MasterWeights
from pure_rllib.models import columns
from pure_rllib.models.batching import cut_rows
from pure_rllib.models.flat_attention import set_flat_attention
from pure_rllib.models.flat_rows import lay_out
from pure_rllib.models.loading import policy_config
from pure_rllib.models.logprobs import ENTROPY, LOGP, chunked_logps, response_logps
from pure_rllib.models.lora import add_lora
from pure_rllib.models.memory_plan import MemorySettings, ModelSize, plan_memory
from pure_rllib.reporting.tables import format_table

SIZES = ["tiny", "0.5b", "1.5b", "3b", "7b"]
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
GIB = 2**30
LR = 1.0e-6


def memory_gib() -> float:
    """What is allocated on the GPU now; on a CPU the most that ever was resident."""
    if ON_GPU:
        return torch.cuda.memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def peak_gib(run: Callable[[], Any]) -> float:
    """The most that is allocated on the GPU during a call."""
    if not ON_GPU:
        run()
        return memory_gib()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / GIB


def median_s(run: Callable[[], Any], options: argparse.Namespace) -> float:
    return statistics.median(seconds_of(run) for _ in range(options.rounds))


def free() -> None:
    """Gives back what nobody holds any more, cycles included."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


def shape_of(size: str) -> dict[str, Any]:
    return SHAPES["tiny" if size == "tiny" else f"qwen2.5-{size}"]


def make_model(size: str) -> Any:
    """Random weights, made where they are used: drawing 7b on a CPU takes minutes."""
    torch.manual_seed(0)
    with DEVICE:
        config = policy_config(shape_of(size))
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def make_rows(options: argparse.Namespace, vocab_size: int) -> dict[str, Tensor]:
    """Groups of responses whose lengths are lognormal, as those of real ones are."""
    draw = torch.Generator().manual_seed(0)
    num_rows = options.prompts * options.responses
    spread = torch.randn(num_rows, generator=draw).mul(0.8).exp()
    lens = spread.mul(options.median_tokens).long().clamp(1, options.max_tokens)
    prompt = options.prompt_tokens
    ids = torch.randint(
        vocab_size, (num_rows, prompt + int(lens.max())), generator=draw
    )
    group = torch.arange(num_rows) // options.responses
    ids[:, :prompt] = ids[group * options.responses, :prompt]
    return {
        columns.INPUT_IDS: ids,
        columns.PROMPT_LENS: torch.full((num_rows,), prompt),
        columns.RESPONSE_LENS: lens,
        columns.GROUP_ID: group,
    }


class CpuAdam:
    """AdamW on float32 masters in the CPU's memory; gradients add up on the GPU.

    One optimiser per parameter, so that only one gradient at a time is there, too.
    """

    def __init__(self, policy: nn.Module):
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self.masters = {
            p: torch.optim.AdamW(
                [p.detach().float().cpu()], lr=LR, weight_decay=0.0, fused=True
            )
            for p in policy.parameters()
            if p.requires_grad
        }
        for parameter in self.masters:
            parameter.register_post_accumulate_grad_hook(self._add)

    def _add(self, parameter: Any) -> None:
        if parameter in self.gradients:
            self.gradients[parameter] += parameter.grad
        else:
            self.gradients[parameter] = parameter.grad.float()
        parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        while self.gradients:
            parameter, gradient = self.gradients.popitem()
            optimizer = self.masters[parameter]
            (master,) = optimizer.param_groups[0]["params"]
            master.grad = gradient.cpu()
            optimizer.step()
            master.grad = None
            parameter.copy_(master)


class GpuAdam:
    """The learner's own: float32 masters, gradients and moments on the GPU."""

    def __init__(self, policy: nn.Module):
        self.masters = MasterWeights(policy)
        self.optimizer = torch.optim.AdamW(
            self.masters.tensors, lr=LR, weight_decay=0.0, fused=ON_GPU or None
        )

    def step(self) -> None:
        self.masters.step(self.optimizer)
        self.optimizer.zero_grad()


def learner_of(size: str, layout: str, options: argparse.Namespace) -> Any:
    """A policy as learners have it, and what steps it."""
    policy = make_model(size)
    if layout == "packed":
        reason = set_flat_attention(policy)
        assert reason is None, reason
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    for module in policy.modules():  # evaluation mode else, as the learner's is
        module.training = getattr(module, "gradient_checkpointing", False)
    if options.lora:
        add_lora(policy, {"r": options.lora, "target_modules": "all-linear"}, seed=0)
    return policy, (CpuAdam if options.adam == "cpu" else GpuAdam)(policy)


def model_flops(policy: Any, rows: dict[str, Any], cuts: Any, packed: bool) -> float:
    """Of forward and backward of what must pass: see the head of this file."""
    config = policy.config
    head = policy.get_output_embeddings().weight.numel()
    tokens, pairs = 0, 0
    for cut in cuts:
        own = {name: column[cut] for name, column in rows.items()}
        if not packed:
            own[columns.GROUP_ID] = torch.arange(len(cut))  # nothing is shared
        for start, stop, prefix_start, prefix_stop in lay_out(own).segments:
            num_own, num_prefix = stop - start, prefix_stop - prefix_start
            tokens += num_own
            pairs += num_own * (num_prefix + (num_own + 1) / 2)
    # Without embeddings, which are read, and with the head for responses alone.
    body = policy.model.layers
    parameters = sum(p.numel() for n, p in body.named_parameters() if "lora_" not in n)
    attention = 12 * config.num_hidden_layers * config.hidden_size * pairs
    scored = int(rows[columns.RESPONSE_LENS].sum())
    # Weights that an adapter leaves as they are get no gradient.
    per_weight = 4.0 if hasattr(policy, "lora_config") else 6.0
    return per_weight * (parameters * tokens + head * scored) + attention


def pass_cut(
    policy: Any, rows: dict[str, Tensor], cut: Tensor, packed: bool, count: int
) -> None:
    """Forward and backward of one micro-batch, as the learner's."""
    own = {name: column[cut] for name, column in rows.items()}
    ids = own[columns.INPUT_IDS][:, : int(columns.row_lens(own).max())]
    prompt = int(own[columns.PROMPT_LENS][0])
    mask = columns.response_mask(own).to(DEVICE)
    flat = lay_out({**own, columns.INPUT_IDS: ids}).to(DEVICE) if packed else None
    ids = ids.to(DEVICE)
    found = response_logps(
        policy,
        ids,
        own[columns.PROMPT_LENS].to(DEVICE),
        ids[:, prompt:],
        mask,
        flat_row=flat,
        outputs=(LOGP, ENTROPY),
    )
    # At the first step the clipped loss has the gradient of advantages times logp.
    advantages = torch.linspace(-1.0, 1.0, len(ids), device=DEVICE)[:, None]
    (-(advantages * found[LOGP]).sum() / count).backward()


Row = dict[str, Any]


def learn(size: str, options: argparse.Namespace, rate: float) -> Iterator[Row]:
    rows = make_rows(options, shape_of(size)["vocab_size"])
    for layout in options.layout:
        for row in learn_layout(size, layout, rows, options, rate):
            yield {"shape": size, "layout": layout, **row}
        free()


def learn_layout(
    size: str,
    layout: str,
    rows: dict[str, Tensor],
    options: argparse.Namespace,
    rate: float,
) -> Iterator[Row]:
    policy, optimizer = learner_of(size, layout, options)
    packed = layout == "packed"
    num_tokens = int(columns.row_lens(rows).sum())
    num_scored = int(rows[columns.RESPONSE_LENS].sum())

    def update(cuts: Sequence[Tensor]) -> None:
        for cut in cuts:
            pass_cut(policy, rows, cut, packed, num_scored)
        optimizer.step()

    for budget in options.budget:
        run = partial(update, cut_rows(rows, budget, packing=packed))
        # The first update makes AdamW's moments.
        peak = max(peak_gib(run), peak_gib(run))
        took = median_s(run, options)
        flops = model_flops(policy, rows, run.args[0], packed)
        yield {
            "budget": budget,
            "tokens_per_s": round(num_tokens / took),
            "of_matrix_rate": round(flops / took / rate, 3),
            "peak_gib": round(peak, 2),
            "planned_gib": round(
                planned_gib(size, min(budget, num_tokens), options), 2
            ),
            "seconds": round(took, 3),
        }


def planned_gib(size: str, num_tokens: int, options: argparse.Namespace) -> float:
    """What the memory plan says of the peak, without CUDA and the libraries."""
    settings = MemorySettings(
        ModelSize.of(shape_of(size)),
        lora_rank=options.lora or 0,
        pass_tokens=num_tokens,
        checkpointing=True,
        offload_optimizer=options.adam == "cpu",
    )
    return plan_memory(settings)["learn"].tensors / GIB


def park(size: str, options: argparse.Namespace, rate: float) -> Iterator[Row]:
    tensors = list(make_model(size).parameters())
    pinned = [torch.empty_like(t, device="cpu", pin_memory=ON_GPU) for t in tensors]
    gigabytes = sum(t.nbytes for t in tensors) / 1e9

    def away() -> None:
        for tensor, place in zip(tensors, pinned, strict=True):
            place.copy_(tensor, non_blocking=True)
        if ON_GPU:
            torch.cuda.synchronize()
        for tensor, place in zip(tensors, pinned, strict=True):
            tensor.data = place
        free()

    def back() -> None:
        for tensor, place in zip(tensors, pinned, strict=True):
            tensor.data = torch.empty_like(place, device=DEVICE)
            tensor.data.copy_(place, non_blocking=True)

    away_s, back_s, parked = [], [], []
    for _ in range(options.cycles):
        away_s.append(seconds_of(away))
        parked.append(memory_gib())
        back_s.append(seconds_of(back))
    yield {
        "shape": size,
        "gb": round(gigabytes, 3),
        "gb_per_s_away": round(gigabytes / statistics.median(away_s), 2),
        "gb_per_s_back": round(gigabytes / statistics.median(back_s), 2),
        "parked_gib_first": round(parked[0], 3),
        "parked_gib_last": round(parked[-1], 3),
    }


def logps(size: str, options: argparse.Namespace, rate: float) -> Iterator[Row]:
    shape, num_tokens = shape_of(size), options.tokens
    vocab, width = shape["vocab_size"], shape["hidden_size"]
    hidden = torch.randn(num_tokens, width, device=DEVICE, dtype=torch.bfloat16)
    hidden.requires_grad_()
    weight = torch.randn(vocab, width, device=DEVICE, dtype=torch.bfloat16).mul_(0.02)
    ids = torch.randint(vocab, (num_tokens,), device=DEVICE)

    def both(chunk_tokens: int) -> None:
        hidden.grad = weight.grad = None
        found = chunked_logps(hidden, weight, ids, chunk_tokens=chunk_tokens)
        found[LOGP].sum().backward()

    for mib, with_head in product(options.chunk_mib, (True, False)):
        weight.requires_grad_(with_head)
        run = partial(both, max(1, mib * 2**18 // vocab))
        peak, took = peak_gib(run), median_s(run, options)
        # Logits twice, as the backward pass makes them again, and their gradients.
        flops = (3 + with_head) * 2.0 * num_tokens * vocab * width
        yield {
            "shape": size,
            "chunk_mib": mib,
            "head_gradient": with_head,
            "tokens_per_s": round(num_tokens / took),
            "of_matrix_rate": round(flops / took / rate, 3),
            "peak_gib": round(peak, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="what", required=True)
    own = {run: kinds.add_parser(run.__name__) for run in (learn, park, logps)}
    for run, sub in own.items():
        sub.set_defaults(run=run)
        sub.add_argument("--shape", choices=SIZES, nargs="+", default=["0.5b"])
        sub.add_argument("--rounds", type=int, default=3, help="timed, after warm-up")
    sub = own[learn]
    sub.add_argument("--budget", type=int, nargs="+", default=[16384])
    layouts = ["padded", "packed"]
    sub.add_argument("--layout", choices=layouts, nargs="+", default=layouts)
    sub.add_argument(
        "--lora", type=int, help="rank of an adapter; default: all weights"
    )
    sub.add_argument("--adam", choices=["gpu", "cpu"], default="gpu")
    sub.add_argument("--prompts", type=int, default=32)
    sub.add_argument("--responses", type=int, default=8, help="to each prompt")
    sub.add_argument("--prompt-tokens", type=int, default=104)
    sub.add_argument("--median-tokens", type=int, default=600, help="of a response")
    sub.add_argument("--max-tokens", type=int, default=2048, help="of a response")
    own[park].add_argument("--cycles", type=int, default=20)
    own[logps].add_argument("--tokens", type=int, default=16384)
    own[logps].add_argument("--chunk-mib", type=int, nargs="+", default=[64, 256, 1024])
    options = parser.parse_args()
    rate = matrix_rate(DEVICE, torch.bfloat16)
    name = torch.cuda.get_device_name() if ON_GPU else "CPU"
    print(f"{name}, bfloat16 matrix products: {rate / 1e12:.3g} TFLOP/s", flush=True)
    found: list[Row] = []
    for size in options.shape:
        for row in options.run(size, options, rate):
            print(row, flush=True)  # what is found stays where the next lacks memory
            found.append(row)
        free()
    print(format_table(list(found[0]), [list(row.values()) for row in found]))
    about = {"device": name, "torch": torch.__version__, "matrix_flops": rate}
    print(json.dumps({**about, "command": sys.argv[1:], "rows": found}))


if __name__ == "__main__":
    main()
