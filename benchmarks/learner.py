"""Learner tokens/s: `LLMTorchLearner.update` over a plain loop on the same rows.

The plain loop is forward, clipped loss, backward, clipping and AdamW, with nothing
else: no connectors, no entropy, no statistics. It cuts the rows into the same
micro-batches and computes log-probabilities by the same chunks; `--full-logits` makes
it hold all logits of a micro-batch instead. Each kind of learner alternates with the
plain loop round by round, so that a busy machine slows both; only one kind is in memory
at a time. The table shows medians. Tokens are prompt and response tokens, no padding.

    python benchmarks/learner.py                      # ~30M parameters, float32, CPU
    python benchmarks/learner.py --learners 2         # adds 1 and 2 learner actors
    python benchmarks/learner.py --learners 2 --zero 1 2 3   # and DeepSpeed's stages
    python benchmarks/learner.py --model qwen2.5-1.5b --dtype bfloat16     # on a GPU
"""

import argparse
import copy
import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.rllib.core.columns import Columns
from shapes import SHAPES
from timing import matrix_rate, seconds_of
from torch import Tensor

from pure_rllib.algorithms import PURE, PUREConfig
from pure_rllib.learners.delivery import deliver
from pure_rllib.learners.train_batch import MiniBatchPlan, plan_mini_batches
from pure_rllib.models import columns
from pure_rllib.models.batching import cut_rows, micro_batches
from pure_rllib.models.logprobs import LOGP, response_logps
from pure_rllib.reporting.tables import format_table
from pure_rllib.rollouts.group import Group
from pure_rllib.rollouts.sampler import episodes_of


def make_config(
    options: argparse.Namespace, num_learners: int, stage: int | None = None
) -> PUREConfig:
    on_gpu = torch.cuda.is_available()
    return (
        PUREConfig()
        .environment(
            "pure_rllib/Arithmetic-v0",
            env_config={"process_rewards": "exact", "num_problems": options.prompts},
        )
        .env_runners(
            num_prompts=options.prompts,
            group_size=8,
            max_response_tokens=options.response_tokens,
        )
        .rl_module(
            model_config={
                "model": SHAPES[options.model],
                "dtype": options.dtype,
                "autocast_dtype": options.autocast_dtype,
            }
        )
        .learners(
            num_learners=num_learners,
            deepspeed=None if stage is None else {"stage": stage},
            num_cpus_per_learner=1,
            num_gpus_per_learner=int(on_gpu),
        )
        .training(
            lr=1e-6,
            micro_batch_tokens=options.micro_batch_tokens,
            minibatch_size=8 * options.prompts // 2,
        )
        .debugging(seed=0)
    )


def update(algo: PURE, groups: Sequence[Group], plan: MiniBatchPlan) -> None:
    """What an iteration does between sampling and publishing."""
    deliver(algo.learner_group, groups, plan.mini_batches, lambda ids: [])
    algo._update(plan)


def plain_update(
    policy: Any,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Any],
    plan: MiniBatchPlan,
    options: argparse.Namespace,
) -> None:
    """The same optimiser steps, by a loop that does only what it must."""
    device = next(policy.parameters()).device
    for group_ids in plan.mini_batches:
        is_mine = torch.isin(batch[columns.GROUP_ID], torch.tensor(group_ids))
        rows = is_mine.nonzero(as_tuple=True)[0]
        count = batch[Columns.LOSS_MASK][rows].sum().to(device)
        cuts = cut_rows(batch, options.micro_batch_tokens, rows)
        for _, cut in micro_batches(batch, cuts, device):
            mask = cut[Columns.LOSS_MASK]
            ratio = (logps_of(policy, cut, options) - cut[Columns.ACTION_LOGP]).exp()
            gain = cut[Columns.ADVANTAGES]
            loss = torch.maximum(-gain * ratio, -gain * ratio.clamp(0.8, 1.2))
            (loss[mask].sum() / count).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def logps_of(
    policy: Any, cut: dict[str, Tensor], options: argparse.Namespace
) -> Tensor:
    dtype = options.autocast_dtype and getattr(torch, options.autocast_dtype)
    ids, lens = cut[columns.INPUT_IDS], cut[columns.PROMPT_LENS]
    actions, mask = cut[Columns.ACTIONS], cut[Columns.LOSS_MASK]
    if not options.full_logits:
        return response_logps(policy, ids, lens, actions, mask, autocast_dtype=dtype)[
            LOGP
        ]
    with torch.autocast(ids.device.type, dtype, enabled=dtype is not None):
        logits = policy(input_ids=ids, use_cache=False).logits
    rows, times = mask.nonzero(as_tuple=True)
    chosen = logits[rows, lens[rows] - 1 + times].float().log_softmax(-1)
    found = chosen.gather(1, actions[rows, times, None]).squeeze(1)
    return torch.zeros_like(mask, dtype=torch.float32).index_put((rows, times), found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="30m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--autocast-dtype", default=None)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--response-tokens", type=int, default=96)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--learners", type=int, default=0)
    parser.add_argument("--zero", type=int, nargs="*", default=[])
    parser.add_argument("--full-logits", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    ray.init(
        num_cpus=1 + options.learners,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    algo = make_config(options, 0).build_algo()
    learner = algo.learner_group._learner
    groups = algo._sample_again(range(options.prompts))
    plan = plan_mini_batches(
        [group.group_id for group in groups],
        groups_per_step=algo.config.groups_per_step,
        num_epochs=1,
        seed=0,
        iteration=0,
        max_response_tokens=options.response_tokens,
    )
    batch = learner._train_batch([e for group in groups for e in episodes_of(group)])
    policy = copy.deepcopy(learner._policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0)

    def plain() -> None:
        plain_update(policy, optimizer, batch, plan, options)

    measured = {
        "ours": measure(lambda: update(algo, groups, plan), plain, options.rounds)
    }
    algo.stop()
    for name, count, stage in learner_actors(options):
        made = make_config(options, count, stage).build_algo()
        run = functools.partial(update, made, groups, plan)
        measured[name] = measure(run, plain, options.rounds)
        made.stop()
    report(measured, policy, groups, plan, options)


def learner_actors(options: argparse.Namespace) -> list[tuple[str, int, int | None]]:
    """Name, number of learners and ZeRO stage of what is measured beside "ours"."""
    counts = range(1, options.learners + 1)
    return [
        *((f"{n} learner actor{'s' * (n > 1)}", n, None) for n in counts),
        *(
            (
                f"{options.learners} learner actors, ZeRO {stage}",
                options.learners,
                stage,
            )
            for stage in options.zero
        ),
    ]


@dataclass
class Measured:
    """Seconds of each round, and the peak of this process's GPU memory in GiB."""

    seconds: list[float]
    plain_seconds: list[float]
    peak_gib: float | None
    plain_peak_gib: float | None


def measure(
    run: Callable[[], None], plain: Callable[[], None], rounds: int
) -> Measured:
    """Times both in turn; the first round warms up."""
    times: dict[Callable[[], None], list[float]] = {run: [], plain: []}
    peaks: dict[Callable[[], None], float | None] = {run: None, plain: None}
    for index in range(rounds + 1):
        for one in (run, plain):
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            took = seconds_of(one)
            if torch.cuda.is_available():
                peaks[one] = torch.cuda.max_memory_allocated() / 2**30
            if index:
                times[one].append(took)
    return Measured(times[run], times[plain], peaks[run], peaks[plain])


def report(
    measured: dict[str, Measured],
    policy: torch.nn.Module,
    groups: Sequence[Group],
    plan: MiniBatchPlan,
    options: argparse.Namespace,
) -> None:
    """Prints the table, and what several learners gain over one."""
    parameters = sum(p.numel() for p in policy.parameters())
    tokens = sum(group.num_tokens for group in groups)
    compute = getattr(torch, options.autocast_dtype or options.dtype)
    rate = matrix_rate(next(policy.parameters()).device, compute)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{parameters / 1e6:.0f}M parameters, {options.dtype} (autocast: "
        f"{options.autocast_dtype}), {device}, {options.threads} thread(s), "
        f"{len(groups) * 8} responses, {tokens:,} tokens, {len(plan.mini_batches)} "
        f"optimiser steps, micro-batches of {options.micro_batch_tokens:,} tokens, "
        f"median of {options.rounds} rounds\n"
    )

    def cells(
        name: str, seconds: list[float], ratios: list[float], peak: float | None
    ) -> list[str]:
        took = statistics.median(seconds)
        return [
            name,
            f"{tokens / took:,.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            # Forward and backward: 6 FLOP per parameter and token, without attention.
            f"{6 * parameters * tokens / took / rate:.2f}",
            "-" if peak is None else f"{peak:.1f}",
        ]

    ours = measured["ours"]
    rows = [cells("plain loop", ours.plain_seconds, [1.0], ours.plain_peak_gib)]
    gains = {}
    for name, one in measured.items():
        pairs = zip(one.plain_seconds, one.seconds, strict=True)
        ratios = [plain / taken for plain, taken in pairs]
        gains[name] = statistics.median(ratios)
        rows.append(cells(name, one.seconds, ratios, one.peak_gib))
    headers = ["", "tokens/s", "of plain", "of plain, by round", "of matrix rate"]
    print(format_table([*headers, "peak GiB"], rows))
    for name, gain in list(gains.items())[2:]:
        print(
            f"{name} over 1: {gain / gains['1 learner actor']:.2f} times the tokens/s"
        )


if __name__ == "__main__":
    main()
