"""How fast responses are sampled: our generator against `model.generate`.

The same prompts, the same model and the same response lengths for both: a rule on the
logits ends each response at a length drawn beforehand. The rounds alternate, so that a
busy machine slows both; the table shows medians.

    python benchmarks/sampling.py [--rounds 7] [--threads 1]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, Qwen2Config
from transformers import Qwen2ForCausalLM as Policy

from pure_rllib.generation.base import SamplingParams
from pure_rllib.generation.transformers_generator import TransformersGenerator
from pure_rllib.reporting.tables import format_table

PAD, EOS, VOCAB_SIZE = 0, 1, 24
NUM_PROMPTS, GROUP_SIZE, BUDGET = 16, 8, 80


def make_policy() -> Policy:
    """A random policy of the embedded default's size."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return Policy(config).eval()


def make_lengths(rng: np.random.Generator) -> Tensor:
    """`[N * G]` response lengths: about 25 tokens, with a tail up to the budget."""
    drawn = rng.gamma(shape=4.0, scale=6.25, size=NUM_PROMPTS * GROUP_SIZE)
    return torch.from_numpy(drawn.round().clip(2, BUDGET).astype(np.int64))


def end_at(logits: Tensor, is_last: Tensor) -> Tensor:
    """Forces EOS where `is_last` is True and forbids it elsewhere."""
    is_eos = torch.arange(VOCAB_SIZE) == EOS
    return logits.masked_fill(is_eos ^ is_last[:, None], float("-inf"))


class ForcedLengths(LogitsProcessor):
    """The rule for `model.generate`."""

    def __init__(self, lengths: Tensor, prompt_width: int):
        self.lengths, self.prompt_width = lengths, prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        t = input_ids.shape[1] - self.prompt_width
        return end_at(scores, self.lengths <= t + 1)


class ForcedGenerator(TransformersGenerator):
    """The same rule for our generator."""

    lengths: Tensor

    def _choose(
        self, logits: Tensor, params: SamplingParams, columns: Tensor, alive: Tensor, t
    ) -> tuple[Tensor, Tensor]:
        forced = end_at(logits, self.lengths[alive] <= t + 1)
        return super()._choose(forced, params, columns, alive, t)


def sample_ours(policy: Policy, prompts: list[list[int]], lengths: Tensor) -> list[int]:
    """Lengths of the responses of our generator."""
    generator = ForcedGenerator(policy, pad_token_id=PAD, eos_token_ids=[EOS])
    # The generator sorts prompts by length; so are the prompts of this benchmark.
    generator.lengths = lengths
    groups = generator.generate(
        prompts, GROUP_SIZE, SamplingParams(BUDGET), list(range(NUM_PROMPTS))
    )
    return [len(response.token_ids) for group in groups for response in group]


def sample_generate(
    policy: Policy, prompts: list[list[int]], lengths: Tensor
) -> list[int]:
    """Lengths of the responses of `model.generate`."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    output: Any = policy.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        num_return_sequences=GROUP_SIZE,
        max_new_tokens=BUDGET,
        logits_processor=LogitsProcessorList([ForcedLengths(lengths, width)]),
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return ((output[:, width:] == EOS).int().argmax(1) + 1).tolist()


Sampler = Callable[[Policy, list[list[int]], Tensor], list[int]]

# Another way of sampling is one more entry.
SAMPLERS: dict[str, Sampler] = {
    "model.generate": sample_generate,
    "TransformersGenerator": sample_ours,
}


def measure(
    samplers: dict[str, Sampler], num_rounds: int
) -> dict[str, tuple[float, int]]:
    """Median seconds per call, and tokens per call, of each sampler."""
    rng = np.random.default_rng(0)
    policy = make_policy()
    sizes = sorted(rng.integers(8, 13, size=NUM_PROMPTS).tolist())
    prompts = [rng.integers(2, VOCAB_SIZE, size=n).tolist() for n in sizes]
    lengths = make_lengths(rng)
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for round_number in range(num_rounds + 1):
        for name, sampler in samplers.items():
            start = time.perf_counter()
            sampled = sampler(policy, prompts, lengths)
            if round_number > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
            assert sampled == lengths.tolist(), f"{name} has other lengths"
    num_tokens = int(lengths.sum())
    return {
        name: (statistics.median(times), num_tokens) for name, times in seconds.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = measure(SAMPLERS, options.rounds)
    baseline = results["model.generate"][0]
    print(
        f"{NUM_PROMPTS} prompts x {GROUP_SIZE} responses, budget {BUDGET}, "
        f"{options.threads} thread(s), median of {options.rounds} rounds\n"
    )
    rows = [
        [name, f"{secs:.3f}", f"{tokens / secs:,.0f}", f"{baseline / secs:.2f}x"]
        for name, (secs, tokens) in results.items()
    ]
    print(format_table(["sampler", "seconds", "tokens/s", "ratio"], rows))


if __name__ == "__main__":
    main()
