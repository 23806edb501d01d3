"""Language models that answer encoded questions. N questions."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from pure_rllib.generation.base import Generator, SamplingParams
from pure_rllib.rewards.prm.rows import PRMRow
from pure_rllib.rewards.prm.scoring import RowScorer, context_of
from pure_rllib.setting_types import Count, NonNegativeFloat, check_fields


class Judge(Protocol):
    """Anything that answers encoded questions."""

    max_prompt_tokens: int | None

    def judge(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns `[N]` float32 scores in [-1, 1], each by its own prompt only."""


class ModelJudge:
    """Reads p(good) - p(bad) off a model's next token, softmax over the two verdicts.

    Args:
        model: a causal language model.
        verdict_ids: ids of the good and the bad verdict.
        pad_token_id: fills the columns behind shorter questions.
        micro_batch_tokens: see `RowScorer`.
    """

    def __init__(
        self,
        model: Any,
        verdict_ids: tuple[int, int],
        *,
        pad_token_id: int = 0,
        micro_batch_tokens: int | None = None,
    ):
        self.max_prompt_tokens: int | None = context_of(model.config)
        self._scorer = RowScorer(
            model,
            verdict_ids,
            pad_token_id=pad_token_id,
            micro_batch_tokens=micro_batch_tokens,
        )

    def judge(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Judge.judge`."""
        rows = [PRMRow(np.array(ids), np.array([len(ids) - 1])) for ids in prompts]
        return np.concatenate(self._scorer.score_rows(rows))


class LogpJudge:
    """The same through any generator, as an engine offers it: two logps per question.

    Args:
        generator: of the judging model.
        verdict_ids: ids of the good and the bad verdict.
        max_model_len: tokens of the longest question, its verdict, and one more, for
            which engines want room.
    """

    def __init__(
        self, generator: Generator, verdict_ids: tuple[int, int], max_model_len: int
    ):
        self.generator = generator
        self.verdict_ids = verdict_ids
        self.max_prompt_tokens: int | None = max_model_len - 2

    def judge(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Judge.judge`."""
        asked = [[*ids, verdict] for ids in prompts for verdict in self.verdict_ids]
        logps = np.array([rows[-1] for rows in self.generator.logps(asked)], np.float32)
        good, bad = logps.reshape(-1, 2).T
        return np.tanh((good - bad) / 2)


@dataclass(frozen=True, slots=True)
class VoteSettings:
    """How verdicts are sampled.

    Attributes:
        num_votes: verdicts per step; an odd number leaves no tie.
        max_verdict_tokens: budget of a verdict with its reasons.
        temperature: of sampling, > 0 unless there is one vote.
        seed: together with the question, it decides the votes.

    Raises:
        ValueError: a setting is out of range.
    """

    num_votes: Count = 5
    max_verdict_tokens: Count = 256
    temperature: NonNegativeFloat = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.temperature == 0 and self.num_votes > 1:
            raise ValueError(
                f"`temperature` ({self.temperature}) must be > 0 with `num_votes` "
                f"({self.num_votes}), because greedy votes are all the same. Set it to "
                "1.0, or num_votes to 1."
            )


class VoteJudge:
    """Samples verdicts and counts them: (good votes - bad votes) / all votes.

    The sign is the majority's, the size says how clear it was. A verdict is the last of
    the two words in a sampled text, as a whole word in any case; a text without either
    counts for neither side.

    Args:
        generator: of the judging model.
        tokenizer: its tokenizer.
        verdicts: the words for good and for bad.
        settings: how verdicts are sampled.
        max_model_len: tokens of the longest question and verdict together.

    Attributes:
        counts: so far sampled `verdicts`, `unclear_verdicts` among them, with neither
            word, and `ties`: questions whose votes cancel out, so that the score is 0.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Any,
        verdicts: Sequence[str],
        settings: VoteSettings,
        *,
        max_model_len: int,
    ):
        self.generator = generator
        self.tokenizer = tokenizer
        self.settings = settings
        longest = max_model_len - settings.max_verdict_tokens
        self.max_prompt_tokens: int | None = longest
        self.counts: Counter[str] = Counter()
        self._values = {
            word.strip().lower(): value
            for word, value in zip(verdicts, (1.0, -1.0), strict=True)
        }
        words = "|".join(re.escape(word) for word in self._values)
        self._verdict = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)

    def judge(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Judge.judge`."""
        settings = self.settings
        groups = self.generator.generate(
            prompts,
            settings.num_votes,
            SamplingParams(settings.max_verdict_tokens, settings.temperature),
            [self._seed(ids) for ids in prompts],
        )
        votes = [
            [self._vote(response.token_ids.tolist()) for response in group]
            for group in groups
        ]
        scores = np.array(votes, np.float32).reshape(len(prompts), -1).mean(1)
        self.counts["verdicts"] += len(prompts) * settings.num_votes
        self.counts["ties"] += int((scores == 0.0).sum())
        return scores

    def _vote(self, token_ids: list[int]) -> float:
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        found = self._verdict.findall(text)
        if not found:
            self.counts["unclear_verdicts"] += 1
            return 0.0
        return self._values[found[-1].lower()]

    def _seed(self, prompt: Sequence[int]) -> int:
        # Of the question alone: what else is in the call must not change a vote.
        asked = repr((self.settings.seed, list(prompt))).encode()
        return int.from_bytes(blake2b(asked, digest_size=7).digest(), "big")
