"""A run's memory plan: read off its configuration, as a table, and what would help."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from transformers import AutoModel

from pure_rllib.generation.vllm_engine import kv_cache_tokens
from pure_rllib.models.memory_plan import (
    GIB,
    MemorySettings,
    ModelSize,
    Phase,
    plan_memory,
)
from pure_rllib.reporting.tables import format_table

_LORA_RANK = 16  # of what is proposed
_PEFT_RANK = 8  # PEFT's own default
_SCORED_TOKENS = 16_384


@dataclass(frozen=True)
class RunPlan:
    """What a run needs.

    Attributes:
        settings: what memory depends on.
        fewer_rows: an option that makes the generator's cache a quarter of what it is.
    """

    settings: MemorySettings
    fewer_rows: str

    @classmethod
    def of(
        cls, config: Any, *, max_prompt_tokens: int, max_response_tokens: int
    ) -> Self:
        """Reads a plan off a configuration that names its policy.

        Args:
            config: an `LLMConfig`.
            max_prompt_tokens: the environment's.
            max_response_tokens: likewise.

        Raises:
            ValueError: there is no config of the policy or of a reward model.
        """
        model = config.full_model_config()
        trust = bool(model["trust_remote_code"])
        policy = ModelSize.of(model["model"], trust_remote_code=trust)
        longest = max_prompt_tokens + config.longest_response(max_response_tokens)
        num_responses = config.num_prompts * config.group_size
        num_learners = max(1, config.num_learners)
        zero, lora = config.deepspeed or {}, model["lora"]
        scorers, score_tokens = _scorers(config)
        settings = MemorySettings(
            policy=policy,
            dtype=model["dtype"],
            autocast=model["autocast_dtype"] is not None,
            lora_rank=0 if lora is None else lora.get("r", _PEFT_RANK),
            # A longer row passes alone, and there may be fewer tokens in all.
            pass_tokens=min(
                max(config.micro_batch_tokens, longest),
                -(-num_responses // num_learners) * longest,
            ),
            checkpointing=model["gradient_checkpointing"],
            has_reference=config.kl_coeff > 0 and lora is None,
            zero_stage=zero.get("stage", 0),
            num_learners=num_learners,
            offload_optimizer=_is_offloaded(zero, "offload_optimizer"),
            offload_param=_is_offloaded(zero, "offload_param"),
            scorers=scorers,
            score_tokens=score_tokens,
            is_shared=not (config.num_learners or config.num_env_runners),
            sleeps=config.colocate,
            keeps_cache=config.generator == "vllm",
        )
        kv_tokens = _kv_tokens(config, settings, longest)
        name = "max_num_seqs" if config.generator == "vllm" else "max_batch_size"
        rows = max(1, kv_tokens // longest // 4)
        return cls(
            replace(settings, kv_tokens=kv_tokens),
            f"--set env_runners.generator_kwargs.{name}={rows}",
        )

    @property
    def phases(self) -> dict[str, Phase]:
        """See `plan_memory`."""
        return plan_memory(self.settings)

    @property
    def peak(self) -> tuple[str, float]:
        """The phase that needs most of one device, and how many bytes."""
        return _peak(self.phases)

    def table(self) -> str:
        """Returns the plan in GiB, a line for each phase; parts of 0 are left out."""
        phases = self.phases
        names = [
            field.name
            for field in fields(Phase)
            if any(getattr(phase, field.name) for phase in phases.values())
        ]
        rows = [
            [name, *(_gib(getattr(phase, n)) for n in names), _gib(phase.total)]
            for name, phase in phases.items()
        ]
        headers = [name.replace("_", " ") for name in names]
        return format_table(["GiB of a device", *headers, "total"], rows)

    def verdict(self, room: float) -> str:
        """Says which phase peaks, whether it fits, and what would lower the peak.

        Args:
            room: bytes that are free on a device.
        """
        name, peak = self.peak
        does_fit = peak <= room
        fits = "fits into" if does_fit else "does not fit into"
        line = f"The peak is in `{name}`: {_gib(peak)} GiB, which {fits} {_gib(room)}."
        if does_fit:
            return line
        ways = [f"  {_gib(b):>6}  {text}" for text, b in self.what_helps()]
        return "\n".join([line, "Each of these alone would lower it, to:", *ways])

    def check(self, room: float) -> None:
        """Refuses a plan that does not fit, before weights are loaded.

        Args:
            room: bytes that are free on a device.

        Raises:
            ValueError: with the table, and what to change.
        """
        if self.peak[1] > room:
            raise ValueError(
                f"The GPU must have more memory free than {_gib(room)} GiB, because "
                "the run would end without memory, in its second iteration at the "
                f"latest.\n{self.table()}\n{self.verdict(room)}"
            )

    def what_helps(self) -> list[tuple[str, float]]:
        """Returns settings that lower the peak, each alone, and the peak with it.

        Returns:
            What to set, and bytes; the lowest peak comes first.
        """
        now = self.settings
        model = "--set rl_module.model_config"
        changes: dict[str, dict[str, Any]] = {
            f"--set training.micro_batch_tokens={now.pass_tokens // 4}": {
                "pass_tokens": now.pass_tokens // 4
            },
            self.fewer_rows: {"kv_tokens": now.kv_tokens // 4},
            f"{model}.gradient_checkpointing=true": {"checkpointing": True},
            "--set training.kl_coeff=0": {"has_reference": False},
        }
        if now.dtype == "float32":
            half = {"dtype": "bfloat16", "autocast": False}
            changes[f"{model}.dtype=bfloat16"] = half
        if now.zero_stage:
            offload = "--set learners.deepspeed.offload_optimizer.device=cpu"
            changes[offload] = {"offload_optimizer": True}
        elif not now.lora_rank:
            lora = {"lora_rank": _LORA_RANK, "has_reference": False}
            changes[f"{model}.lora.r={_LORA_RANK}"] = lora
        if now.is_shared:
            share = "--set env_runners.generator=vllm --set env_runners.colocate=true"
            changes[share] = {"sleeps": True}
        peaks = [
            (text, _peak(plan_memory(replace(now, **change)))[1])
            for text, change in changes.items()
        ]
        lower = [one for one in peaks if one[1] < self.peak[1]]
        return sorted(lower, key=lambda one: one[1])


def _peak(phases: Mapping[str, Phase]) -> tuple[str, float]:
    name = max(phases, key=lambda one: phases[one].total)
    return name, phases[name].total


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f}"


def _is_offloaded(zero: Mapping[str, Any], name: str) -> bool:
    return (zero.get(name) or {}).get("device") == "cpu"


def _kv_tokens(config: Any, settings: MemorySettings, longest: int) -> int:
    """Tokens in the generator's cache."""
    given = config.generator_kwargs
    if "kv_cache_memory_bytes" in given:
        of_token = settings.policy.kv * settings.weight_bytes
        return int(given["kv_cache_memory_bytes"]) // of_token
    num_responses = config.num_prompts * config.group_size
    share = -(-num_responses // max(1, config.num_env_runners))
    limit = given.get("max_num_seqs") or given.get("max_batch_size")
    return kv_cache_tokens(longest, share, limit)


def _scorers(config: Any) -> tuple[tuple[ModelSize, ...], int]:
    """Sizes of the models that judge in the generator's process, and of their passes.

    Those with processes of their own have devices of their own.
    """
    if config.num_prm_actors:
        return (), 0
    sizes: list[ModelSize] = []
    tokens = 0
    for name in ("prm", "reward_model"):
        given = config.env_config.get(name)
        kwargs = config.env_config.get(f"{name}_kwargs") or {}
        if given is None or kwargs.get("device") == "cpu":
            continue
        dtype = kwargs.get("dtype", "auto")
        for model in given if isinstance(given, list) else [given]:
            # Encoders judge as well.
            size = ModelSize.of(
                model,
                trust_remote_code=kwargs.get("trust_remote_code", False),
                auto_class=AutoModel,
            )
            if dtype != "auto":
                size = replace(size, dtype=getattr(torch, str(dtype)))
            sizes.append(size)
        tokens = max(tokens, kwargs.get("micro_batch_tokens", _SCORED_TOKENS))
    return tuple(sizes), tokens
