"""Scoring steps with a two-label process reward model.

B responses, S steps, L columns of a reward model's row.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pure_rllib.credit.steps import single_token_id
from pure_rllib.generation.model_files import check_model_folder
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.prm_input import (
    InputFormat,
    PRMInputBuilder,
    PRMRow,
    pad_rows,
)

_OVERLONG_SCORE = -1.0
# Padded tokens per forward pass.
_CPU_MICRO_BATCH = 1_024
_MICRO_BATCH = 16_384


class ProcessRewardModel:
    """A token classifier with two labels, read at the separator after each step.

    The format of PURE-PRM-7B (arXiv 2504.15275) and of TRL's PRM trainer: label 1 is a
    good step. A step's score is p(good) - p(bad), in [-1, 1]. It sees the prompt and
    the steps up to its own, never the verifier nor a gold answer.

    A response that, with its prompt, is longer than the model's context keeps the steps
    that fit; the steps beyond get the lowest score, -1.0, and the response is counted
    in `num_overlong`.

    Args:
        model: a `...ForTokenClassification` with two labels.
        tokenizer: its tokenizer, the same as the policy's.
        separator: text of the token after each step; exactly one id.
        input_format: how rows are built, see `PRMInputBuilder`.
        micro_batch_tokens: padded tokens per forward pass, >= 1; a longer row runs
            alone. None: 1,024 on the CPU (measured: three times as fast as one large
            batch, which has more padding and leaves the processor's cache), else
            16,384.

    Raises:
        ValueError: not two labels, or the separator is not one id.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        separator: str = "\n",
        input_format: InputFormat = "pure_rllib",
        micro_batch_tokens: int | None = None,
    ):
        if model.config.num_labels != 2:
            raise ValueError(
                f"The process reward model's `num_labels` ({model.config.num_labels}) "
                "must be 2 because a step's score is p(good) - p(bad). Use a "
                "checkpoint made for token classification with two labels."
            )
        if micro_batch_tokens is None:
            on_cpu = next(model.parameters()).device.type == "cpu"
            micro_batch_tokens = _CPU_MICRO_BATCH if on_cpu else _MICRO_BATCH
        if micro_batch_tokens < 1:
            raise ValueError(
                f"`micro_batch_tokens` ({micro_batch_tokens}) must be >= 1 because it "
                f"bounds a forward pass. Set it to {_MICRO_BATCH}."
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.builder = PRMInputBuilder(
            tokenizer, single_token_id(tokenizer, separator), input_format
        )
        self.micro_batch_tokens = micro_batch_tokens
        self.num_overlong = 0
        config = model.config.get_text_config()
        self._context = getattr(config, "max_position_embeddings", None)
        pad = tokenizer.pad_token_id
        self._pad_token_id = pad if pad is not None else self.builder.separator_id

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        tokenizer: Any = None,
        separator: str = "\n",
        input_format: InputFormat = "pure_rllib",
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        micro_batch_tokens: int | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
    ) -> "ProcessRewardModel":
        """Loads a reward model from a local folder or a hub id.

        Args:
            path: the folder or id.
            tokenizer: None takes the one beside the model; otherwise the policy's,
                and the two must have the same vocabulary.
            separator: see the class.
            input_format: see the class.
            dtype: `auto`, `float32`, `bfloat16` or a torch dtype.
            device: where it runs.
            micro_batch_tokens: see the class.
            trust_remote_code: runs code that comes with the checkpoint.
            attn_implementation: as in `from_pretrained`.

        Raises:
            ValueError: no model there, another vocabulary, not two labels, or the
                separator is not one id.
        """
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        files = check_model_folder(path, "process reward model")
        if files.num_labels not in (None, 2):
            raise ValueError(
                f"`process reward model` ({path}) must have 2 labels because a step's "
                f"score is p(good) - p(bad); it has {files.num_labels}. Use a "
                "checkpoint made for token classification with two labels."
            )
        own = AutoTokenizer.from_pretrained(
            files.path, trust_remote_code=trust_remote_code
        )
        if tokenizer is not None:
            check_same_vocabulary(tokenizer, own)
        # Before the weights: a wrong tokenizer must not cost minutes of loading.
        single_token_id(own, separator)
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if attn_implementation is not None:
            options["attn_implementation"] = attn_implementation
        model = AutoModelForTokenClassification.from_pretrained(
            files.path, dtype=dtype, **options
        )
        return cls(
            model.to(device),
            own,
            separator=separator,
            input_format=input_format,
            micro_batch_tokens=micro_batch_tokens,
        )

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """Scores the steps of responses. See `StepScorer.score`.

        Returns:
            One `[S]` float32 array in [-1, 1] per request. A response's scores do not
            depend on the other requests, up to the rounding of batched products.
        """
        rows = [
            self.builder.row(
                request.prompt_ids, request.response_ids, request.step_spans
            )
            for request in requests
        ]
        return self.score_rows(rows)

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[PRMRow]) -> list[np.ndarray]:
        """Scores rows that are built already; see `score`."""
        scores = [
            np.full(len(row.score_positions), _OVERLONG_SCORE, dtype=np.float32)
            for row in rows
        ]
        fitting = [self._cut(row) for row in rows]
        for batch in self._micro_batches(fitting):
            results = self._forward([fitting[i] for i in batch])
            for i, result in zip(batch, results, strict=True):
                scores[i][: len(result)] = result
        return scores

    def _cut(self, row: PRMRow) -> PRMRow:
        """Leaves out the steps whose separator lies beyond the model's context."""
        if self._context is None or len(row.input_ids) <= self._context:
            return row
        self.num_overlong += 1
        kept = row.score_positions[row.score_positions < self._context]
        end = int(kept[-1]) + 1 if len(kept) else 0
        return PRMRow(row.input_ids[:end], kept)

    def _micro_batches(self, rows: Sequence[PRMRow]) -> Iterator[list[int]]:
        """Indices of rows of like length, by a budget of padded tokens."""
        order = sorted(
            (i for i, row in enumerate(rows) if len(row.score_positions)),
            key=lambda i: len(rows[i].input_ids),
        )
        batch: list[int] = []
        for i in order:
            # Sorted: the newest row is the widest of its batch.
            padded = (len(batch) + 1) * len(rows[i].input_ids)
            if batch and padded > self.micro_batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _forward(self, rows: list[PRMRow]) -> list[np.ndarray]:
        ids, mask = pad_rows(rows, self._pad_token_id)
        device = next(self.model.parameters()).device
        logits: Tensor = self.model(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            use_cache=False,
        ).logits
        counts = [len(row.score_positions) for row in rows]
        columns = torch.from_numpy(np.concatenate([r.score_positions for r in rows]))
        where = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
        picked = logits[where.to(device), columns.to(device)].float()
        # p1 - p0 of a softmax over two classes is tanh of half the difference.
        scores = torch.tanh((picked[:, 1] - picked[:, 0]) / 2).cpu().numpy()
        return np.split(scores, np.cumsum(counts)[:-1])


def check_same_vocabulary(policy_tokenizer: Any, prm_tokenizer: Any) -> None:
    """Makes sure that an id means the same token to both models.

    Sampled ids go to the reward model as they are, so its ids must be the policy's.

    Raises:
        ValueError: the vocabularies differ; names the first differing tokens.
    """
    policy, prm = policy_tokenizer.get_vocab(), prm_tokenizer.get_vocab()
    if policy == prm:
        return
    differing = sorted(
        set(policy.items()) ^ set(prm.items()), key=lambda item: (item[1], item[0])
    )
    tokens = list(dict.fromkeys(token for token, _ in differing))[:3]
    named = "; ".join(
        f"{token!r} is id {policy.get(token)} there and {prm.get(token)} here"
        for token in tokens
    )
    raise ValueError(
        f"The process reward model's vocabulary ({len(prm)} tokens) must be the "
        f"policy's ({len(policy)} tokens) because sampled ids are passed on as they "
        f"are; they differ in {len(differing)} entries, first: {named} (there: policy, "
        "here: reward model). Use models of one family."
    )
