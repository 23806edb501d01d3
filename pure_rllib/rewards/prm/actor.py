"""One process that holds a step scorer and gathers requests into batches."""

import asyncio
import os
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pure_rllib.rewards.base import ScoringRequest, StepScorer, counts_of


class Scored(NamedTuple):
    """What an actor answers.

    Attributes:
        scores: one `[S]` float32 array per request.
        counts: what the scorer has counted since the answer before; of answers that
            were computed together the first has it.
    """

    scores: list[np.ndarray]
    counts: Counter[str]


@dataclass(slots=True)
class _Waiting:
    requests: Sequence[ScoringRequest]
    future: "asyncio.Future[Scored]"


def num_tokens(request: ScoringRequest) -> int:
    """Tokens of a request's prompt and response."""
    return len(request.prompt_ids) + len(request.response_ids)


class PRMActor:
    """Scores what several env runners send, together where it waits together.

    While a batch is being scored, calls wait; the next batch takes as many of them as
    the token budget allows, at least one. To be made a Ray actor.

    Args:
        scorer: a step scorer; a deferred one is loaded here, at the first call.
        batch_tokens: tokens of prompts and responses per batch, >= 1.
    """

    def __init__(self, scorer: StepScorer, batch_tokens: int):
        self._scorer = scorer
        self._batch_tokens = batch_tokens
        self._waiting: deque[_Waiting] = deque()
        self._worker: asyncio.Task[None] | None = None
        # The event loop stays free to take calls and to say that it is alive.
        self._thread = ThreadPoolExecutor(1)
        self._counts: Counter[str] = Counter()
        self._num_batches = 0

    async def ping(self) -> int:
        """Returns the process id: the actor is up."""
        return os.getpid()

    async def num_batches(self) -> int:
        """Returns how many batches were scored."""
        return self._num_batches

    async def score(self, requests: Sequence[ScoringRequest]) -> Scored:
        """Scores requests; errors of the scorer are the caller's."""
        future: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(requests, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._take()
            together = [request for one in batch for request in one.requests]
            scoring = loop.run_in_executor(self._thread, self._scorer.score, together)
            await asyncio.wait([scoring])
            error = scoring.exception()
            if error is not None:
                for one in batch:
                    one.future.set_exception(error)
                continue
            self._num_batches += 1
            self._answer(batch, scoring.result())

    def _take(self) -> list[_Waiting]:
        batch, budget = [self._waiting.popleft()], self._batch_tokens
        budget -= sum(map(num_tokens, batch[0].requests))
        while self._waiting:
            budget -= sum(map(num_tokens, self._waiting[0].requests))
            if budget < 0:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _answer(self, batch: list[_Waiting], scores: list[np.ndarray]) -> None:
        before, self._counts = self._counts, counts_of(self._scorer)
        new, start = self._counts - before, 0
        for one in batch:
            end = start + len(one.requests)
            one.future.set_result(Scored(scores[start:end], new))
            start, new = end, Counter()
