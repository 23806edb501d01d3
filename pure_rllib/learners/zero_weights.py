"""A policy that DeepSpeed partitions: parameters, master weights and moments, whole.

Every function here is collective: all learners call it together, in the same order.
What it gathers, one tensor or one shard at a time, counts on the first learner only.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pure_rllib.distributed.collectives import collective, num_ranks, rank
from pure_rllib.models.export import CPU, cut_into_shards

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroPolicy:
    """Reads and writes whole tensors of a policy under ZeRO 1, 2 or 3.

    `state_dict` and `load_state_dict` are named as those of a module, for which this
    stands in `LLMRLModule`.

    Args:
        policy: the Hugging Face model inside of the engine.
        engine: DeepSpeed's, with AdamW.
    """

    def __init__(self, policy: nn.Module, engine: Any):
        self._policy = policy
        self._engine = engine

    def free_gradients(self) -> None:
        """Gives up stage 3's buffer of gradients until the next backward pass.

        DeepSpeed would keep it between updates, unlike those of stage 2.
        """
        buffer = self._gradient_buffer()
        if buffer is not None:
            # Gradients are views of it: it must stay, and only its memory goes.
            buffer.untyped_storage().resize_(0)

    def hold_gradients(self) -> None:
        """Makes room for gradients again, where `free_gradients` gave it up."""
        buffer = self._gradient_buffer()
        if buffer is None:
            return
        num_bytes = buffer.numel() * buffer.element_size()
        if buffer.untyped_storage().nbytes() != num_bytes:
            buffer.untyped_storage().resize_(num_bytes)
            # The padding of partitions is read and never written.
            buffer.zero_()

    def _gradient_buffer(self) -> Tensor | None:
        """Stage 3's gradients of this learner; None where they may be pinned."""
        optimizer = self._engine.optimizer
        if self._engine.zero_optimization_stage() < 3 or optimizer.offload_optimizer:
            return None
        buffer: Tensor = optimizer.grad_partitions_flat_buffer
        return buffer

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the policy's tensors on the CPU; empty but on the first learner."""
        state: dict[str, Tensor] = {}
        copies: dict[int, Tensor] = {}
        for name, tensor in self._named_tensors():
            with _gathered(tensor):
                if rank() == 0:
                    # Tied tensors stay tied.
                    if id(tensor) not in copies:
                        copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
                    state[name] = copies[id(tensor)]
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over tensors, which all learners give; master weights are made anew.

        Raises:
            ValueError: names or shapes are not those of the policy.
        """
        named = dict(self._named_tensors())
        wrong = sorted(set(state) ^ set(named)) or [
            name for name in named if state[name].shape != _shape(named[name])
        ]
        if wrong:
            raise ValueError(
                f"The state must fit the policy; {wrong[:4]} are missing, unknown or "
                "of another shape. Restore with the checkpoint's own model."
            )
        saved, own = ({t.dtype for t in tensors.values()} for tensors in (state, named))
        if saved != own:
            raise ValueError(
                f"`dtype` ({_names(own)}) must be the checkpoint's ({_names(saved)}) "
                "with `deepspeed`, because its parts of the master weights are not "
                'made anew from others. Set `.rl_module(model_config={"dtype": '
                "...})`, or restore without `deepspeed`."
            )
        with collective("load state"):
            for name, tensor in named.items():
                with _gathered(tensor, modified=True), torch.no_grad():
                    if tensor.numel():
                        tensor.data.copy_(state[name])
            self._engine.optimizer.refresh_fp32_params()

    def num_bytes(self) -> int:
        """Returns the size of the whole policy, tied tensors counted once."""
        return sum(
            _shape(tensor).numel() * tensor.element_size()
            for _, tensor in self._untied_tensors()
        )

    def shards(
        self, max_shard_bytes: int, *, device: torch.device = CPU
    ) -> Iterator[dict[str, Tensor]]:
        """Yields the policy's tensors, each of tied ones once.

        At most one shard and one tensor are whole at a time.

        Args:
            max_shard_bytes: of a shard; a tensor that alone is larger is a shard.
            device: of the shards.
        """
        return cut_into_shards(self._whole(device), max_shard_bytes, device=device)

    def _whole(self, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._untied_tensors():
            with _gathered(tensor):
                is_partitioned = hasattr(tensor, "ds_id")
                yield name, tensor.detach().to(device, copy=is_partitioned)

    def optimizer_state(self) -> tuple[dict[str, Any], list[Tensor]]:
        """Returns AdamW's state as of one optimiser, and master weights, all whole.

        Returns:
            A state as `torch.optim.AdamW.state_dict()` gives it, its tensors on the
            CPU, and the float32 master weights of a lower-precision policy (else none);
            on other learners than the first both are without tensors.
        """
        from deepspeed.utils import (
            safe_get_full_fp32_param,
            safe_get_full_optimizer_state,
        )

        optimizer = self._engine.optimizer.optimizer
        params = self._trainable()
        group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        steps = [s["step"] for s in optimizer.state.values() if "step" in s]
        state: dict[int, dict[str, Tensor]] = {}
        master_weights: list[Tensor] = []
        for index, param in enumerate(params):
            moments = {
                name: safe_get_full_optimizer_state(param, name)
                for name in (_MOMENTS if steps else ())
            }
            if rank() == 0 and steps:
                state[index] = {
                    "step": steps[0].clone(),
                    **{name: _on_cpu(tensor) for name, tensor in moments.items()},
                }
            if param.dtype != torch.float32:
                master = safe_get_full_fp32_param(param)
                if rank() == 0:
                    master_weights.append(_on_cpu(master))
        groups = [{**group, "params": list(range(len(params)))}]
        return {"state": state, "param_groups": groups}, master_weights

    def load_optimizer_state(
        self, saved: Mapping[str, Any], master_weights: Sequence[Tensor]
    ) -> None:
        """Takes over what `optimizer_state` or a learner without ZeRO returned.

        Args:
            saved: as of `torch.optim.AdamW.state_dict()`.
            master_weights: in float32; none: they follow from the policy's tensors.
        """
        optimizer = self._engine.optimizer.optimizer
        states, params = saved["state"], self._trainable()
        for flat in self._partitions() if states else ():
            optimizer.state[flat] = {
                "step": states[0]["step"].clone(),
                **{name: torch.zeros_like(flat) for name in _MOMENTS},
            }
        if not states:
            optimizer.state.clear()
        elif not self._is_stage_3:
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        for index, param in enumerate(params):
            for name in _MOMENTS if states else ():
                self._set_whole(param, states[index][name], name)
            if param.dtype != torch.float32 and master_weights:
                self._set_whole(param, master_weights[index], None)

    def _set_whole(self, param: Any, value: Tensor, key: str | None) -> None:
        """Copies this learner's part of a whole tensor into its place."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
        )

        value = value.float()
        if self._is_stage_3:
            # DeepSpeed's own function for whole tensors fails where the last part is
            # padded.
            size = param.ds_tensor.numel()
            padded = value.new_zeros(size * num_ranks())
            padded[: value.numel()] = value.reshape(-1)
            part = padded[rank() * size :][:size]
            self._engine.optimizer.set_local_hp_param(part, param, key)
        elif key is None:
            safe_set_full_fp32_param(param, value)
        else:
            safe_set_full_optimizer_state(param, value, key)

    @property
    def _is_stage_3(self) -> bool:
        return int(self._engine.zero_optimization_stage()) == 3

    def _partitions(self) -> list[Tensor]:
        """The flat float32 tensors that AdamW steps on."""
        zero = self._engine.optimizer
        if self._is_stage_3:
            flat: list[Tensor] = zero.fp32_partitioned_groups_flat
            return flat
        return [p for group in zero.optimizer.param_groups for p in group["params"]]

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self._policy.parameters() if p.requires_grad]

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._policy.state_dict(keep_vars=True).items()

    def _untied_tensors(self) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for name, tensor in self._named_tensors():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor


def _gathered(tensor: Tensor, *, modified: bool = False) -> Any:
    """A context in which a tensor is whole; parameters may be partitioned."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(
        [tensor],
        modifier_rank=0 if modified else None,
        enabled=hasattr(tensor, "ds_id"),
    )


def _shape(tensor: Tensor) -> torch.Size:
    return torch.Size(getattr(tensor, "ds_shape", tensor.shape))


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
