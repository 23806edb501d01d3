"""The batched path: many finished responses in, their rewards out.

T response tokens, S steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.data.problems import Problem
from pure_rllib.rewards.base import (
    AnyVerifier,
    ProblemVerifier,
    ScoringRequest,
    StepScorer,
    Verdict,
)

BLANK_RESPONSE_REWARD = -1.0
"""Process reward of a response without any visible character: the lowest there is.

A PRM that was never shown such a text is free to like it, and PURE policies have
collapsed into empty answers for that reason.
"""


@dataclass(frozen=True, slots=True)
class JudgedResponse:
    """The rewards of one response.

    Attributes:
        text: the response's text without special tokens.
        step_spans: `[S, 2]` int64, half-open token ranges; S >= 1.
        step_rewards: `[S]` float32 process rewards in [-1, 1]; all 0.0 without a step
            scorer.
        has_visible: False if the response has no visible character at all.
        verdict: the verifier's word, or None without a verifier or a gold answer.
        is_scored: whether a step scorer gave the process rewards.
        model_reward: what a reward model says of the whole response; None without one.
    """

    text: str
    step_spans: np.ndarray
    step_rewards: np.ndarray
    has_visible: bool
    verdict: Verdict | None
    is_scored: bool = True
    model_reward: float | None = None

    @property
    def verifiable_reward(self) -> float | None:
        """In [0, 1], or None where there is no gold answer."""
        return None if self.verdict is None else self.verdict.reward

    @property
    def outcome_reward(self) -> float | None:
        """What the response as a whole earns: the reward model's, else the verifier's.

        With a reward model the verifier's verdict is measured, and not rewarded.
        """
        return (
            self.verifiable_reward if self.model_reward is None else self.model_reward
        )

    def final_info(self) -> dict[str, Any]:
        """What `TokenEnv` says of a response at its end."""
        info = {
            "response_text": self.text,
            "verifiable_reward": self.verifiable_reward,
            "outcome": None if self.verdict is None else self.verdict.outcome,
        }
        if self.model_reward is not None:
            info["model_reward"] = self.model_reward
        return info

    def token_rewards(self, num_tokens: int) -> np.ndarray:
        """`[T]` float32: process rewards on the steps' last tokens, else 0.0."""
        rewards = np.zeros(num_tokens, dtype=np.float32)
        rewards[self.step_spans[:, 1] - 1] = self.step_rewards
        return rewards


@dataclass(frozen=True, slots=True)
class JudgeTimes:
    """Seconds that one call spent in the step scorer and in the verifier."""

    score_s: float
    verify_s: float


class ResponseJudge:
    """Splits responses into steps, scores the steps and verifies the answers.

    Args:
        tokenizer: turns token ids into text.
        splitter: where steps end.
        step_scorer: gives process rewards; None makes all of them 0.0.
        verifier: gives verdicts; None gives none.

    Attributes:
        reward_model: rates whole responses, shown as one step, with any number; None
            rates none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        splitter: StepSplitter,
        step_scorer: StepScorer | None,
        verifier: AnyVerifier | None,
    ):
        self.tokenizer = tokenizer
        self.splitter = splitter
        self.step_scorer = step_scorer
        self.verifier = verifier
        self.reward_model: StepScorer | None = None

    def judge(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[np.ndarray],
        responses: Sequence[np.ndarray],
        *,
        score: bool = True,
    ) -> tuple[list[JudgedResponse], JudgeTimes]:
        """Judges N finished responses.

        Args:
            problems: N problems, repeated where several responses answer one.
            prompts: N arrays of prompt token ids.
            responses: N arrays of response token ids, each of length >= 1.
            score: False leaves the step scorer out, as if there were none.

        Returns:
            N judged responses, and how long scoring and verifying took.
        """
        if not responses:
            return [], JudgeTimes(0.0, 0.0)
        texts = self.tokenizer.batch_decode(
            [ids.tolist() for ids in responses],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        spans = [self.splitter.step_spans(ids) for ids in responses]
        visible = [self.splitter.has_visible(ids) for ids in responses]
        start = perf_counter()
        scorer = self.step_scorer if score else None
        rewards = self._score(scorer, problems, prompts, responses, spans, visible)
        ratings = self.rate(problems, prompts, responses, texts)
        scored = perf_counter()
        verdicts = self._verify(problems, texts)
        verified = perf_counter()
        is_scored = scorer is not None
        judged = [
            JudgedResponse(text, steps, scores, is_visible, verdict, is_scored, rating)
            for text, steps, scores, is_visible, verdict, rating in zip(
                texts, spans, rewards, visible, verdicts, ratings, strict=True
            )
        ]
        return judged, JudgeTimes(scored - start, verified - scored)

    def score_steps(
        self,
        problem: Problem,
        prompt: np.ndarray,
        response: np.ndarray,
        spans: np.ndarray,
    ) -> np.ndarray:
        """`[S]` process rewards of one visible, maybe unfinished response."""
        scorer, requests = self.step_scorer, ([problem], [prompt], [response], [spans])
        return self._score(scorer, *requests, [True])[0]

    def rate(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[np.ndarray],
        responses: Sequence[np.ndarray],
        texts: Sequence[str],
    ) -> list[float | None]:
        """Returns the reward model's number of each response; None without one."""
        if self.reward_model is None:
            return [None] * len(texts)
        requests = [
            ScoringRequest(
                prompt=problem.prompt,
                answer=problem.answer,
                prompt_ids=prompt,
                response_ids=response,
                step_spans=np.array([[0, len(response)]]),
                step_texts=(text,),
                history=problem.history,
            )
            for problem, prompt, response, text in zip(
                problems, prompts, responses, texts, strict=True
            )
        ]
        return [float(number) for (number,) in self.reward_model.score(requests)]

    @property
    def pooled_part(self) -> Literal["step_scorer", "reward_model"]:
        """What actors hold, where there are any: the PRM, else the reward model."""
        has_one = self.step_scorer is not None or self.reward_model is None
        return "step_scorer" if has_one else "reward_model"

    def verify_one(self, problem: Problem, text: str) -> Verdict | None:
        """Returns the verdict on one response's text; None without a gold answer."""
        return self._verify([problem], [text])[0]

    def step_texts(self, response: np.ndarray, spans: np.ndarray) -> tuple[str, ...]:
        """Returns the S texts of the steps, white space at both ends removed."""
        if len(spans) == 0:
            # `batch_decode` takes no texts for one empty text.
            return ()
        texts = self.tokenizer.batch_decode(
            [response[start:end].tolist() for start, end in spans],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return tuple(text.strip() for text in texts)

    def _score(
        self,
        scorer: StepScorer | None,
        problems: Sequence[Problem],
        prompts: Sequence[np.ndarray],
        responses: Sequence[np.ndarray],
        spans: Sequence[np.ndarray],
        visible: Sequence[bool],
    ) -> list[np.ndarray]:
        if scorer is None:
            return [np.zeros(len(s), dtype=np.float32) for s in spans]
        rewards = [
            np.full(len(s), BLANK_RESPONSE_REWARD, dtype=np.float32) for s in spans
        ]
        rows = [i for i, is_visible in enumerate(visible) if is_visible]
        requests = [
            ScoringRequest(
                prompt=problems[i].prompt,
                answer=problems[i].answer,
                prompt_ids=prompts[i],
                response_ids=responses[i],
                step_spans=spans[i],
                step_texts=self.step_texts(responses[i], spans[i]),
            )
            for i in rows
        ]
        for i, scores in zip(rows, scorer.score(requests), strict=True):
            if scores.shape != (len(spans[i]),) or not np.isfinite(scores).all():
                raise ValueError(
                    f"The step scorer returned {scores} for {len(spans[i])} steps of "
                    f"{responses[i].tolist()}: it must return one finite number per "
                    "step."
                )
            rewards[i] = scores.astype(np.float32)
        return rewards

    def _verify(
        self, problems: Sequence[Problem], texts: Sequence[str]
    ) -> list[Verdict | None]:
        verdicts: list[Verdict | None] = [None] * len(texts)
        if self.verifier is None:
            return verdicts
        rows = [i for i, problem in enumerate(problems) if problem.answer is not None]
        asked, answers = [problems[i] for i in rows], [texts[i] for i in rows]
        if isinstance(self.verifier, ProblemVerifier):
            results = self.verifier.verify_problems(asked, answers)
        else:
            golds = [p.answer for p in asked if p.answer is not None]
            results = self.verifier.verify(golds, answers)
        for i, verdict in zip(rows, results, strict=True):
            verdicts[i] = verdict
        return verdicts
