"""Numbers on the text of a response that show a policy going astray."""

import itertools
import re

import numpy as np

# Up to so many characters plain strings are quicker than arrays.
_SHORT = 128
REFLECTION_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"wait,",
        r"recheck[,\s]",
        r"retry[,\s]",
        r"try again",
        r"alternatively,",
        r"however,",
        r"rethink[,\s]",
        r"let's check",
        r"let's verify",
    )
)
"""Phrases of second thought, lower case, as PURE's authors count them."""


def num_text_steps(text: str) -> int:
    """Counts the pieces between double newlines, empty ones too.

    The text does not show where tokens begin, so this may differ from the number of
    steps that `StepSplitter` finds.
    """
    return len(text.split("\n\n"))


def reflection_counts(text: str) -> list[int]:
    """Counts each of `REFLECTION_PATTERNS` in the text as it is."""
    return [len(pattern.findall(text)) for pattern in REFLECTION_PATTERNS]


def reflection(text: str) -> int:
    """Counts all phrases of second thought, in upper or lower case."""
    return sum(reflection_counts(text.lower()))


def repetition(text: str) -> float:
    """Measures how much of a text is repeated: the share of substrings seen before.

    Of the n(n+1)/2 substrings, the number that is not distinct is the sum of the
    longest common prefixes of neighbours in the sorted list of suffixes. The suffixes
    are sorted by prefix doubling: O(n log^2 n), and never O(n^2) as with plain string
    comparison, which repetitive text makes slow exactly where it matters.

    Args:
        text: any text; compared by code point.

    Returns:
        Share in [0, 1); 0.0 for fewer than two characters.
    """
    n = len(text)
    if n <= 1:
        return 0.0
    if n <= _SHORT:
        return 2 * _common_prefixes(text) / (n * (n + 1))
    code = text.encode("utf-32-le", errors="surrogatepass")
    ranks = [_ranks(np.frombuffer(code, dtype=np.uint32))]
    # ranks[k][i] orders the suffixes by their first 2^k characters.
    while 2 ** len(ranks) < 2 * n and ranks[-1].max() < n - 1:
        rank, width = ranks[-1], 2 ** (len(ranks) - 1)
        after = np.zeros(n, dtype=np.int64)
        after[:-width] = rank[width:] + 1
        ranks.append(_ranks(rank * (n + 1) + after))
    order = np.argsort(ranks[-1])
    left, right = order[:-1].copy(), order[1:].copy()
    common = np.zeros(n - 1, dtype=np.int64)
    for k in reversed(range(len(ranks))):
        # Past the end, where there is nothing, nothing is in common.
        padded = np.append(ranks[k], -1)
        equal = padded[np.minimum(left, n)] == padded[np.minimum(right, n)]
        step = np.where(equal, 2**k, 0)
        common += step
        left += step
        right += step
    return float(2 * common.sum() / (n * (n + 1)))


def _common_prefixes(text: str) -> int:
    """Sums the common prefixes of neighbours among a short text's sorted suffixes."""
    suffixes = sorted(text[i:] for i in range(len(text)))
    total = 0
    for left, right in itertools.pairwise(suffixes):
        for one, other in zip(left, right, strict=False):
            if one != other:
                break
            total += 1
    return total


def _ranks(keys: np.ndarray) -> np.ndarray:
    """Numbers keys by their order, equal keys equally."""
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)
