"""The checker in worker processes, with hard limits of time and memory.

A policy writes whatever it likes; some of it keeps sympy busy for ever or eats all the
memory. Math-Verify's own time limits need the main thread and do not interrupt C code.
So every comparison runs in a process that is killed when it is late, and replaced.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pure_rllib.data.boxed import answer_text, gold_text
from pure_rllib.rewards.base import Verdict
from pure_rllib.rewards.verifier.workers import Pair, PooledVerifier
from pure_rllib.setting_types import Count, NaturalNumber, PositiveFloat

logger = logging.getLogger(__name__)
_MAX_GOLDS_LOOKED_AT = 256


@dataclass(eq=False)
class MathVerifier(PooledVerifier):
    r"""Compares responses with gold answers by what they mean, in worker processes.

    A response's answer is its last complete `\boxed{...}`; what surrounds the box, and
    the prompt, are never looked at. Without a box it is what the response states, as
    `answer` says, unless `boxed_only`. Both sides are read by `read` and compared by
    `compare`; Math-Verify has what is more than is read there.

    Outcomes: `correct`, `incorrect`; `no_answer`: nothing that can be read;
    `timeout`: the check took longer than the limit; `error`: the gold answer cannot be
    read, or the check ended its worker (out of memory, crash) twice.

    Attributes:
        num_workers: how many processes work at the same time, >= 1.
        time_limit_s: wall-clock seconds that one pair may take, > 0.
        memory_limit_mb: address space of one worker in MiB; reaching it is an outcome,
            not an error of the run. A worker takes about 70 for itself.
        max_answer_chars: longer boxes are no answer; of a response without a box only
            so many last characters are searched.
        boxed_only: whether a response without a complete box has no answer.
        cache_size: how many pairs of gold answer and answer text are remembered, >= 0.
        start_limit_s: seconds that a worker may take to start.
        bare_lists: whether `1,2` without brackets is a "set", or a "tuple" whose order
            and repetition count.

    Raises:
        ValueError: a setting is out of its range.
    """

    num_workers: Count = 1
    time_limit_s: PositiveFloat = 5.0
    memory_limit_mb: Count = 1024
    max_answer_chars: Count = 10_000
    boxed_only: bool = False
    cache_size: NaturalNumber = 65_536
    start_limit_s: PositiveFloat = 120.0
    bare_lists: Literal["set", "tuple"] = "set"

    @property
    def _worker(self) -> tuple[str, str]:
        return "pure_rllib.rewards.verifier.worker_process", self.bare_lists

    def _make_state(self) -> None:
        super()._make_state()
        self._cache: OrderedDict[tuple[str, str | None], Verdict] = OrderedDict()
        self._golds_to_look_at: list[str] = []

    def verify(self, golds: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Compares each response with its gold answer.

        Equal pairs are checked once; known ones come from the cache with `seconds` 0.0.
        May be called from any thread; calls wait for one another.

        Args:
            golds: N gold answers, bare or wrapped in LaTeX.
            responses: N texts of responses, without their prompts.

        Returns:
            N verdicts, in the same order.

        Raises:
            ValueError: the lengths differ.
            RuntimeError: workers cannot be started.
        """
        if len(golds) != len(responses):
            raise ValueError(
                f"`golds` ({len(golds)}) must be as many as `responses` "
                f"({len(responses)}); because they are compared pair by pair."
            )
        return self._verify(
            [
                (
                    gold_text(gold),
                    answer_text(
                        response,
                        max_chars=self.max_answer_chars,
                        boxed_only=self.boxed_only,
                    ),
                )
                for gold, response in zip(golds, responses, strict=True)
            ]
        )

    def _verify(self, keys: list[tuple[str, str | None]]) -> list[Verdict]:
        """Gives pairs of gold text and answer text (None: gold only) their verdicts."""
        golds, self._golds_to_look_at = self._golds_to_look_at, []
        if golds:
            self._warn_of_golds(golds)
        with self._alone() as pool:
            known = {key: self._known(key) for key in keys}
            pairs = [Pair(key) for key, verdict in known.items() if verdict is None]
            if pairs:
                pool.check(pairs)
            for pair in pairs:
                assert pair.verdict is not None, f"No verdict for {pair.key!r:.200}."
                known[pair.key] = pair.verdict
                self._remember(pair.key, pair.verdict)
        verdicts = []
        for key in keys:
            verdict = known[key]
            assert verdict is not None
            verdicts.append(verdict)
            if verdict.seconds:
                # The next equal pair takes no time of its own.
                known[key] = replace(verdict, seconds=0.0)
        return verdicts

    def check_golds(self, golds: Iterable[str]) -> dict[str, Verdict]:
        """Finds the gold answers that cannot be read.

        A response is correct for one of these only if it repeats it sign by sign: look
        at them before a run, and change or drop them.

        Args:
            golds: gold answers, each checked once.

        Returns:
            The verdict of each gold answer that is of no kind: `no_answer` if it is
            empty, else `error` or `timeout`.
        """
        unique = list(dict.fromkeys(golds))
        texts = [gold_text(gold) for gold in unique]
        verdicts = self._verify([(text, None) for text in texts])
        empty = Verdict("no_answer")
        return {
            gold: verdict if text else empty
            for gold, text, verdict in zip(unique, texts, verdicts, strict=True)
            if verdict.outcome != "correct"
        }

    def look_at_golds(self, golds: Iterable[str]) -> None:
        """Has a sample of gold answers checked when the verifier is first used.

        Those that cannot be read are listed in one warning. Checking takes a few
        milliseconds each, so at most 256 are, at equal distances.
        """
        unique = list(dict.fromkeys(golds))
        stride = max(1, -(-len(unique) // _MAX_GOLDS_LOOKED_AT))
        self._golds_to_look_at = unique[::stride]

    def _warn_of_golds(self, golds: list[str]) -> None:
        bad = self.check_golds(golds)
        if bad:
            outcomes = Counter(verdict.outcome for verdict in bad.values())
            examples = ", ".join(repr(gold)[:60] for gold in list(bad)[:5])
            logger.warning(
                "%d of %d gold answers looked at cannot be read (%s), such as %s: a "
                "response is correct there only if it repeats the answer sign by "
                "sign. Change or drop these problems.",
                len(bad),
                len(golds),
                ", ".join(f"{count} {name}" for name, count in outcomes.items()),
                examples,
            )

    def _known(self, key: tuple[str, str | None]) -> Verdict | None:
        gold, answer = key
        if answer == "":
            return Verdict("no_answer")
        if not gold:
            return Verdict("error")
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        return None

    def _remember(self, key: tuple[str, str | None], verdict: Verdict) -> None:
        # A timeout or a crash may come from a busy machine: the next try may be better.
        if verdict.outcome in ("timeout", "error"):
            return
        self._cache[key] = replace(verdict, seconds=0.0)
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
