"""Peak memory and time of log-probabilities, forward and backward: chunked or naive.

Each way runs in a process of its own and measures its peak resident memory above that
of its inputs; gradients count. The results are compared afterwards.

    python benchmarks/logprobs.py [--vocab 151665] [--tokens 4096] [--hidden 256]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from pure_rllib.models.logprobs import LOGP, chunked_logps
from pure_rllib.reporting.tables import format_table

WAYS = ("naive", "chunked")


def peak_bytes() -> int:
    """Largest resident memory of this process so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(way: str, options: argparse.Namespace) -> None:
    """One way, in this process; writes its results to `options.output`."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, options.hidden, requires_grad=True)
    weight = torch.randn(options.vocab, options.hidden).mul_(0.05).requires_grad_()
    ids = torch.randint(0, options.vocab, (options.tokens,))
    upstream = torch.randn(options.tokens)
    # The first products set up the libraries, which is no memory of either way.
    small = torch.randn(64, 64, requires_grad=True)
    (small @ small).log_softmax(-1).sum().backward()
    before, start = peak_bytes(), time.perf_counter()
    if way == "chunked":
        logps = chunked_logps(hidden, weight, ids)[LOGP]
    else:
        logits = hidden @ weight.t()
        logps = logits.float().log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
        del logits
    (logps * upstream).sum().backward()
    seconds, peak = time.perf_counter() - start, peak_bytes() - before
    torch.save(
        {
            "seconds": seconds,
            "peak": peak,
            "logps": logps.detach(),
            "hidden": hidden.grad,
            "weight": weight.grad,
        },
        options.output,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=151_665)
    parser.add_argument("--tokens", type=int, default=4 * 1024)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        run(options.way, options)
        return
    sizes = [f"--{n}={getattr(options, n)}" for n in ("vocab", "tokens", "hidden")]
    sizes.append(f"--threads={options.threads}")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            output = Path(folder) / f"{way}.pt"
            subprocess.run(
                [sys.executable, __file__, *sizes, "--way", way, "--output", output],
                check=True,
            )
            results[way] = torch.load(output, weights_only=True)
    print(
        f"vocabulary {options.vocab:,}, {options.tokens:,} tokens, hidden size "
        f"{options.hidden}, float32, forward and backward, {options.threads} thread(s)"
        "\n"
    )
    naive = results["naive"]
    rows = [
        [
            way,
            f"{result['peak'] / 2**30:.2f}",
            f"{result['peak'] / naive['peak']:.2f}",
            f"{result['seconds']:.1f}",
            f"{result['seconds'] / naive['seconds']:.2f}",
        ]
        for way, result in results.items()
    ]
    headers = ["way", "peak GiB", "of naive", "seconds", "of naive"]
    print(format_table(headers, rows))
    for name in ("logps", "hidden", "weight"):
        gap = (results["chunked"][name] - naive[name]).abs().max().item()
        scale = naive[name].abs().max().item()
        what = name if name == "logps" else f"gradient of {name}"
        print(f"largest difference, {what}: {gap:.1e} (largest value {scale:.1e})")


if __name__ == "__main__":
    main()
