"""How fast steps are scored: a pool of PRM actors against the bare forward pass.

The bare pass runs the same model on the same rows, built and padded beforehand in the
same micro-batches, and reads no score. The rounds alternate, so that a busy machine
slows all; the table shows medians. Tokens are those of prompts and responses.

    python benchmarks/prm_pool.py [--rounds 5] [--responses 256] [--actors 1]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2Config, Qwen2ForTokenClassification

from pure_rllib.models.batching import token_budget_batches
from pure_rllib.reporting.tables import format_table
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.prm.actors import (
    PRMActors,
    PRMPool,
    PRMPoolSettings,
    num_tokens,
)
from pure_rllib.rewards.prm.model import ProcessRewardModel
from pure_rllib.testing import byte_tokenizer, text_request


def make_prm() -> ProcessRewardModel:
    """A random PRM, 256 wide and of 4 layers."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        num_labels=2,
    )
    return ProcessRewardModel(Qwen2ForTokenClassification(config), tokenizer)


def make_requests(count: int) -> list[ScoringRequest]:
    """Responses of about 200 tokens in about 6 steps."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        lengths = rng.gamma(4.0, 8.0, size=int(rng.integers(2, 11))).astype(int) + 1
        steps = ["x" * int(n) + "." for n in lengths]
        made.append(text_request(*steps, prompt=f"problem {i}: " + "y" * 40))
    return made


def bare_pass(
    prm: ProcessRewardModel, requests: Sequence[ScoringRequest]
) -> Callable[[], Any]:
    """The model alone, on rows that are ready."""
    rows = prm.builder.rows(requests)
    lengths = [len(row.input_ids) for row in rows]
    batches = []
    for batch in token_budget_batches(lengths, prm.scorer.micro_batch_tokens):
        ids = [torch.from_numpy(rows[i].input_ids) for i in batch]
        masks = [torch.ones_like(one) for one in ids]
        batches.append(tuple(pad_sequence(one, True) for one in (ids, masks)))

    @torch.inference_mode()
    def run() -> None:
        for ids, mask in batches:
            prm.model(input_ids=ids, attention_mask=mask, use_cache=False)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--responses", type=int, default=256)
    parser.add_argument("--actors", type=int, default=1)
    arguments = parser.parse_args()
    # One thread here, as each actor has: they have one CPU each.
    torch.set_num_threads(1)
    ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    prm, requests = make_prm(), make_requests(arguments.responses)
    settings = PRMPoolSettings(batch_tokens=8_192)
    actors = PRMActors(prm, arguments.actors, settings)
    pool = PRMPool(actors.actors, settings)
    ways: dict[str, Callable[[], Any]] = {
        "bare forward pass": bare_pass(prm, requests),
        "in-process": lambda: prm.score(requests),
        f"pool of {arguments.actors}": lambda: pool.score(requests),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:  # The first round warms up.
                seconds[name].append(time.perf_counter() - start)
    gap = max(
        float(np.abs(first - second).max())
        for first, second in zip(pool.score(requests), prm.score(requests), strict=True)
    )
    tokens = sum(map(num_tokens, requests))
    bare = statistics.median(seconds["bare forward pass"])
    rows = []
    for name, taken in seconds.items():
        median = statistics.median(taken)
        rows.append([name, f"{tokens / median:,.0f}", f"{bare / median:.2f}"])
    print(f"{len(requests)} responses, {tokens:,} tokens; largest gap {gap:.1e}")
    print(format_table(["", "tokens/s", "to bare"], rows))
    ray.shutdown()


if __name__ == "__main__":
    main()
