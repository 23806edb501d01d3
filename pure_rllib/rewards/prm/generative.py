"""A causal language model that is asked about each step. S steps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from pure_rllib.credit.steps import single_token_id
from pure_rllib.generation.make_generator import (
    GENERATORS,
    check_generator,
    make_generator,
)
from pure_rllib.generation.vllm_generator import VLLMGenerator
from pure_rllib.models.ends import eos_ids, pad_id
from pure_rllib.models.loading import (
    check_model_folder,
    load_policy,
    policy_config,
    read_config,
)
from pure_rllib.rewards.base import ScoringRequest, counts_of
from pure_rllib.rewards.prm.checkpoint import default_device
from pure_rllib.rewards.prm.judges import (
    Judge,
    LogpJudge,
    ModelJudge,
    VoteJudge,
    VoteSettings,
)
from pure_rllib.rewards.prm.rows import check_chat, question_ids
from pure_rllib.rewards.prm.scoring import LOWEST_SCORE, ScoreAdjustment, context_of

QUESTION = """\
You check a solution to a problem, one step at a time.

Problem:
{problem}

Steps before:
{previous}

Step to check:
{step}

Is the step to check correct? Answer {good} or {bad}."""

# Of a model whose config names no number of positions.
_NO_LIMIT = 2**31


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
        return question_ids(tokenizer, self.template, fields, self.system)

    def verdict_ids(self, tokenizer: Any) -> tuple[int, int]:
        """Returns the verdicts' ids.

        Raises:
            ValueError: a verdict is not exactly one id.
        """
        good, bad = (single_token_id(tokenizer, word) for word in self.verdicts)
        return good, bad


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
        check_chat(tokenizer, self.question.system)
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


class GenerativeLoader:
    """Checks a generative PRM's settings at once, and loads the model when called.

    Args:
        model: folder or hub id of a causal language model, or a Hugging Face config.
        tokenizer: the policy's; used with a config only.
        votes: the fields of `VoteSettings`: verdicts are sampled and counted. None
            reads the probabilities of the two verdicts instead.
        template: see `StepQuestion`.
        system: see `StepQuestion`.
        verdicts: see `StepQuestion`; without `votes` each exactly one id.
        generator: what answers, one of `GENERATORS`; "vllm" takes a local folder. None:
            "transformers" for votes, and probabilities are read without a generator.
        generator_kwargs: further settings of the generator. `max_model_len` of vLLM
            also bounds the questions.
        dtype: "float32", "bfloat16", "float16" or "auto".
        device: where it runs; None: the GPU that this process sees, or the CPU.
        micro_batch_tokens: see `RowScorer`; without a generator only.
        attn_implementation: as in `from_pretrained`.
        trust_remote_code: runs code that comes with the checkpoint.
        label_smoothing: see `ScoreAdjustment`.
        score_clamp: see `ScoreAdjustment`.

    Raises:
        ValueError: a setting is out of range or has no effect.
        TypeError: an unknown setting.
    """

    def __init__(
        self,
        model: str | Mapping[str, Any],
        tokenizer: Any,
        *,
        votes: Mapping[str, Any] | None = None,
        template: str = QUESTION,
        system: str | None = None,
        verdicts: Sequence[str] = ("Yes", "No"),
        generator: str | None = None,
        generator_kwargs: Mapping[str, Any] | None = None,
        dtype: str = "auto",
        device: Any = None,
        micro_batch_tokens: int | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        label_smoothing: float = 0.0,
        score_clamp: Sequence[float] = (-1.0, 1.0),
    ):
        self.votes = None if votes is None else VoteSettings(**votes)
        if votes is not None and generator is None:
            generator = "transformers"
        if generator is not None and micro_batch_tokens is not None:
            raise ValueError(
                f"`micro_batch_tokens` ({micro_batch_tokens}) must be left out with "
                "`votes` or `generator`, because the generator makes its own batches."
            )
        self.generator = generator
        self.generator_kwargs = dict(generator_kwargs or {})
        self.question = StepQuestion(template, system, tuple(verdicts))
        self.adjustment = ScoreAdjustment(label_smoothing, score_clamp)
        is_folder = False
        if isinstance(model, str):
            files = check_model_folder(model, "prm")
            read_config(files, "prm")
            model, is_folder = files.path, files.is_local
            tokenizer = AutoTokenizer.from_pretrained(
                model, trust_remote_code=trust_remote_code
            )
        self.model, self.tokenizer, self.device = model, tokenizer, device
        if generator == "vllm":
            _check_vllm(model, is_folder, device, attn_implementation)
        self._check_generator()
        if votes is None:
            self.question.verdict_ids(tokenizer)
        self.micro_batch_tokens = micro_batch_tokens
        self.load_options: dict[str, Any] = {
            "dtype": dtype,
            "attn_implementation": attn_implementation,
            "trust_remote_code": trust_remote_code,
        }

    def __call__(self) -> GenerativePRM:
        """Loads the model."""
        return GenerativePRM(
            self._judge(), self.tokenizer, self.question, self.adjustment
        )

    def _check_generator(self) -> None:
        kind, settings = self.generator, self.generator_kwargs
        if kind is None:
            if settings:
                raise ValueError(
                    f"`generator_kwargs` ({settings}) has no effect without a "
                    f"generator. Set `generator` to one of {GENERATORS}."
                )
            return
        if kind not in GENERATORS:
            raise ValueError(
                f"`generator` ({kind!r}) must be one of {GENERATORS}, because the "
                "judge answers through it. Leave it out."
            )
        temperature = 1.0 if self.votes is None else self.votes.temperature
        check_generator(kind, settings, temperature=temperature, top_p=1.0)

    def _judge(self) -> Judge:
        if self.generator is None:
            model = load_policy(self.model, **self.load_options)
            return ModelJudge(
                model.to(default_device(self.device)),
                self.question.verdict_ids(self.tokenizer),
                micro_batch_tokens=self.micro_batch_tokens,
            )
        config = policy_config(
            self.model, trust_remote_code=self.load_options["trust_remote_code"]
        )
        limits = [context_of(config), self.generator_kwargs.get("max_model_len")]
        max_model_len = min((n for n in limits if n), default=_NO_LIMIT)
        ends = eos_ids(self.tokenizer)
        generator = make_generator(
            self.generator,
            {"model": self.model, "seed": 0, **self.load_options},
            self.generator_kwargs,
            pad_token_id=pad_id(self.tokenizer, ends),
            eos_token_ids=ends,
            max_model_len=max_model_len,
            device=default_device(self.device),
        )
        if isinstance(generator, VLLMGenerator):
            assert isinstance(self.model, str)  # a folder, see `_check_vllm`
            generator.load_folder(Path(self.model))
        if self.votes is None:
            ids = self.question.verdict_ids(self.tokenizer)
            return LogpJudge(generator, ids, max_model_len)
        return VoteJudge(
            generator,
            self.tokenizer,
            self.question.verdicts,
            self.votes,
            max_model_len=max_model_len,
        )


def _check_vllm(
    model: Any, is_folder: bool, device: Any, attn_implementation: str | None
) -> None:
    """Refuses what vLLM cannot do or would not heed."""
    if not is_folder:
        raise ValueError(
            f"`prm` ({model!r:.200}) must be a local folder with `generator` 'vllm', "
            "because the engine reads the judge's weights there. Download it, or leave "
            "`generator` out."
        )
    ignored = {"device": device, "attn_implementation": attn_implementation}
    for name, value in ignored.items():
        if value is not None:
            raise ValueError(
                f"`{name}` ({value}) must be left out with `generator` 'vllm', because "
                "the engine chooses it. See `generator_kwargs` for its own settings."
            )
