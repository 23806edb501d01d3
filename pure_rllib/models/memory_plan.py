"""How much memory a training takes, worked out before anything is loaded.

The plan counts bytes per parameter and per token; nothing of it is measured but what
`OTHER_BYTES` stands for. Parameters are counted on PyTorch's meta device, so that any
architecture of `AutoModelForCausalLM` can be planned for.
Source: mixed-precision AdamW, ZeRO (arXiv 1910.02054, section 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from pure_rllib.models.loading import meta_model, policy_config

GIB = 2**30

USABLE = 0.95
"""Of a card's memory; the rest is the driver's."""

OTHER_BYTES = 2 * GIB
"""CUDA's context, the libraries' workspaces, chunks of logits, and fragments."""


def kv_numbers(config: Any) -> int:
    """Numbers that a token has in the cache: keys and values, in all layers.

    Args:
        config: a text model's.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None)
    size = size or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a plan reads of a model.

    Attributes:
        parameters: their number, tied ones once.
        head: numbers of the output embeddings, `[V, H]`.
        hidden: the hidden size, H.
        layers: their number.
        layer: numbers per token that the backward pass of one layer reads.
        kv: numbers per token in the cache, keys and values of all layers.
        adapter: parameters that LoRA of rank 1 has, on all linear layers.
        dtype: the checkpoint's.
    """

    parameters: int
    head: int
    hidden: int
    layers: int
    layer: int
    kv: int
    adapter: int
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        model: str | Mapping[str, Any],
        *,
        trust_remote_code: bool = False,
        **how: Any,
    ) -> "ModelSize":
        """Reads a model's config; its weights are not looked for.

        Args:
            model: as for `policy_config`.
            trust_remote_code: allow code that comes with the model.
            **how: `auto_class`, see `meta_model`.
        """
        whole = policy_config(model, trust_remote_code=trust_remote_code)
        made = meta_model(whole, trust_remote_code=trust_remote_code, **how)
        config = whole.get_text_config()
        hidden, layers = config.hidden_size, config.num_hidden_layers
        wide = getattr(config, "intermediate_size", None) or 4 * hidden
        wide *= getattr(config, "num_experts_per_tok", None) or 1
        head = made.get_input_embeddings().weight  # of the same shape
        matrices = [
            p for p in made.parameters() if p.ndim == 2 and p.shape != head.shape
        ]
        return cls(
            parameters=sum(p.numel() for p in made.parameters()),
            head=head.numel(),
            hidden=hidden,
            layers=layers,
            # The MLP's gate, activation, second input and product; of the hidden size
            # what two norms keep, queries, keys, values, outputs and inputs.
            layer=4 * wide + 12 * hidden,
            kv=kv_numbers(config),
            adapter=sum(sum(matrix.shape) for matrix in matrices),
            dtype=whole.dtype or torch.float32,
        )


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What memory depends on beside the policy.

    Attributes:
        policy: the model that is trained.
        dtype: of its weights: a torch dtype's name, or "auto".
        autocast: whether float32 weights are cast for products.
        lora_rank: of an adapter; 0: all weights are trained.
        adam_bytes: of the optimiser's state, per parameter; 2 with 8-bit moments.
        pass_tokens: of one forward and backward pass.
        checkpointing: only the layers' inputs are kept for the backward pass.
        has_reference: whether there is a second model for a KL term.
        zero_stage: of DeepSpeed; 0: every learner holds all.
        num_learners: that share what the stage partitions; >= 1.
        offload_optimizer: masters and moments lie in RAM.
        offload_param: the weights, too.
        kv_tokens: in the generator's cache.
        scorers: models that judge responses on the generator's device.
        score_tokens: of one of their passes.
        is_shared: whether learner and generator have one device.
        sleeps: whether the generator gives its memory back while the learner updates.
        keeps_cache: whether it keeps its cache meanwhile, if it does not.
    """

    policy: ModelSize
    dtype: str = "bfloat16"
    autocast: bool = False
    lora_rank: int = 0
    adam_bytes: int = 8
    pass_tokens: int = 16_384
    checkpointing: bool = False
    has_reference: bool = False
    zero_stage: int = 0
    num_learners: int = 1
    offload_optimizer: bool = False
    offload_param: bool = False
    kv_tokens: int = 0
    scorers: tuple[ModelSize, ...] = ()
    score_tokens: int = 0
    is_shared: bool = True
    sleeps: bool = True
    keeps_cache: bool = True

    @property
    def weight_bytes(self) -> int:
        """Bytes of one number of the policy."""
        named = self.dtype != "auto"
        dtype = getattr(torch, self.dtype) if named else self.policy.dtype
        return int(dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Phase:
    """What lies in one device's memory at one time, and in RAM for it; bytes."""

    weights: float = 0
    reference: float = 0
    optimizer: float = 0
    gradients: float = 0
    activations: float = 0
    head: float = 0
    engine: float = 0
    kv_cache: float = 0
    scorers: float = 0
    other: float = OTHER_BYTES
    ram: float = 0

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return sum(getattr(self, f.name) for f in fields(self) if f.name != "ram")

    @property
    def tensors(self) -> float:
        """Bytes on the device, without those that are no tensors of ours."""
        return self.total - self.other


def plan_memory(settings: MemorySettings) -> dict[str, Phase]:
    """Works out what each phase of an iteration needs.

    Returns:
        `learn`: the peak of an update, on a learner's device; `sample`, on an env
        runner's; `score` where models judge there. On a shared device each has what
        the other keeps.
    """
    policy, size = settings.policy, settings.weight_bytes
    learn = _learner(settings)
    generator = {
        "engine": policy.parameters * size,
        "kv_cache": settings.kv_tokens * policy.kv * size,
    }
    scorers = sum(one.parameters * one.dtype.itemsize for one in settings.scorers)
    if settings.is_shared:
        # What a pass needs is gone when the optimiser has made its step.
        idle = replace(learn, gradients=0, activations=0, head=0)
        sample = replace(idle, **generator, scorers=scorers)
        learn = replace(learn, scorers=scorers)
        if not settings.sleeps:
            learn = replace(learn, **generator)
            learn = learn if settings.keeps_cache else replace(learn, kv_cache=0)
    else:
        sample = Phase(**generator, scorers=scorers)
    phases = {"learn": learn, "sample": sample}
    if settings.scorers:
        # Without gradients a pass keeps one layer's numbers.
        largest = max(one.layer * one.dtype.itemsize for one in settings.scorers)
        passing = settings.score_tokens * largest
        phases["score"] = replace(sample, activations=passing)
    return phases


def _learner(settings: MemorySettings) -> Phase:
    """What an update needs at its peak, before the optimiser's first step ends."""
    policy, size = settings.policy, settings.weight_bytes
    stage, shares = settings.zero_stage, settings.num_learners
    trained = settings.lora_rank * policy.adapter or policy.parameters
    is_half = size < 4 and not settings.lora_rank
    weights = policy.parameters * size + (trained * 4 if settings.lora_rank else 0)
    optimizer = trained * (settings.adam_bytes + (4 if is_half else 0))
    # Sums over micro-batches are float32. ZeRO 1 partitions no gradients, and sends
    # copies of them.
    gradients = trained * (6 if stage == 1 and is_half else 4)
    computed = 2 if settings.autocast else size
    kept = policy.layers * policy.hidden + policy.layer
    if not settings.checkpointing:
        kept = policy.layers * policy.layer
    phase = Phase(
        weights=weights / (shares if stage == 3 else 1),
        reference=policy.parameters * size if settings.has_reference else 0,
        optimizer=optimizer / (shares if stage else 1),
        gradients=gradients / (shares if stage > 1 else 1),
        activations=settings.pass_tokens * kept * computed
        + (policy.parameters * 2 if settings.autocast else 0),
        # The float32 gradient of the output embeddings, and its copy in their dtype.
        head=0 if settings.lora_rank else policy.head * (4 + (size if size < 4 else 0)),
    )
    if settings.offload_optimizer:
        phase = replace(phase, optimizer=0, ram=phase.optimizer)
    if settings.offload_param:
        phase = replace(phase, weights=0, ram=phase.ram + phase.weights)
    return phase
