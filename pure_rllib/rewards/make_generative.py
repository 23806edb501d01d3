"""A generative process reward model from an environment's settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from pure_rllib.generation.make_generator import (
    GENERATORS,
    check_generator,
    make_generator,
)
from pure_rllib.generation.vllm_generator import VLLMGenerator
from pure_rllib.models.loading import check_model_folder, load_policy, policy_config
from pure_rllib.rewards.prm.checkpoint import default_device
from pure_rllib.rewards.prm.generative import (
    QUESTION,
    GenerativePRM,
    Judge,
    LogpJudge,
    ModelJudge,
    StepQuestion,
    VoteJudge,
    VoteSettings,
    context_of,
)
from pure_rllib.rewards.prm.score_adjustment import ScoreAdjustment

# Of a model whose config names no number of positions.
_NO_LIMIT = 2**31


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
        pad = self.tokenizer.pad_token_id or 0
        if self.generator is None:
            model = load_policy(self.model, **self.load_options)
            return ModelJudge(
                model.to(default_device(self.device)),
                self.question.verdict_ids(self.tokenizer),
                pad_token_id=pad,
                micro_batch_tokens=self.micro_batch_tokens,
            )
        config = policy_config(
            self.model, trust_remote_code=self.load_options["trust_remote_code"]
        )
        limits = [context_of(config), self.generator_kwargs.get("max_model_len")]
        max_model_len = min((n for n in limits if n), default=_NO_LIMIT)
        generator = make_generator(
            self.generator,
            {"model": self.model, "seed": 0, **self.load_options},
            self.generator_kwargs,
            pad_token_id=pad,
            eos_token_ids=[self.tokenizer.eos_token_id],
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
