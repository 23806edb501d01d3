"""Hostile answers from a seeded fuzzer: the verifier outlives a thousand of them."""

import random
import time
from collections import Counter

import pytest

from pure_rllib.rewards.base import OUTCOMES
from pure_rllib.rewards.verifier import MathVerifier

NUM_HOSTILE = 1000
TIME_LIMIT_S = 0.25
# How late a killed worker may be noticed on a busy machine.
MARGIN_S = 0.5


def powers(rng: random.Random) -> str:
    tower = "^{".join(str(rng.randint(2, 99)) for _ in range(rng.randint(3, 12)))
    return tower + "}" * tower.count("{") + rng.choice(["", "!", r"\pi", "x"])


def braces(rng: random.Random) -> str:
    opening = rng.choice(["{", "(", "[", r"\{", r"\boxed{", r"\sqrt{", r"\frac{"])
    count = rng.choice([10, 1000, 100_000 // len(opening)])
    closing = {"(": ")", "[": "]", r"\{": r"\}"}.get(opening, "}")
    return opening * count + "1" + closing * rng.choice([0, 1, count])


def factorials(rng: random.Random) -> str:
    number = str(rng.randint(10**5, 10**9))
    return rng.choice(["{}!", "({}!)!", "{}!!", r"\binom{{{}}}{{5000}}"]).format(number)


def decimals(rng: random.Random) -> str:
    digits = "".join(rng.choices("0123456789", k=rng.choice([50, 5000, 200_000])))
    return rng.choice(["0.{}", "{}.{}", "{},{}", "1e{}", "{}%"]).replace("{}", digits)


def control_characters(rng: random.Random) -> str:
    codes = [*range(32), 0x7F, 0x85, 0x200B, 0x202E, 0x2028, 0xFEFF, 0xD800, 0xDFFF]
    return "".join(chr(rng.choice([*codes, 53])) for _ in range(rng.randint(1, 400)))


def files(rng: random.Random) -> str:
    command = rng.choice([r"\input", r"\include", r"\openin", r"\write18", r"\read"])
    path = rng.choice(["/etc/passwd", "/dev/zero", "../../secret", "|cat /etc/passwd"])
    return f"{command}{{{path}}}"


def code(rng: random.Random) -> str:
    return rng.choice(
        [
            "__import__('os').system('sleep 60')",
            "(lambda f: f(f))(lambda f: f(f))",
            "open('/etc/passwd').read()",
            "exec('while True: pass')",
            "[0]*10**10",
            "sum(range(10**12))",
        ]
    )


def sums(rng: random.Random) -> str:
    term = rng.choice(["x+", "1+", r"\sin(x)\cdot ", "(x+y)^{9}", "x_1 y_2 "])
    return term * rng.choice([20, 2000, 50_000]) + "1"


def calculus(rng: random.Random) -> str:
    n = rng.randint(10**3, 10**8)
    return rng.choice(
        [
            rf"\int_0^{{{n}}} e^{{x^{{7}}}} \sin(x^{{5}}) dx",
            rf"\sum_{{k=1}}^{{{n}}} \frac{{1}}{{k!}}",
            rf"\prod_{{k=1}}^{{{n}}} (k+1)",
            rf"\lim_{{x \to 0}} x^{{{n}}}",
            rf"(x+1)^{{{n}}}",
            rf"\begin{{pmatrix}} {'1 & ' * 60} 1 \end{{pmatrix}}^{{{n}}}",
            rf"x^{{{n}}} = y^{{{n}}} + 1",
        ]
    )


def long_text(rng: random.Random) -> str:
    word = rng.choice(["a ", "the answer is 5 ", "1 ", r"\text{and} ", "$", "1,", "1/"])
    return word * (1_000_000 // len(word))


def mixtures(rng: random.Random) -> str:
    kinds = [powers, factorials, control_characters, files, code, control_characters]
    parts = [rng.choice(kinds)(rng)[:200] for _ in range(rng.randint(2, 5))]
    return "".join(parts)


# Most answers that hang cost the start of a worker: the dear kinds are rarer.
WEIGHTS = {
    powers: 1,
    braces: 3,
    factorials: 1,
    decimals: 2,
    control_characters: 10,
    files: 10,
    code: 2,
    sums: 1,
    calculus: 1,
    long_text: 1,
    mixtures: 3,
}
KINDS = [kind for kind, weight in WEIGHTS.items() for _ in range(weight)]


def hostile_answers(seed: int, count: int) -> list[str]:
    """Makes `count` texts of all kinds; half of them in a box."""
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        # A box of over 10,000 characters is no answer: shorter ones try the parser.
        text = kind(rng)
        if rng.random() < 0.6:
            text = f"\\boxed{{{text[: rng.choice([500, 9000])]}}}"
        texts.append(text)
    return texts


def test_the_fuzzer_is_seeded_and_varied():
    texts = hostile_answers(seed=3, count=110)
    assert texts == hostile_answers(seed=3, count=110)
    assert texts != hostile_answers(seed=4, count=110)
    assert max(map(len, texts)) >= 900_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_hostile_answers():
    texts = hostile_answers(seed=0, count=NUM_HOSTILE)
    with MathVerifier(num_workers=2, time_limit_s=TIME_LIMIT_S) as verifier:
        verifier.verify(["1", "2"], [r"\boxed{1}", r"\boxed{2}"])
        outcomes: Counter[str] = Counter()
        num_wrong, slowest = 0, 0.0
        # In batches, each with honest answers in between, as training asks.
        for first in range(0, NUM_HOSTILE, 50):
            batch = texts[first : first + 50]
            honest = [str(first + n) for n in range(len(batch))]
            golds = [gold for n in honest for gold in ("314159", n)]
            pairs = zip(batch, honest, strict=True)
            answers = [text for bad, n in pairs for text in (bad, f"\\boxed{{{n}}}")]
            verdicts = verifier.verify(golds, answers)
            outcomes.update(verdict.outcome for verdict in verdicts[0::2])
            num_wrong += sum(v.outcome != "correct" for v in verdicts[1::2])
            slowest = max(slowest, *(verdict.seconds for verdict in verdicts))
        start = time.perf_counter()
        (last,) = verifier.verify(["314159"], [r"\boxed{314159}"])
        assert last.outcome == "correct"
        assert time.perf_counter() - start < 60.0
        assert len(verifier.worker_pids) <= 2
    assert outcomes.total() == NUM_HOSTILE and set(outcomes) <= set(OUTCOMES)
    assert outcomes["correct"] == 0
    assert outcomes["timeout"] > 0
    assert slowest <= TIME_LIMIT_S + MARGIN_S
    # Honest ones may be late too where the machine is busy; they are never wrong.
    assert num_wrong <= 5
