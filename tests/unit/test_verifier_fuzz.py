"""Hostile answers from a seeded fuzzer: the verifier outlives a thousand of them."""

import random
import time
from collections import Counter

import pytest

from pure_rllib.rewards.base import OUTCOMES
from pure_rllib.rewards.verifier.math_verifier import MathVerifier

NUM_HOSTILE = 1000
NUM_WORKERS = 2
TIME_LIMIT_S = 0.4
# How late a worker may be killed, and how long one takes to start, on a busy machine.
MARGIN_S = 0.5
START_S = 5.0
MAX_BOX_CHARS = 10_000
LONG_CHARS = (20_000, 100_000, 1_000_000)


def powers(rng: random.Random) -> str:
    base = rng.choice(["7", r"\pi", "x", r"\frac{3}{7}", "1.000001", "-2", r"\sqrt{2}"])
    tower = "^{".join([base, *(str(rng.randint(7, 99)) for _ in range(4))])
    return tower + "}" * 4 + rng.choice(["", "!", "x", r" \mod 7"])


def factorials(rng: random.Random) -> str:
    forms = [
        "{}!",
        "(({}!)!)!",
        "{}!!",
        r"\frac{{}!}{(5000)!}",
        r"\binom{{}}{50000000}",
    ]
    forms += [r"\Gamma({})", "{}! + 1", r"\sqrt{{}!}", r"({}^{{}})!"]
    return rng.choice(forms).replace("{}", str(rng.randint(10**8, 10**9)))


def decimals(rng: random.Random) -> str:
    digits = "".join(rng.choices("0123456789", k=rng.choice([3000, 8000])))
    forms = [
        "0.{}",
        "3.{}",
        "3.{}%",
        "e^{{}.5}",
        "0.5^{{}}",
        "10^{-{}}",
        r"\sqrt{{}.5}",
    ]
    return rng.choice(forms).replace("{}", digits)


def braces(rng: random.Random) -> str:
    opening = rng.choice(["{", "(", "[", r"\{", r"\boxed{", r"\sqrt{", r"\frac{1}{1+"])
    count = rng.choice([100, 1000, 100_000])
    closing = {"(": ")", "[": "]", r"\{": r"\}"}.get(opening, "}")
    return opening * count + "1" + closing * rng.choice([0, 1, count])


def sums(rng: random.Random) -> str:
    term = rng.choice(["x+", "1+", r"\sin(x)\cdot ", "(x+y)^{9}+", "x_1 y_2 ", "(x+1)"])
    return term * (9000 // len(term)) + "1"


def calculus(rng: random.Random) -> str:
    n = str(rng.randint(10**6, 10**8))
    forms = [
        *(
            r"\int_0^{{}} e^{x^{7}} \sin(x^{5}) dx",
            r"\int \frac{x^{99}+1}{x^{77}+x} dx",
        ),
        *(r"\sum_{k=1}^{{}} \frac{1}{k!}", r"\prod_{k=1}^{{}} (k+1)"),
        *(r"\lim_{x \to 0} \frac{\sin(x^{{}})}{x^{{}}}", r"(x+1)^{{}}"),
        *(r"\begin{pmatrix} 9 & x \\ 7 & 6 \end{pmatrix}^{{}}", "x^{{}} = y^{{}} + 1"),
    ]
    return rng.choice(forms).replace("{}", n)


def control_characters(rng: random.Random) -> str:
    codes = [*range(32), 0x7F, 0x85, 0x200B, 0x202E, 0x2028, 0xFEFF, 0xD800, 0xDFFF]
    count = rng.choice([10, 1000, 100_000])
    return "".join(map(chr, rng.choices([*codes, 53, 94], k=count)))


def files(rng: random.Random) -> str:
    command = rng.choice([r"\input", r"\include", r"\openin", r"\write18", r"\read"])
    path = rng.choice(["/etc/passwd", "/dev/zero", "../../secret", "|cat /etc/passwd"])
    return f"{command}{{{path}}}" * rng.choice([1, 300, 1000])


def code(rng: random.Random) -> str:
    calls = ["__import__('os').system('sleep 60')", "open('/etc/passwd').read()"]
    calls += ["(lambda f: f(f))(lambda f: f(f))", "exec('while True: pass')"]
    calls += ["[0]*10**10", "factorial(10**9)", "9**9**9**9", "a.__class__.__base__"]
    return rng.choice(calls) + rng.choice(["", ";", "\\n"]) + rng.choice(calls)


def long_texts(rng: random.Random) -> str:
    word = rng.choice(
        ["a ", "the answer is 5 ", "1 ", r"\text{and} ", "$", "1,", "{5}"]
    )
    return word * (1_000_000 // len(word))


def mixtures(rng: random.Random) -> str:
    kinds = [powers, factorials, control_characters, files, code, control_characters]
    return "".join(rng.choice(kinds)(rng)[:200] for _ in range(rng.randint(2, 5)))


# In a box, most texts of these keep Math-Verify busy for ever.
HANGING = (powers, factorials, decimals, braces, sums, calculus)
QUICK = (control_characters, files, code, long_texts, mixtures)
# So only every sixth is one: the start of another worker is what they cost.
PLACES = ("box", "before a box", "long box", "open box", "before a box", "long box")


def placed(rng: random.Random, text: str, place: str) -> str:
    """Puts a hostile text where an answer is looked for, or close to it."""
    if place == "before a box":
        return text + r" so $\boxed{-1}$"
    if place == "long box":
        # Longer than any answer: it is to be refused without being parsed.
        text *= rng.choice(LONG_CHARS) // len(text) + 1
    elif place == "box":
        text = text[: MAX_BOX_CHARS - 1]
    return "\\boxed{" + text + ("" if place == "open box" else "}")


def hostile_answers(seed: int, count: int) -> list[tuple[str, str]]:
    """Makes `count` texts of all kinds in turn, each with its kind."""
    rng, kinds = random.Random(seed), (*HANGING, *QUICK)
    texts = []
    for number in range(count):
        kind, turn = kinds[number % len(kinds)], number // len(kinds)
        text = kind(rng)
        if kind in HANGING:
            text = placed(rng, text, PLACES[turn % len(PLACES)])
        elif turn % 2:
            text = placed(rng, text, "long box" if kind is long_texts else "box")
        texts.append((kind.__name__, text))
    return texts


@pytest.mark.slow
def test_the_fuzzer_is_seeded_and_varied():
    texts = hostile_answers(seed=3, count=550)
    assert texts == hostile_answers(seed=3, count=550)
    assert texts != hostile_answers(seed=4, count=550)
    assert sum(len(text) >= 900_000 for _, text in texts) >= 50
    assert sum(text.count("{") >= 100_000 for _, text in texts) >= 20
    kinds = {kind.__name__ for kind in (*HANGING, *QUICK)}
    assert {kind for kind, _ in texts} == kinds


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_hostile_answers():
    texts = hostile_answers(seed=0, count=NUM_HOSTILE)
    with MathVerifier(num_workers=NUM_WORKERS, time_limit_s=TIME_LIMIT_S) as verifier:
        verifier.verify(["1", "2"], [r"\boxed{1}", r"\boxed{2}"])
        outcomes: Counter[str] = Counter()
        honest_outcomes: Counter[str] = Counter()
        late_kinds: set[str] = set()
        slowest = 0.0
        # In batches, each with honest answers in between, as training asks.
        for first in range(0, NUM_HOSTILE, 50):
            batch = texts[first : first + 50]
            honest = [str(first + n) for n in range(len(batch))]
            golds = [gold for n in honest for gold in ("314159", n)]
            pairs = zip(batch, honest, strict=True)
            answers = [
                text for (_, bad), n in pairs for text in (bad, f"\\boxed{{{n}}}")
            ]
            start = time.monotonic()
            verdicts = verifier.verify(golds, answers)
            wall_s = time.monotonic() - start
            num_late = sum(v.outcome == "timeout" for v in verdicts)
            busy_s = sum(verdict.seconds for verdict in verdicts) + num_late * START_S
            assert wall_s <= busy_s / NUM_WORKERS + START_S
            for (kind, _), verdict in zip(batch, verdicts[0::2], strict=True):
                outcomes[verdict.outcome] += 1
                if verdict.outcome == "timeout":
                    late_kinds.add(kind)
            honest_outcomes.update(v.outcome for v in verdicts[1::2])
            slowest = max(slowest, *(verdict.seconds for verdict in verdicts))
        (last,) = verifier.verify(["314159"], [r"\boxed{314159}"])
        assert last.outcome == "correct"
        assert len(verifier.worker_pids) <= NUM_WORKERS
    assert outcomes.total() == NUM_HOSTILE and set(outcomes) <= set(OUTCOMES)
    assert outcomes["correct"] == 0
    # It was hard: workers were killed, by answers of every kind that is to hang.
    assert outcomes["timeout"] >= 60
    assert late_kinds >= {kind.__name__ for kind in HANGING}
    # Seconds are measured: a killed one took a little more than the limit.
    assert TIME_LIMIT_S < slowest <= TIME_LIMIT_S + MARGIN_S
    # Where the machine is busy, honest ones may be late too; they are never wrong.
    assert set(honest_outcomes) <= {"correct", "timeout"}
    assert honest_outcomes["timeout"] <= 10
