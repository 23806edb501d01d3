"""PURE's learner with DeepSpeed ZeRO: the same updates, in less memory per learner."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.utils.annotations import override
from torch import Tensor, nn

from pure_rllib.distributed.collectives import (
    collective,
    collectively,
    max_over_learners,
    num_ranks,
    rank,
)
from pure_rllib.distributed.deepspeed_import import import_deepspeed
from pure_rllib.learners.deepspeed_settings import engine_config
from pure_rllib.learners.torch_learner import LLMTorchLearner
from pure_rllib.learners.zero_weights import ZeroPolicy
from pure_rllib.models import columns
from pure_rllib.models.batching import num_micro_batches
from pure_rllib.models.export import CPU, MAX_SHARD_BYTES, export_policy
from pure_rllib.models.llm_rl_module import ENTROPY
from pure_rllib.models.logprobs import sequence_logps


class _Root(nn.Module):
    """What DeepSpeed takes for the model: anything that is computed with the policy.

    Its hooks around this module's forward pass then see every use of the policy.
    """

    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy

    def forward(self, *, compute: Callable[[], Any]) -> Any:
        return compute()


class DeepSpeedLearner(LLMTorchLearner):
    """Partitions optimiser state, gradients and parameters over the learners.

    ZeRO 2 and 3 communicate in every backward pass (3 in forward passes, too), so all
    learners must make the same number of them: learners with fewer micro-batches make
    idle passes, whose gradients are zero. State is gathered tensor by tensor, in the
    form that a `LLMTorchLearner` has: checkpoints fit any stage and any number of
    learners. Source: ZeRO (arXiv 1910.02054).
    """

    @override(LLMTorchLearner)
    def configure_optimizers_for_module(
        self, module_id: str, config: AlgorithmConfig | None = None
    ) -> None:
        """Hands the policy and AdamW to DeepSpeed.

        Raises:
            ValueError: the policy is float16.
        """
        super().configure_optimizers_for_module(module_id, config)
        optimizer = self.get_optimizer(module_id)
        self._engine = _initialize(self._policy, optimizer, config, self._device)
        self._whole = ZeroPolicy(self._policy, self._engine)
        module = self.module[module_id].unwrapped()
        module.partitioned, module.run_passes = self._whole, self._run_passes

    @override(LLMTorchLearner)
    def _optimized_tensors(self) -> list[Tensor]:
        # DeepSpeed makes the masters and moves the optimiser to them.
        return [p for p in self._policy.parameters() if p.requires_grad]

    @override(LLMTorchLearner)
    def _accumulate(
        self, batch: dict[str, Any], rows: Tensor, *, is_first: bool
    ) -> Tensor:
        mine = num_micro_batches(batch, self.config.micro_batch_tokens, rows)
        most = max_over_learners(mine, "number of micro-batches")
        total = super()._accumulate(batch, rows, is_first=is_first)
        for _ in range(most - mine):
            self._idle_pass()
        return total

    def _idle_pass(self, factor: float = 0.0) -> None:
        """A pass through the same operations as a real one, on two tokens.

        Args:
            factor: of the gradients; 0.0, or NaN to make DeepSpeed drop the step.
        """
        output = self._forward(self._idle_batch())
        loss = output[Columns.ACTION_LOGP].sum()
        if self.config.entropy_coeff:
            loss = loss + output[ENTROPY].sum()
        self._backward(loss * factor)

    def _idle_batch(self) -> dict[str, Tensor]:
        token = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        return {
            columns.INPUT_IDS: token.expand(1, 2),
            columns.PROMPT_LENS: token[0] + 1,
            Columns.ACTIONS: token,
            Columns.LOSS_MASK: token == 0,
        }

    @torch.no_grad()
    def _run_passes(self, passes: Sequence[Callable[[], Any]]) -> list[Any]:
        """Makes forward passes through the policy, as many on every learner."""
        most = max_over_learners(len(passes), "number of passes")
        with collective("forward"):
            results = [self._engine(compute=one) for one in passes]
        for _ in range(most - len(passes)):
            self._forward(self._idle_batch())
        return results

    @override(LLMTorchLearner)
    def _forward(self, micro_batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with collective("forward"):
            output: dict[str, Tensor] = self._engine(
                compute=partial(super()._forward, micro_batch)
            )
        return output

    @override(LLMTorchLearner)
    def _backward(self, loss: Tensor) -> None:
        # DeepSpeed takes the mean over the learners; the loss has its denominator.
        self._whole.hold_gradients()
        with collective("backward"):
            self._engine.backward(loss * num_ranks())

    @override(LLMTorchLearner)
    def _apply_gradients(self, lr: float, is_finite: bool) -> float:
        if not is_finite:
            # DeepSpeed looks at gradients only, and a loss can be infinite alone.
            self._idle_pass(factor=math.nan)
        for param_group in self._engine.optimizer.param_groups:
            param_group["lr"] = lr
        with collective("optimizer step"):
            self._engine.step()
        self._whole.free_gradients()
        if not self._engine.was_step_applied():
            return math.nan
        return float(self._engine.get_global_grad_norm())

    @override(LLMTorchLearner)
    def _zero_gradients(self) -> None:
        """DeepSpeed does, at the end of a step that was made or dropped."""

    @override(LLMTorchLearner)
    def _adam_state(
        self, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Any], list[Tensor]]:
        with collective("gather optimiser state"):
            return self._whole.optimizer_state()

    @override(LLMTorchLearner)
    def _load_adam_state(
        self,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        masters: Sequence[Tensor],
    ) -> None:
        with collective("load optimiser state"):
            self._whole.load_optimizer_state(state, masters)

    @override(LLMTorchLearner)
    def weight_shards(
        self, max_shard_bytes: int = MAX_SHARD_BYTES, *, device: torch.device = CPU
    ) -> Iterator[dict[str, Tensor]]:
        """Yields whole tensors, gathered shard by shard."""
        shards = self._whole.shards(max_shard_bytes, device=device)
        return collectively("gather weights", shards)

    @override(LLMTorchLearner)
    def num_weight_bytes(self) -> int:
        """Returns the size of all that `weight_shards` yields."""
        return self._whole.num_bytes()

    @override(LLMTorchLearner)
    def probe_logps(self, sequences: Sequence[Sequence[int]]) -> list[Any]:
        """Passes each sequence through the policy; see `Generator.logps`."""
        with torch.no_grad(), collective("probe"):
            return [
                self._engine(compute=partial(self._sequence_logps, token_ids))[0]
                for token_ids in sequences
            ]

    def _sequence_logps(self, token_ids: Sequence[int]) -> list[Any]:
        # In a list: DeepSpeed's hooks look for tensors in what is returned.
        return [sequence_logps(self._policy, token_ids, self._device)]

    @override(LLMTorchLearner)
    def export_policy(self, tokenizer: Any, folder: str) -> None:
        """Gathers the policy on the first learner's CPU, which writes it."""
        with collective("gather policy"):
            state = self._whole.state_dict()
        if rank() == 0:
            export_policy(
                self._policy,
                tokenizer,
                folder,
                lambda policy, path: policy.save_pretrained(path, state_dict={**state}),
            )

    @override(Learner)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Gathers the state on the first learner; all learners must call it.

        `PURELearnerGroup` sees to that. Other learners return nothing.
        """
        with collective("gather state"):
            state: dict[str, Any] = super().get_state(*args, **kwargs)
        return state if rank() == 0 else {}


def _initialize(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Any,
    device: torch.device,
) -> Any:
    """Makes DeepSpeed's engine on RLlib's process group."""
    dtype = next(policy.parameters()).dtype
    if dtype == torch.float16:
        raise ValueError(
            "`dtype` (float16) must be float32 or bfloat16 with `deepspeed`, because "
            " float16 needs loss scaling, which skips updates. Set "
            '`.rl_module(model_config={"dtype": "bfloat16"})`.'
        )
    # A learner sees its own GPU only, or all of them if Ray is told so.
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    os.environ["RANK"] = str(rank())
    os.environ["WORLD_SIZE"] = str(num_ranks())
    deepspeed = import_deepspeed(on_cpu=device.type == "cpu")
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    deepspeed.init_distributed(
        dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False
    )
    engine, *_ = deepspeed.initialize(
        model=_Root(policy),
        optimizer=optimizer,
        config=engine_config(
            config.deepspeed,
            num_parameters=sum(p.numel() for p in policy.parameters()),
            grad_clip=config.grad_clip,
            is_bfloat16=dtype == torch.bfloat16,
        ),
    )
    return engine
