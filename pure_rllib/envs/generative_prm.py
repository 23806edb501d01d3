"""A generative process reward model from an environment's settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoTokenizer

from pure_rllib.generation.load_policy import load_policy
from pure_rllib.generation.model_files import check_model_folder
from pure_rllib.generation.transformers_generator import TransformersGenerator
from pure_rllib.rewards.generative_prm import (
    QUESTION,
    GenerativePRM,
    Judge,
    ModelJudge,
    StepQuestion,
    VoteJudge,
    VoteSettings,
    context_of,
)
from pure_rllib.rewards.prm_checkpoint import default_device
from pure_rllib.rewards.score_adjustment import ScoreAdjustment


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
        dtype: "float32", "bfloat16", "float16" or "auto".
        device: where it runs; None: the GPU that this process sees, or the CPU.
        micro_batch_tokens: see `RowScorer`; without `votes` only.
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
        dtype: str = "auto",
        device: Any = None,
        micro_batch_tokens: int | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        label_smoothing: float = 0.0,
        score_clamp: Sequence[float] = (-1.0, 1.0),
    ):
        if votes is not None and micro_batch_tokens is not None:
            raise ValueError(
                f"`micro_batch_tokens` ({micro_batch_tokens}) must be left out with "
                "`votes`, because it bounds the reading of probabilities only."
            )
        self.votes = None if votes is None else VoteSettings(**votes)
        self.question = StepQuestion(template, system, tuple(verdicts))
        self.adjustment = ScoreAdjustment(label_smoothing, score_clamp)
        if isinstance(model, str):
            model = check_model_folder(model, "prm").path
            tokenizer = AutoTokenizer.from_pretrained(
                model, trust_remote_code=trust_remote_code
            )
        self.model, self.tokenizer, self.device = model, tokenizer, device
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
        model = load_policy(self.model, **self.load_options)
        model = model.to(default_device(self.device))
        return GenerativePRM(
            self._judge(model), self.tokenizer, self.question, self.adjustment
        )

    def _judge(self, model: Any) -> Judge:
        pad = self.tokenizer.pad_token_id or 0
        if self.votes is None:
            return ModelJudge(
                model,
                self.question.verdict_ids(self.tokenizer),
                pad_token_id=pad,
                micro_batch_tokens=self.micro_batch_tokens,
            )
        generator = TransformersGenerator(
            model, pad_token_id=pad, eos_token_ids=[self.tokenizer.eos_token_id]
        )
        return VoteJudge(
            generator,
            self.tokenizer,
            self.question.verdicts,
            self.votes,
            max_model_len=context_of(model),
        )
