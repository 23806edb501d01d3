"""Tests of the verifier and its worker processes; all of them run real workers."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pure_rllib.cli.verify import load_pairs, measure
from pure_rllib.rewards.base import Verifier
from pure_rllib.rewards.verifier.math_verifier import MathVerifier

HOSTILE = {
    "tower": r"\boxed{9^{9^{9^{9}}}}",
    "tower, no box": "answer: 9^9^9^9 ",
    "python tower": r"\boxed{9**9**9**9}",
    "deep braces": r"\boxed{" + "{" * 4000 + "}" * 4000 + "}",
    "100,000 braces": "{" * 100_000,
    "100,000 boxes": r"\boxed{" * 100_000 + "}" * 100_000,
    "factorial": r"\boxed{100000000!}",
    "1 MB of words": "a " * 500_000,
    "1 MB of digits": "1" * 1_000_000,
    "1 MB in a box": r"\boxed{" + "1+" * 500_000 + "1}",
    "control characters": "\x00\x01\x1b[2J\r\n\\boxed{\x00\x07}",
    "lone surrogate": "\ud800 \\boxed{\udfff}",
    "file": r"\boxed{\input{/etc/passwd}}",
    "code": r"\boxed{__import__('os').system('echo owned')}",
    "protocol": '\\boxed{5}\n["5", "x"]\n{"ready": true}\n\\boxed{"}',
}


# A number of 18 million digits, 7.5 MB, in several copies that sympy's caches keep.
GROWING = r"\boxed{2^{60000000}}"


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(time_limit_s=5.0) as verifier:
        yield verifier


def outcomes(verifier: MathVerifier, pairs: list[tuple[str, str]]) -> list[str]:
    verdicts = verifier.verify([gold for gold, _ in pairs], [text for _, text in pairs])
    return [verdict.outcome for verdict in verdicts]


def test_known_pairs(verifier: MathVerifier):
    assert isinstance(verifier, Verifier)
    pairs = {
        ("5", "3+2=5\n\n\\boxed{5}"): "correct",
        ("5", "3+2=5\n\n\\boxed{6}"): "incorrect",
        (r"\frac{1}{2}", r"so $\boxed{0.5}$"): "correct",
        ("$x^2+1$", r"\boxed{1+x^2}"): "correct",
        (r"\boxed{7}", "the answer is 7."): "correct",
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}"): "correct",
        ("12", r"\boxed{1} and \boxed{2}"): "incorrect",
        ("5", r"5 5 5 \boxed{6}"): "incorrect",
        ("5", "I do not know"): "no_answer",
        ("5", r"5 \boxed{}"): "no_answer",
        ("5", ""): "no_answer",
        ("", r"\boxed{5}"): "error",
        (r"\boxed{}", r"\boxed{5}"): "error",
    }
    assert outcomes(verifier, list(pairs)) == list(pairs.values())


def test_verdicts_carry_answer_reward_and_seconds(verifier: MathVerifier):
    first, second = verifier.verify(["31", "31"], [r"\boxed{31}", r"or \boxed{31}"])
    assert (first.answer, first.reward) == ("31", 1.0)
    assert first.seconds > 0.0
    # The second is the same pair: it takes no time of its own.
    assert (second.outcome, second.answer, second.seconds) == ("correct", "31", 0.0)


def test_boxed_only_ignores_numbers_outside_of_a_box():
    with MathVerifier(boxed_only=True) as verifier:
        assert outcomes(verifier, [("9", "1-2=9\n\n")]) == ["no_answer"]
        # Nothing had to be compared, so nothing was started.
        assert verifier.worker_pids == []


def test_golds_that_cannot_be_read_are_named(verifier: MathVerifier):
    golds = ["5", r"\frac{3}{4}", r"\boxed{}", "5", "", "(1,2)", "Evelyn", "4 5/0"]
    bad = verifier.check_golds(golds)
    assert {gold: verdict.outcome for gold, verdict in bad.items()} == {
        r"\boxed{}": "error",
        "": "no_answer",
        "4 5/0": "error",
    }


@pytest.mark.slow
def test_hostile_answers_leave_the_next_answer_right():
    with MathVerifier(num_workers=2, time_limit_s=0.4) as verifier:
        pairs = []
        for number, text in enumerate(HOSTILE.values()):
            pairs += [("5", text), (str(number), f"\\boxed{{{number}}}")]
        found = outcomes(verifier, pairs)
        assert found[1::2] == ["correct"] * len(HOSTILE)
        hostile = dict(zip(HOSTILE, found[0::2], strict=True))
        assert "correct" not in hostile.values()
        assert hostile["tower"] == hostile["factorial"] == "timeout"
        assert hostile["100,000 braces"] == hostile["1 MB of words"] == "no_answer"
        assert len(verifier.worker_pids) <= 2


def test_a_worker_holds_no_more_than_its_memory_limit():
    code = (
        "from pure_rllib.rewards.verifier.worker_process import set_limits;"
        "set_limits(200);"
        "bytearray(150 << 20); print('fits', flush=True); bytearray(250 << 20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "fits\n"
    assert done.stderr.endswith("MemoryError\n")


@pytest.mark.slow
def test_a_worker_that_grew_is_replaced():
    with MathVerifier(memory_limit_mb=120, time_limit_s=20.0) as verifier:
        outcomes(verifier, [("1", r"\boxed{1}")])
        (pid,) = verifier.worker_pids
        # It stays while it is small, even if this process is not.
        assert outcomes(verifier, [("3", r"\boxed{3}")]) == ["correct"]
        assert verifier.worker_pids == [pid]
        outcomes(verifier, [("1", GROWING)])
        assert outcomes(verifier, [("2", r"\boxed{2}")]) == ["correct"]
        assert verifier.worker_pids != [pid]


def test_a_pair_whose_worker_is_killed_is_tried_once_more(verifier: MathVerifier):
    outcomes(verifier, [("1", r"\boxed{1}")])
    (pid,) = verifier.worker_pids
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    killer.start()
    pairs = [(str(n), f"\\boxed{{{n}}}") for n in range(200, 220)]
    assert outcomes(verifier, pairs) == ["correct"] * 20
    killer.join()
    assert pid not in verifier.worker_pids


@pytest.mark.slow
def test_a_pair_that_ends_two_workers_is_an_error(caplog: pytest.LogCaptureFixture):
    with MathVerifier(time_limit_s=20.0) as verifier:
        outcomes(verifier, [("1", r"\boxed{1}")])

        done = threading.Event()

        def kill_again_and_again() -> None:
            while not done.wait(1.0):
                # One that is still starting would be an error of the whole call.
                for worker in list(verifier._pool._workers):
                    if worker.ready:
                        os.kill(worker.process.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_again_and_again)
        killer.start()
        pairs = [("1", r"\boxed{100000000!}")]
        pairs += [(str(n), f"\\boxed{{{n}}}") for n in range(20)]
        try:
            assert outcomes(verifier, pairs) == ["error"] + ["correct"] * 20
        finally:
            done.set()
            killer.join()
    (record,) = caplog.records
    assert "100000000!" in record.getMessage()


def test_a_worker_killed_between_two_calls_is_replaced(verifier: MathVerifier):
    outcomes(verifier, [("41", r"\boxed{41}")])
    (pid,) = verifier.worker_pids
    os.kill(pid, signal.SIGKILL)
    assert outcomes(verifier, [("42", r"\boxed{42}")]) == ["correct"]
    assert verifier.worker_pids != [pid]


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_a_clear_error():
    # Enough to import sympy, too little to parse a fraction, which Math-Verify hides.
    verifier = MathVerifier(memory_limit_mb=60)
    with pytest.raises(RuntimeError, match=r"`memory_limit_mb` \(60\)"):
        verifier.verify(["5"], [r"\boxed{5}"])
    assert verifier.worker_pids == []
    with pytest.raises(RuntimeError, match=r"`start_limit_s` \(0.001\)"):
        MathVerifier(start_limit_s=0.001).verify(["5"], [r"\boxed{5}"])


@pytest.mark.slow
def test_workers_end_with_their_verifier():
    verifier = MathVerifier()
    outcomes(verifier, [("1", r"\boxed{1}")])
    (pid,) = verifier.worker_pids
    verifier.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    # It stays usable, and ends them when it is collected too.
    assert outcomes(verifier, [("2", r"\boxed{2}")]) == ["correct"]
    (pid,) = verifier.worker_pids
    del verifier
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_pickling_keeps_settings_and_no_workers(verifier: MathVerifier):
    outcomes(verifier, [("1", r"\boxed{1}")])
    settings = MathVerifier(num_workers=3, boxed_only=True, time_limit_s=2.0)
    copy = pickle.loads(pickle.dumps(settings))
    assert (copy.num_workers, copy.boxed_only, copy.time_limit_s) == (3, True, 2.0)
    with pickle.loads(pickle.dumps(verifier)) as used_copy:
        assert used_copy.worker_pids == []
        assert outcomes(used_copy, [("1", r"\boxed{1}")]) == ["correct"]


def test_threads_share_a_verifier(verifier: MathVerifier):
    found: dict[int, list[str]] = {}

    def work(thread: int) -> None:
        pairs = [
            (str(n), f"\\boxed{{{n + n % 2}}}") for n in range(thread, thread + 20)
        ]
        found[thread] = outcomes(verifier, pairs)

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {100 * n: ["correct", "incorrect"] * 10 for n in range(1, 5)}


def test_known_pairs_need_no_worker(verifier: MathVerifier):
    pairs = [(str(n % 10), f"x\n\n\\boxed{{{n % 7}}}") for n in range(128)]
    before = outcomes(verifier, pairs)
    verifier.close()
    assert outcomes(verifier, pairs) == before
    assert verifier.worker_pids == []
    assert Counter(before)["correct"] == sum(n % 10 == n % 7 for n in range(128))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 0}, r"`num_workers` \(0\) must be >= 1"),
        ({"time_limit_s": 0.0}, r"`time_limit_s` \(0.0\) must be > 0"),
        ({"cache_size": -1}, r"`cache_size` \(-1\) must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MathVerifier(**settings)


def test_lengths_must_agree(verifier: MathVerifier):
    with pytest.raises(ValueError, match=r"`golds` \(2\)"):
        verifier.verify(["1", "2"], [r"\boxed{1}"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong_labels", "precision", "recall"),
    [
        # Where the labels hold under another setting only (precision of 2 or 4 digits,
        # any variable) or are no mathematics (1-1/e "is" 1+1/e, 0.5 "is not" 1/2).
        ("unit_test_pairs", 7, 0.992, 0.957),
        # 10{,}000 "is not" 10000.
        ("model_answer_pairs", 1, 0.993, 1.0),
    ],
)
def test_labelled_pairs(
    verifier: MathVerifier,
    shared_dir: Path,
    name: str,
    wrong_labels: int,
    precision: float,
    recall: float,
):
    path = shared_dir / f"data/verifier/{name}.json"
    if not path.exists():
        pytest.skip(f"no file of labelled answers at {path}")
    report = measure(verifier, load_pairs(str(path)))
    assert len(report["wrong"]) <= wrong_labels, report["wrong"]
    assert report["precision"] >= precision and report["recall"] >= recall
