"""Scoring steps with a process reward model of any known format.

S steps, L columns of a reward model's row.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.prm.checkpoint import (
    default_device,
    load_model,
    read_checkpoint,
)
from pure_rllib.rewards.prm.formats import PRMFormat, format_ids, make_format
from pure_rllib.rewards.prm.rows import InputFormat, make_builder
from pure_rllib.rewards.prm.scoring import RowScorer, ScoreAdjustment


class ProcessRewardModel:
    """Scores each step of a response by what a model says after it.

    A step's score is p(good) - p(bad), in [-1, 1], read at the separator behind the
    step. It sees the prompt and the steps up to its own, never the verifier nor a gold
    answer. How steps are shown is the format's matter, see `PRMFormat`; by default the
    checkpoint chooses.

    Where the policy's ids mean the same to the reward model, and the format shows them,
    they are passed on as they are (`PRMInputBuilder`); otherwise the texts of the steps
    are encoded anew, step by step (`PRMTextBuilder`).

    A response that, with its prompt, is longer than the model's context keeps the steps
    that fit; the steps beyond get the lowest score, -1.0, and the response is counted
    in `num_overlong`.

    Args:
        model: a token classifier with two labels or a causal language model.
        tokenizer: its tokenizer.
        policy_tokenizer: None if the two are the same.
        prm_format: name of a format, or a mapping with `name` and the fields to change.
            None: by the model's class, tokenizer and name.
        separator: text of the token after each step; exactly one id. None: the
            format's.
        input_format: how rows of ids are built, see `PRMInputBuilder`.
        retokenize: whether texts are encoded anew where the tokenizers differ; if not,
            that is an error.
        prompt_template: the policy's, for formats that show the policy's prompt: where
            the tokenizers differ, it makes the same prompt of the problem's text.
        micro_batch_tokens: see `RowScorer`.
        label_smoothing: see `ScoreAdjustment`.
        score_clamp: see `ScoreAdjustment`.

    Raises:
        ValueError: the format does not fit: not two labels, a separator or a verdict
            that is not one id, tokenizers that differ where they must not.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        policy_tokenizer: Any = None,
        prm_format: str | Mapping[str, Any] | PRMFormat | None = None,
        separator: str | None = None,
        input_format: InputFormat = "pure_rllib",
        retokenize: bool = True,
        prompt_template: PromptTemplate | Mapping[str, Any] | str | None = None,
        micro_batch_tokens: int | None = None,
        label_smoothing: float = 0.0,
        score_clamp: Sequence[float] = (-1.0, 1.0),
    ):
        adjustment = ScoreAdjustment(label_smoothing, score_clamp)
        self.format = make_format(
            prm_format,
            architecture=type(model).__name__,
            tokenizer=tokenizer,
            separator=separator,
            names=(model.config.name_or_path,),
        )
        separator_id, columns = format_ids(self.format, tokenizer, model.config)
        self.tokenizer = tokenizer
        self.builder = make_builder(
            self.format,
            tokenizer,
            separator_id=separator_id,
            policy_tokenizer=policy_tokenizer,
            input_format=input_format,
            retokenize=retokenize,
            vocab_size=model.get_input_embeddings().weight.shape[0],
            prompt_template=prompt_template,
        )
        pad = tokenizer.pad_token_id
        self.scorer = RowScorer(
            model,
            columns,
            pad_token_id=pad if pad is not None else separator_id,
            micro_batch_tokens=micro_batch_tokens,
            adjustment=adjustment,
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        tokenizer: Any = None,
        prm_format: str | Mapping[str, Any] | PRMFormat | None = None,
        separator: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> "ProcessRewardModel":
        """Loads a reward model from a local folder or a hub id.

        Args:
            path: the folder or id.
            tokenizer: the policy's; None if it is the one beside the model.
            prm_format: see the class.
            separator: see the class.
            dtype: `auto`, `float32`, `bfloat16` or a torch dtype.
            device: where it runs; None: the GPU that this process sees, or the CPU.
            trust_remote_code: runs code that comes with the checkpoint.
            attn_implementation: as in `from_pretrained`.
            **kwargs: the other arguments of the class.

        Raises:
            ValueError: no model there, weights are missing, or the format does not fit.
        """
        device = default_device(device)
        checkpoint = read_checkpoint(
            path,
            prm_format=prm_format,
            separator=separator,
            trust_remote_code=trust_remote_code,
        )
        model = load_model(
            checkpoint,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        return cls(
            model.to(device),
            checkpoint.tokenizer,
            policy_tokenizer=tokenizer,
            prm_format=checkpoint.format,
            **kwargs,
        )

    @property
    def model(self) -> Any:
        """The network, in evaluation mode."""
        return self.scorer.model

    @property
    def num_overlong(self) -> int:
        """Responses that were over the model's context so far."""
        return self.scorer.num_overlong

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """Scores the steps of responses. See `StepScorer.score`.

        Returns:
            One `[S]` float32 array in [-1, 1] per request. A response's scores do not
            depend on the other requests, up to the rounding of batched products.
        """
        return self.scorer.score_rows(self.builder.rows(requests))
