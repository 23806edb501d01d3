"""Hostile answers from a seeded fuzzer: the verifier outlives a thousand of them."""

import random
import time
from collections import Counter

import pytest

from pure_rllib.rewards.base import OUTCOMES
from pure_rllib.rewards.verifier import MathVerifier

NUM_HOSTILE = 1000
TIME_LIMIT_S = 0.5
# How late a killed worker may be noticed on a busy machine.
MARGIN_S = 0.5
# An answer that hangs costs the start of a worker: one in 16 of each kind is as large
# as can be, the others are small.
BIG_EVERY = 16


def powers(rng: random.Random, big: bool) -> str:
    height, suffixes = (2, ["", r"\pi", "x"]) if not big else (9, ["", "!", "x"])
    tower = "^{".join(str(rng.randint(2, 99 if big else 9)) for _ in range(height))
    return tower + "}" * tower.count("{") + rng.choice(suffixes)


def braces(rng: random.Random, big: bool) -> str:
    opening = rng.choice(["{", "(", "[", r"\{", r"\boxed{", r"\sqrt{", r"\frac{"])
    count = rng.choice([1000, 100_000]) if big else rng.randint(2, 6)
    closing = {"(": ")", "[": "]", r"\{": r"\}"}.get(opening, "}")
    return opening * count + "1" + closing * rng.choice([0, 1, count])


def factorials(rng: random.Random, big: bool) -> str:
    number = str(rng.randint(10**5, 10**9) if big else rng.randint(3, 6))
    return rng.choice(["{}!", "({}!)!", "{}!!", r"\binom{{{}}}{{5000}}"]).format(number)


def decimals(rng: random.Random, big: bool) -> str:
    count = rng.choice([5000, 200_000]) if big else rng.randint(3, 40)
    digits = "".join(rng.choices("0123456789", k=count))
    forms = ["0.{}", "{}.{}", "{},{}", "{}%", *(["1e{}"] if big else [])]
    return rng.choice(forms).replace("{}", digits)


def control_characters(rng: random.Random, big: bool) -> str:
    codes = [*range(32), 0x7F, 0x85, 0x200B, 0x202E, 0x2028, 0xFEFF, 0xD800, 0xDFFF]
    count = rng.randint(1, 100_000 if big else 400)
    return "".join(chr(rng.choice([*codes, 53])) for _ in range(count))


def files(rng: random.Random, big: bool) -> str:
    command = rng.choice([r"\input", r"\include", r"\openin", r"\write18", r"\read"])
    path = rng.choice(["/etc/passwd", "/dev/zero", "../../secret", "|cat /etc/passwd"])
    return f"{command}{{{path}}}" * (1000 if big else 1)


def code(rng: random.Random, big: bool) -> str:
    if big:
        return rng.choice(["[0]*10**10", "sum(range(10**12))", "9**9**9**9"])
    return rng.choice(
        [
            "__import__('os').system('sleep 60')",
            "(lambda f: f(f))(lambda f: f(f))",
            "open('/etc/passwd').read()",
            "exec('while True: pass')",
        ]
    )


def sums(rng: random.Random, big: bool) -> str:
    term = rng.choice(["x+", "1+", r"\sin(x)\cdot ", "(x+y)^{9}", "x_1 y_2 "])
    return term * (rng.choice([2000, 50_000]) if big else rng.randint(1, 3)) + "1"


def calculus(rng: random.Random, big: bool) -> str:
    n = rng.randint(10**3, 10**8) if big else rng.randint(2, 9)
    width = 60 if big else 2
    hangs = [rf"\int_0^{{{n}}} e^{{x^{{7}}}} \sin(x^{{5}}) dx"] if big else []
    return rng.choice(
        [
            *hangs,
            rf"\sum_{{k=1}}^{{{n}}} \frac{{1}}{{k!}}",
            rf"\prod_{{k=1}}^{{{n}}} (k+1)",
            rf"\lim_{{x \to 0}} x^{{{n}}}",
            rf"(x+1)^{{{n}}}",
            rf"\begin{{pmatrix}} {'1 & ' * width} 1 \end{{pmatrix}}^{{{n}}}",
            rf"x^{{{n}}} = y^{{{n}}} + 1",
        ]
    )


def long_text(rng: random.Random, big: bool) -> str:
    word = rng.choice(["a ", "the answer is 5 ", "1 ", r"\text{and} ", "$", "1,", "1/"])
    return word * ((1_000_000 if big else rng.randint(100, 1000)) // len(word))


def mixtures(rng: random.Random, big: bool) -> str:
    kinds = [powers, factorials, control_characters, files, code, control_characters]
    parts = [rng.choice(kinds)(rng, big)[:200] for _ in range(rng.randint(2, 5))]
    return "".join(parts)


KINDS = [
    *(powers, braces, factorials, decimals, control_characters, files),
    *(code, sums, calculus, long_text, mixtures),
]


def hostile_answers(seed: int, count: int) -> list[tuple[str, str]]:
    """Makes `count` texts of all kinds in turn, each with its kind; most in a box."""
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        kind, turn = KINDS[number % len(KINDS)], number // len(KINDS)
        text = kind(rng, turn % BIG_EVERY == 0)
        # A box of over 10,000 characters is no answer: shorter ones try the parser.
        if rng.random() < 0.6:
            text = f"\\boxed{{{text[: rng.choice([500, 9000])]}}}"
        texts.append((kind.__name__, text))
    return texts


def test_the_fuzzer_is_seeded_and_varied():
    texts = hostile_answers(seed=3, count=550)
    assert texts == hostile_answers(seed=3, count=550)
    assert texts != hostile_answers(seed=4, count=550)
    assert max(len(text) for _, text in texts) >= 900_000
    assert {kind for kind, _ in texts} == {kind.__name__ for kind in KINDS}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_hostile_answers():
    texts = hostile_answers(seed=0, count=NUM_HOSTILE)
    with MathVerifier(num_workers=2, time_limit_s=TIME_LIMIT_S) as verifier:
        verifier.verify(["1", "2"], [r"\boxed{1}", r"\boxed{2}"])
        outcomes: Counter[str] = Counter()
        late_kinds: set[str] = set()
        num_wrong, slowest = 0, 0.0
        # In batches, each with honest answers in between, as training asks.
        for first in range(0, NUM_HOSTILE, 50):
            batch = texts[first : first + 50]
            honest = [str(first + n) for n in range(len(batch))]
            golds = [gold for n in honest for gold in ("314159", n)]
            pairs = zip(batch, honest, strict=True)
            answers = [
                text for (_, bad), n in pairs for text in (bad, f"\\boxed{{{n}}}")
            ]
            verdicts = verifier.verify(golds, answers)
            for (kind, _), verdict in zip(batch, verdicts[0::2], strict=True):
                outcomes[verdict.outcome] += 1
                if verdict.outcome == "timeout":
                    late_kinds.add(kind)
            num_wrong += sum(v.outcome != "correct" for v in verdicts[1::2])
            slowest = max(slowest, *(verdict.seconds for verdict in verdicts))
        start = time.perf_counter()
        (last,) = verifier.verify(["314159"], [r"\boxed{314159}"])
        assert last.outcome == "correct"
        assert time.perf_counter() - start < 60.0
        assert len(verifier.worker_pids) <= 2
    assert outcomes.total() == NUM_HOSTILE and set(outcomes) <= set(OUTCOMES)
    assert outcomes["correct"] == 0
    # It was hard: workers were killed, by answers of several kinds.
    assert outcomes["timeout"] >= 10 and len(late_kinds) >= 4
    assert slowest <= TIME_LIMIT_S + MARGIN_S
    # Honest ones may be late too where the machine is busy; they are never wrong.
    assert num_wrong <= 5
