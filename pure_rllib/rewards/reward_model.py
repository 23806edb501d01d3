"""Rating whole responses with a reward model, a sequence classifier with one label."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from pure_rllib.credit.steps import own_bos_id
from pure_rllib.data.encoding import (
    encode_plain,
    encode_shielded,
    marker_ids,
    shield,
)
from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.models.batching import token_budget_batches
from pure_rllib.models.loading import (
    check_model_folder,
    load_tokenizer,
    read_config,
    resolve_model,
)
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.prm.checkpoint import default_device
from pure_rllib.rewards.prm.scoring import context_of, micro_batch_size
from pure_rllib.setting_types import check_setting

RewardMap = Literal["sigmoid"]
"""What can make a reward model's numbers probabilities."""

# Tokenizers without a limit have one of some 1e30.
_NO_LIMIT = 10**9


class RewardModel:
    """Gives a response one number: a sequence classifier with one label.

    It reads prompt and response as texts, in its own tokens: as user and assistant in
    its tokenizer's chat template; without one as a pair where the tokenizer marks pairs
    (`[CLS] .. [SEP] .. [SEP]`), else as the policy's prompt without chat, and the
    response behind. Nothing in the texts becomes a special token or what the chat
    template parts turns with; other added tokens, such as `<think>`, are read as
    tokens, as in training. A text over the model's context loses its beginning and is
    counted in `num_overlong`.

    Args:
        model: anything whose output has `logits` `[B, 1]`.
        tokenizer: its own.
        prompt_template: the policy's, for tokenizers without a chat template.
        map: "sigmoid" for rewards in [0, 1], as Bradley-Terry models mean them; None
            leaves the numbers, which have no limits.
        micro_batch_tokens: padded tokens per forward pass, >= 1; a longer text runs
            alone. None: as of a PRM.

    Attributes:
        num_overlong: texts over the context so far.

    Raises:
        ValueError: the model has another number of labels, or a setting is wrong.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        prompt_template: PromptTemplate | None = None,
        map: RewardMap | None = None,
        micro_batch_tokens: int | None = None,
    ):
        check_setting("map", map, RewardMap | None)
        self.micro_batch_tokens = micro_batch_size(model, micro_batch_tokens)
        check_labels(model.config.num_labels)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.map = tokenizer, map
        self._template = prompt_template
        self._keep = _harmless_markers(tokenizer)
        self._pair = None if tokenizer.chat_template else _PairForm.of(tokenizer)
        limits = context_of(model.config), tokenizer.model_max_length
        self._context = min(n for n in (*limits, _NO_LIMIT) if n is not None)
        self._vocab_size = model.get_input_embeddings().weight.shape[0]
        self.num_overlong = 0

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> "RewardModel":
        """Loads a reward model from a local folder or a hub id.

        Args:
            path: the folder or id.
            dtype: `auto`, `float32`, `bfloat16` or a torch dtype.
            device: where it runs; None: the GPU that this process sees, or the CPU.
            trust_remote_code: runs code that comes with the checkpoint.
            attn_implementation: as in `from_pretrained`.
            **kwargs: the other arguments of the class.

        Raises:
            ValueError: no reward model there, or weights are missing.
        """
        from transformers import AutoModelForSequenceClassification

        device = default_device(device)
        path, tokenizer = check_reward_model(path, trust_remote_code=trust_remote_code)
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if attn_implementation is not None:
            options["attn_implementation"] = attn_implementation
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, output_loading_info=True, **options
        )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"`reward_model` ({path}) must hold all weights of its model, because "
                f"missing ones would be random numbers; it lacks "
                f"{', '.join(missing[:3])}. Set a folder that holds a trained one."
            )
        return cls(model.to(device), tokenizer, **kwargs)

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """Rates responses, each with one step that is the whole of it.

        Returns:
            One `[1]` float32 array per request. It does not depend on the other
            requests, up to the rounding of batched products.
        """
        rows = [self._row(request) for request in requests]
        scores = [np.zeros(1, np.float32)] * len(rows)
        lengths = [len(ids) for ids, _ in rows]
        for batch in token_budget_batches(lengths, self.micro_batch_tokens):
            for i, number in zip(
                batch, self._forward([rows[i] for i in batch]), strict=True
            ):
                scores[i] = np.array([number], np.float32)
        return scores

    def _row(self, request: ScoringRequest) -> tuple[list[int], list[int]]:
        """Ids, and to which text of a pair each belongs (0 but for a pair's second)."""
        (response,) = request.step_texts
        if self._pair is not None:
            first, second = (
                self._known(encode_plain(self.tokenizer, text, keep=self._keep))
                for text in (request.prompt, response)
            )
            room = self._context - self._pair.num_markers
            self.num_overlong += len(first) + len(second) > room
            return self._pair.join(*_cut_pair(first, second, room))
        ids = self._known(self._ids(request, response))
        self.num_overlong += len(ids) > self._context
        ids = ids[-self._context :]
        return ids, [0] * len(ids)

    def _ids(self, request: ScoringRequest, response: str) -> list[int]:
        tokenizer = self.tokenizer
        hide = partial(shield, tokenizer, keep=self._keep)
        shown = [hide(text) for text in (request.prompt, response)]
        if tokenizer.chat_template:
            messages = [
                *({**m, "content": hide(m["content"])} for m in request.history),
                {"role": "user", "content": shown[0]},
                {"role": "assistant", "content": shown[1]},
            ]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            return encode_shielded(tokenizer, [text])[0]
        template = self._template
        if template is None or template.chat:
            template = PromptTemplate("{problem}\n\n")
        (ids,) = encode_shielded(tokenizer, [template.fill(shown[0]) + shown[1]])
        bos = own_bos_id(tokenizer)
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _known(self, ids: list[int]) -> list[int]:
        # Without an embedding there is nothing to show.
        return [i for i in ids if i < self._vocab_size]

    def _forward(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        config = self.model.config.get_text_config()
        width, pad = max(len(ids) for ids, _ in rows), config.pad_token_id
        fill = pad
        if pad is None or not 0 <= pad < self._vocab_size:
            # Transformers reads a decoder's number at the last token that is no pad,
            # and of several rows none without one. Any id will do that ends no row.
            last = {ids[-1] for ids, _ in rows}
            fill = next(i for i in range(self._vocab_size) if i not in last)
        device = next(self.model.parameters()).device
        columns = [
            (ids + [fill] * (width - len(ids)), types + [0] * (width - len(ids)))
            for ids, types in rows
        ]
        mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]
        arguments = {
            "input_ids": torch.tensor([ids for ids, _ in columns], device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }
        if self._pair is not None and self._pair.has_types:
            types = torch.tensor([types for _, types in columns], device=device)
            arguments["token_type_ids"] = types
        config.pad_token_id = fill
        try:
            logits = self.model(**arguments).logits
        finally:
            config.pad_token_id = pad
        numbers = logits[:, 0].float()
        if self.map == "sigmoid":
            numbers = numbers.sigmoid()
        found: list[float] = numbers.tolist()
        if not all(map(math.isfinite, found)):
            raise ValueError(
                f"The reward model's numbers ({found}) must be finite, because they "
                "are rewards. Look at its weights, or set "
                '`reward_model_kwargs={"dtype": "float32"}`.'
            )
        return found


@dataclass(frozen=True, slots=True)
class _PairForm:
    """How a tokenizer marks two texts, as `[CLS] .. [SEP] .. [SEP]`.

    Attributes:
        before: ids before the first text.
        between: ids between the two.
        behind: ids behind the second.
        has_types: whether the model is told which text an id belongs to.
    """

    before: list[int]
    between: list[int]
    behind: list[int]
    has_types: bool

    @classmethod
    def of(cls, tokenizer: Any) -> "_PairForm | None":
        """Reads it off a pair; None for tokenizers without such markers."""
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            return None
        texts = [encode_plain(tokenizer, text) for text in "ab"]
        ids = list(tokenizer("a", "b")["input_ids"])
        first = ids.index(texts[0][0])
        second = ids.index(texts[1][0], first + len(texts[0]))
        return cls(
            ids[:first],
            ids[first + len(texts[0]) : second],
            ids[second + len(texts[1]) :],
            "token_type_ids" in tokenizer.model_input_names,
        )

    @property
    def num_markers(self) -> int:
        """Ids that are of no text."""
        return len(self.before) + len(self.between) + len(self.behind)

    def join(self, first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
        """Returns the pair's ids, and to which text each belongs."""
        head = [*self.before, *first, *self.between]
        tail = [*second, *self.behind]
        return head + tail, [0] * len(head) + [1] * len(tail)


def _harmless_markers(tokenizer: Any) -> frozenset[str]:
    """Returns the markers that a text may hold: those that part no turns.

    A reward model was trained on texts with them, be it `<think>` or a tool call.
    """
    added = tokenizer.added_tokens_decoder.values()
    special, turns = {t.content for t in added if t.special}, ""
    if tokenizer.chat_template:
        # Some tokenizers' turn markers are not special. A last turn of the assistant
        # is left out: there, templates write `<think>` themselves.
        roles = ("user", "assistant", "user")
        messages = [{"role": role, "content": "a"} for role in roles]
        turns = tokenizer.apply_chat_template(messages, tokenize=False)
    markers = marker_ids(tokenizer)
    return frozenset(m for m in markers if m not in special and m not in turns)


def _cut_pair(
    first: list[int], second: list[int], room: int
) -> tuple[list[int], list[int]]:
    """Takes off the beginning of the first text, then of the second."""
    second = second[-room:]
    left = room - len(second)
    return first[len(first) - left :] if left < len(first) else first, second


def check_reward_model(
    path: str, *, trust_remote_code: bool = False
) -> tuple[str, Any]:
    """Checks all that can be known of a reward model without its weights.

    Args:
        path: a local folder, hub id or embedded model.
        trust_remote_code: runs code that comes with the tokenizer.

    Returns:
        The folder or hub id, as `from_pretrained` takes it, and the tokenizer.

    Raises:
        ValueError: no model there, it is no classifier with one label, or has no
            tokenizer.
    """
    files = check_model_folder(resolve_model(path), "reward_model")
    config = read_config(files, "reward_model")
    architecture = next(iter(config.get("architectures") or []), "")
    if architecture and not architecture.endswith("ForSequenceClassification"):
        raise ValueError(
            f"`reward_model` ({path}) must be a ...ForSequenceClassification, because "
            f"it rates a whole response with one number; it is a {architecture}. Set "
            "`prm` to a model that rates steps, or the folder of a reward model."
        )
    # As transformers reads it: two where the file does not say.
    labels = config.get("id2label") or range(config.get("num_labels", 2))
    check_labels(len(labels), path)
    tokenizer = load_tokenizer(
        files.path, "reward_model", trust_remote_code=trust_remote_code
    )
    return files.path, tokenizer


def check_labels(num_labels: int, path: str = "the model") -> None:
    """Raises ValueError where a classifier has not one label."""
    if num_labels != 1:
        raise ValueError(
            f"`reward_model` ({path}) must have one label, because its number is the "
            f"reward; it has {num_labels}. Set a model that was trained with "
            "`num_labels=1`."
        )
