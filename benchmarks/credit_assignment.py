"""Credit assignment against a plain Python loop that computes the same numbers.

How to run: `python benchmarks/credit_assignment.py`

1,024 responses of 2,048 tokens in steps of about 60 tokens, groups of 8; returns, the
leave-one-out baseline and advantages. The loop goes over responses and tokens once, as
one would write it by hand: running sums from the last token to the first, group totals
computed once, plain floats. One thread each, and the best of some runs, so that the
ratio says little about what else the machine is doing. Both start from the same rewards
and end with every token's advantage, and the advantages are compared.
"""

import argparse
import math
import random
import time

import torch
from torch import Tensor

from pure_rllib.credit.baselines import process_advantages
from pure_rllib.credit.returns import step_credits

CREDIT_TEMPERATURE = 0.1
CALLS = 20


def make_batch(
    num_responses: int, num_tokens: int, step_tokens: int, group_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random step rewards `[B, S]`, step ends `[B, S]`, mask and group ids `[B]`."""
    rng = random.Random(0)
    ends: list[list[int]] = []
    for _ in range(num_responses):
        row, position = [], -1
        while position < num_tokens - 1:
            position += rng.randint(step_tokens // 2, 3 * step_tokens // 2)
            row.append(min(position, num_tokens - 1))
        ends.append(row)
    num_steps = max(map(len, ends))
    step_ends = torch.tensor([row + [-1] * (num_steps - len(row)) for row in ends])
    generator = torch.Generator().manual_seed(0)
    rewards = 2 * torch.rand(step_ends.shape, generator=generator) - 1
    group_index = torch.arange(num_responses) // group_size
    return rewards, step_ends, step_ends >= 0, group_index


def vectorised(
    rewards: Tensor, step_ends: Tensor, mask: Tensor, group: Tensor, num_tokens: int
) -> Tensor:
    """`[B, T]` advantages by the package."""
    credits = step_credits(
        rewards, mask, credit_assignment="min", credit_temperature=CREDIT_TEMPERATURE
    )
    return process_advantages(
        credits, mask, step_ends, num_tokens, group, baseline="token"
    )


def looped(
    rewards: list[list[float]],
    step_ends: list[list[int]],
    groups: list[int],
    num_tokens: int,
) -> list[list[float]]:
    """The same by loops over responses and tokens, on plain lists."""
    credits, totals, counts = [], {}, {}
    for row, ends, group in zip(rewards, step_ends, groups, strict=True):
        weights = [math.exp(-reward / CREDIT_TEMPERATURE) for reward in row]
        scale = sum(weights)
        credit = [w / scale * r for w, r in zip(weights, row, strict=True)]
        credits.append(credit)
        totals[group] = totals.get(group, 0.0) + sum(credit)
        counts[group] = counts.get(group, 0) + ends[-1] + 1
    advantages = []
    for credit, ends, group in zip(credits, step_ends, groups, strict=True):
        rate = (totals[group] - sum(credit)) / (counts[group] - ends[-1] - 1)
        # Rewards and what the baseline takes off stand on the steps' last tokens.
        token_rewards, deductions = [0.0] * num_tokens, [0.0] * num_tokens
        start = 0
        for reward, end in zip(credit, ends, strict=True):
            token_rewards[end] = reward
            deductions[end] = rate * (end + 1 - start)
            start = end + 1
        row = [0.0] * num_tokens
        value, baseline = 0.0, 0.0
        for t in range(num_tokens - 1, -1, -1):
            value += token_rewards[t]
            baseline += deductions[t]
            row[t] = value - baseline
        advantages.append(row)
    return advantages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--step-tokens", type=int, default=60)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()

    torch.set_num_threads(1)
    rewards, step_ends, mask, group = make_batch(
        args.responses, args.tokens, args.step_tokens, args.group_size
    )
    counts = mask.sum(1).tolist()
    reward_rows = [r[:n] for r, n in zip(rewards.tolist(), counts, strict=True)]
    end_rows = [e[:n] for e, n in zip(step_ends.tolist(), counts, strict=True)]

    vectorised(rewards, step_ends, mask, group, args.tokens)  # warm-up
    fast_s, slow_s = [], []
    for _ in range(args.repeats):
        # One call is too short to be timed by itself.
        start = time.perf_counter()
        for _ in range(CALLS):
            fast = vectorised(rewards, step_ends, mask, group, args.tokens)
        fast_s.append((time.perf_counter() - start) / CALLS)
        start = time.perf_counter()
        slow = looped(reward_rows, end_rows, group.tolist(), args.tokens)
        slow_s.append(time.perf_counter() - start)
    gap = (fast.double() - torch.tensor(slow, dtype=torch.float64)).abs().max().item()
    assert gap < 1e-4, f"the two disagree by {gap}"

    fast_ms = 1e3 * min(fast_s)
    slow_ms = 1e3 * min(slow_s)
    print(
        f"{args.responses} responses x {args.tokens} tokens, at most "
        f"{step_ends.shape[1]} steps, groups of {args.group_size}, one thread, "
        f"best of {args.repeats}"
    )
    print(f"{'':24}{'ms':>10}{'ratio':>10}")
    print(f"{'plain Python loop':24}{slow_ms:10.1f}{1:10.1f}")
    print(f"{'vectorised':24}{fast_ms:10.1f}{slow_ms / fast_ms:10.1f}")
    print(f"largest difference of an advantage: {gap:.1e}")


if __name__ == "__main__":
    main()
