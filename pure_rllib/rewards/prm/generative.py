"""A causal language model that is asked about each step. N questions, S steps."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from pure_rllib.credit.steps import own_bos_id, single_token_id
from pure_rllib.generation.base import Generator, SamplingParams
from pure_rllib.rewards.base import ScoringRequest, counts_of
from pure_rllib.rewards.prm.inputs import PRMRow
from pure_rllib.rewards.prm.rows import RowScorer
from pure_rllib.rewards.prm.score_adjustment import LOWEST_SCORE, ScoreAdjustment
from pure_rllib.rewards.prm.text import chat_ids, plain_ids

QUESTION = """\
You check a solution to a problem, one step at a time.

Problem:
{problem}

Steps before:
{previous}

Step to check:
{step}

Is the step to check correct? Answer {good} or {bad}."""

_FIELD = re.compile(r"\{(problem|previous|step|good|bad)\}")


@dataclass(frozen=True, slots=True)
class StepQuestion:
    """What a judge is asked about a step.

    Attributes:
        template: text with `{step}`, and as wanted `{problem}`, `{previous}` (the
            steps before, separated by blank lines), `{good}` and `{bad}`. It becomes
            the user's message of the judge's chat template, or, without one, a text
            that ends with a newline.
        system: the system message, with a chat template only; None leaves it out.
        verdicts: the words for a good and for a bad step.

    Raises:
        ValueError: no `{step}`, or the verdicts are not two different words.
    """

    template: str = QUESTION
    system: str | None = None
    verdicts: tuple[str, ...] = ("Yes", "No")

    def __post_init__(self) -> None:
        if "{step}" not in self.template:
            raise ValueError(
                f"`template` ({self.template!r:.200}) must hold {{step}}, because the "
                "judge has to see what it judges. Leave `template` out for our own."
            )
        words = [word.strip().lower() for word in self.verdicts]
        if len(words) != 2 or not all(words) or words[0] == words[1]:
            raise ValueError(
                f"`verdicts` ({self.verdicts}) must be two different words, the good "
                'one first. Set them to ("Yes", "No").'
            )

    def ids(self, tokenizer: Any, request: ScoringRequest, step: int) -> list[int]:
        """Encodes the question about one step; it depends on no later step.

        Nothing that the response says becomes a special token.
        """
        good, bad = self.verdicts
        fields = {
            "problem": request.prompt,
            "previous": "\n\n".join(request.step_texts[:step]) or "(none)",
            "step": request.step_texts[step],
            "good": good.strip(),
            "bad": bad.strip(),
        }
        # In one pass: braces in a step mean nothing.
        text = _FIELD.sub(lambda found: fields[found[1]], self.template)
        if getattr(tokenizer, "chat_template", None):
            return chat_ids(tokenizer, text, self.system)
        bos = own_bos_id(tokenizer)
        return [*([] if bos is None else [bos]), *plain_ids(tokenizer, text + "\n")]

    def verdict_ids(self, tokenizer: Any) -> tuple[int, int]:
        """Returns the verdicts' ids.

        Raises:
            ValueError: a verdict is not exactly one id.
        """
        good, bad = (single_token_id(tokenizer, word) for word in self.verdicts)
        return good, bad


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
        num_votes: verdicts per step, >= 1; an odd number leaves no tie.
        max_verdict_tokens: budget of a verdict with its reasons, >= 1.
        temperature: of sampling, > 0 unless there is one vote.
        seed: together with the question, it decides the votes.

    Raises:
        ValueError: a setting is out of range.
    """

    num_votes: int = 5
    max_verdict_tokens: int = 256
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_votes", "max_verdict_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` ({getattr(self, name)}) must be >= 1, because there is "
                    "no verdict otherwise. Set it to 5 votes of 256 tokens."
                )
        if self.temperature < 0 or (self.temperature == 0 and self.num_votes > 1):
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
        max_model_len: tokens of the longest question and verdict together; None: no
            limit.

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
        max_model_len: int | None = None,
    ):
        self.generator = generator
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_prompt_tokens: int | None = None
        if max_model_len is not None:
            self.max_prompt_tokens = max_model_len - settings.max_verdict_tokens
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


class GenerativePRM:
    """Scores steps by what a language model answers when it is asked about each.

    A question that is too long for the judge is not asked: the step gets the lowest
    score, -1.0, and its response is counted in `num_overlong`.

    Args:
        judge: answers the questions.
        tokenizer: the judge's.
        question: what is asked; None: our own words.
        adjustment: of the judge's scores; None leaves them.
    """

    def __init__(
        self,
        judge: Judge,
        tokenizer: Any,
        question: StepQuestion | None = None,
        adjustment: ScoreAdjustment | None = None,
    ):
        self.judge = judge
        self.tokenizer = tokenizer
        self.question = question or StepQuestion()
        self.adjustment = adjustment or ScoreAdjustment()
        self.num_overlong = 0

    @property
    def counts(self) -> Counter[str]:
        """`overlong` responses, and what the judge counts."""
        counts = counts_of(self.judge)
        counts["overlong"] = self.num_overlong
        return counts

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """See `StepScorer.score`."""
        asked = [
            [
                tuple(self.question.ids(self.tokenizer, request, step))
                for step in range(len(request.step_texts))
            ]
            for request in requests
        ]
        limit = self.judge.max_prompt_tokens
        # Responses of a group often begin alike: each question is asked once.
        distinct = [
            ids
            for ids in dict.fromkeys(ids for questions in asked for ids in questions)
            if limit is None or len(ids) <= limit
        ]
        answers: dict[tuple[int, ...], float] = {}
        if distinct:
            scores = self.adjustment.apply(self.judge.judge(distinct))
            answers.update(zip(distinct, scores, strict=True))
        self.num_overlong += sum(
            any(ids not in answers for ids in questions) for questions in asked
        )
        return [
            np.array([answers.get(ids, LOWEST_SCORE) for ids in questions], np.float32)
            for questions in asked
        ]


def context_of(config: Any) -> int | None:
    """Returns the number of positions in a Hugging Face config, if it says."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
