"""The policy: a Hugging Face causal language model as an RLModule.

B rows, L columns, T response tokens.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override
from torch import Tensor

from pure_rllib.models import columns
from pure_rllib.models.flat_attention import set_flat_attention, takes_flat_rows
from pure_rllib.models.loading import load_policy
from pure_rllib.models.logprobs import ENTROPY as ENTROPY
from pure_rllib.models.logprobs import LOGP, check_chunked_logps, response_logps
from pure_rllib.models.lora import (
    adapter_tensors,
    add_lora,
    has_lora,
    load_adapter,
    lora_off,
)

logger = logging.getLogger(__name__)

MODEL_CONFIG_DEFAULTS: dict[str, Any] = {
    "model": None,
    "dtype": "float32",
    "attn_implementation": None,
    "gradient_checkpointing": False,
    "trust_remote_code": False,
    "logp_chunk_tokens": None,
    "autocast_dtype": None,
    "lora": None,
}
"""Keys of `.rl_module(model_config={...})` and their defaults.

`model` is a folder, a hub id, `embedded:<name>`, or a dict that is a Hugging Face
config with `model_type` (random weights). `logp_chunk_tokens` counts the tokens whose
logits exist at one time (default: 64 MiB); `autocast_dtype`, None or "bfloat16", is
what the learner computes in by `torch.autocast` where weights are float32; `lora` holds
settings of PEFT's `LoraConfig`. The others are Hugging Face's.
"""

POLICY = "policy"
"""Key of a module's `model_config`: a model that is there already, not to be loaded."""


class LLMRLModule(TorchRLModule):
    """A policy, and its frozen start as the reference policy if a KL term needs one.

    Reads `model_config` (`MODEL_CONFIG_DEFAULTS`), to which the algorithm adds
    `temperature`, `with_reference`, `packing` and `seed`.

    In training, `forward_train(batch, outputs=...)` reads columns `INPUT_IDS`,
    `PROMPT_LENS`, `ACTIONS`, `LOSS_MASK` and, with `packing`, `FLAT_ROW`, and writes
    what `outputs` names, `[B, T]` each: `ACTION_LOGP`, `ENTROPY` or `MEAN_LOGP`
    (default: the first two). To act one token at a time, as RLlib's own env runners
    do, it reads an observation of `TokenEnv` and writes logits.
    """

    @override(TorchRLModule)
    def setup(self) -> None:
        """Loads the weights."""
        # A module's `model_config` says how to make it again, and holds no model.
        given = self.model_config.pop(POLICY, None)
        settings = {**MODEL_CONFIG_DEFAULTS, **self.model_config}
        self.temperature = float(settings.get("temperature", 1.0))
        self.chunk_tokens: int | None = settings["logp_chunk_tokens"]
        autocast = settings["autocast_dtype"]
        self.autocast_dtype = None if autocast is None else getattr(torch, autocast)
        self.policy = self._load(settings) if given is None else given
        check_chunked_logps(self.policy)
        if given is None and not self.inference_only:
            self._set_packing(settings)
        if given is None and settings["gradient_checkpointing"]:
            self.policy.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        # Stands in for the policy's state where a learner partitions its parameters:
        # an object with `state_dict` and `load_state_dict` of whole tensors.
        self.partitioned: Any = None
        # Called with the tensors that `set_state` has loaded, before they were rounded.
        self.on_load: Callable[[dict[str, Tensor]], None] | None = None
        # And makes passes through them without gradient, all learners together.
        self.run_passes: Callable[[Sequence[Callable[[], Any]]], list[Any]] | None
        self.run_passes = None
        self.reference: torch.nn.Module | None = None
        if given is not None:
            return
        if settings["lora"] is not None:
            add_lora(self.policy, settings["lora"], settings.get("seed", 0))
        elif settings.get("with_reference") and not self.inference_only:
            self.reference = self._load(settings).requires_grad_(False)
            if takes_flat_rows(self.policy):
                set_flat_attention(self.reference)

    def _set_packing(self, settings: Mapping[str, Any]) -> None:
        """Has the policy take flat rows if that is asked for and it can.

        Raises:
            ValueError: it cannot, and `packing` is True.
        """
        packing = settings.get("packing", False)
        if not packing:
            return
        if settings["attn_implementation"] is None:
            reason = set_flat_attention(self.policy)
        else:
            reason = f"`attn_implementation` ({settings['attn_implementation']}) is set"
        if reason is None:
            return
        name = type(self.policy).__name__
        if packing == "auto":
            logger.warning("Rows are padded for %s, not packed: %s.", name, reason)
            return
        raise ValueError(
            f'`packing` (True) must be False or "auto" for {name}, because {reason}. '
            'Set `.learners(packing="auto")`.'
        )

    @staticmethod
    def _load(settings: dict[str, Any]) -> Any:
        return load_policy(
            settings["model"],
            dtype=settings["dtype"],
            attn_implementation=settings["attn_implementation"],
            trust_remote_code=settings["trust_remote_code"],
            seed=settings.get("seed", 0),
        ).eval()

    @override(TorchRLModule)
    def train(self, mode: bool = True) -> "LLMRLModule":
        """Keeps dropout off: the ratio to the sampling policy must start at 1.

        Gradient checkpointing is the one thing that Hugging Face ties to the training
        flag, so the flag follows on the modules that checkpoint, but not on those
        inside of them, where dropout is.
        """
        super().train(mode)
        self.policy.eval()
        for module in self.policy.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = mode
        if self.reference is not None:
            self.reference.eval()
        return self

    @override(TorchRLModule)
    def _forward_train(
        self,
        batch: dict[str, Any],
        outputs: Collection[str] = (LOGP, ENTROPY),
        **kwargs: Any,
    ) -> dict[str, Any]:
        return self.token_outputs(self.policy, batch, outputs)

    def token_outputs(
        self, model: Any, batch: dict[str, Any], outputs: Collection[str] = (LOGP,)
    ) -> dict[str, Tensor]:
        """What `model` thinks of the tokens of the batch's responses.

        One function for the current, the old and the reference policy.

        Args:
            model: `self.policy` or `self.reference`.
            batch: columns `INPUT_IDS` `[B, L]`, `PROMPT_LENS` `[B]`, `ACTIONS` and
                `LOSS_MASK` `[B, T]`; `FLAT_ROW` where rows are packed,
                `ACTION_POSITIONS` where the environment's tokens stand between.
            outputs: see `chunked_logps`.

        Returns:
            `[B, T]` float32 for each of `outputs`, at the sampling temperature; 0.0
            where the loss mask is False.
        """
        return response_logps(
            model,
            batch[columns.INPUT_IDS],
            batch[columns.PROMPT_LENS],
            batch[Columns.ACTIONS],
            batch[Columns.LOSS_MASK],
            flat_row=batch.get(columns.FLAT_ROW),
            positions=batch.get(columns.ACTION_POSITIONS),
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            outputs=outputs,
            autocast_dtype=self.autocast_dtype,
        )

    @contextmanager
    def reference_policy(self) -> Iterator[torch.nn.Module]:
        """The model to give to `token_outputs` for the reference's, inside of `with`.

        With LoRA it is the policy itself, its adapter off: there is no second model.
        """
        if self.reference is not None:
            yield self.reference
            return
        assert has_lora(self.policy), "made without `with_reference`"
        with lora_off(self.policy):
            yield self.policy

    @override(TorchRLModule)
    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Logits of the next token, for acting one token at a time.

        The longest row sets the length of the pass; only the tokens' last positions go
        through the head.
        """
        device = next(self.policy.parameters()).device
        obs = {
            name: torch.as_tensor(values, device=device).long()
            for name, values in batch[Columns.OBS].items()
        }
        length = int(obs["attention_mask"].sum(dim=1).max())
        mask = obs["attention_mask"][:, :length]
        hidden = getattr(self.policy, self.policy.base_model_prefix)(
            input_ids=obs["input_ids"][:, :length], attention_mask=mask
        )[0]
        last = hidden[torch.arange(len(mask)), mask.sum(dim=1) - 1]
        logits = self.policy.get_output_embeddings()(last).float()
        return {Columns.ACTION_DIST_INPUTS: logits / self.temperature}

    @override(TorchRLModule)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        inference_only: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns the policy's parameters as NumPy arrays, bfloat16 as uint16.

        With LoRA, those of the adapter: the rest is the model that the configuration
        names, and never changes.

        For `inference_only` there are none: what env runners need travels on the
        project's own transport. The reference policy is never part of the state; it is
        the model that the configuration names.
        """
        if inference_only:
            return {}
        if has_lora(self.policy):
            tensors = adapter_tensors(self.policy)
        else:
            tensors = (self.partitioned or self.policy).state_dict()
        return {name: _to_numpy(tensor) for name, tensor in tensors.items()}

    @override(TorchRLModule)
    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over parameters as returned by `get_state`; an empty state is none."""
        if not state:
            return
        tensors = {name: _to_torch(array) for name, array in state.items()}
        if has_lora(self.policy):
            load_adapter(self.policy, tensors)
        else:
            (self.partitioned or self.policy).load_state_dict(tensors)
            if self.on_load is not None:
                self.on_load(tensors)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    # A copy: a state must not change when the weights do.
    return tensor.numpy().copy()


def _to_torch(array: Any) -> Tensor:
    tensor = torch.as_tensor(array)
    # No policy has uint16 parameters: these are the bits of bfloat16, whatever the
    # dtype of the policy that takes them over.
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
