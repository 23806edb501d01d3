"""PURE's learner with DeepSpeed ZeRO: the same updates, in less memory per learner."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    limit_collectives,
    max_over_learners,
    num_ranks,
    rank,
)
from pure_rllib.distributed.deepspeed_import import import_deepspeed
from pure_rllib.learners.deepspeed_settings import check_dtype
from pure_rllib.learners.torch_learner import LLMTorchLearner
from pure_rllib.learners.zero_weights import ZeroPolicy
from pure_rllib.models import columns
from pure_rllib.models.export import CPU, MAX_SHARD_BYTES, export_policy
from pure_rllib.models.llm_rl_module import ENTROPY
from pure_rllib.models.logprobs import sequence_logps

_BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")
_BUCKETS_OF_STAGE_3 = (
    "reduce_bucket_size",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)
_LEAST_BUCKET = 1_000_000


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
        assert config is not None
        super().configure_optimizers_for_module(module_id, config)
        optimizer = self.get_optimizer(module_id)
        self._engine = _initialize(self._policy, optimizer, config, self._device)
        # DeepSpeed has made groups of its own.
        limit_collectives(config.collective_timeout_s)
        self._whole = ZeroPolicy(self._policy, self._engine)
        module = self.module[module_id].unwrapped()
        module.partitioned, module.run_passes = self._whole, self._run_passes

    @override(LLMTorchLearner)
    def _optimized_tensors(self) -> list[Tensor]:
        # DeepSpeed makes the master weights and moves the optimiser to them.
        return [p for p in self._policy.parameters() if p.requires_grad]

    @override(LLMTorchLearner)
    def _accumulate(
        self, batch: dict[str, Any], cuts: Sequence[Tensor], *, is_first: bool
    ) -> Tensor:
        most = max_over_learners(len(cuts), "number of micro-batches")
        total = super()._accumulate(batch, cuts, is_first=is_first)
        for _ in range(most - len(cuts)):
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
        master_weights: Sequence[Tensor],
    ) -> None:
        with collective("load optimiser state"):
            self._whole.load_optimizer_state(state, master_weights)

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
    check_dtype(dtype)
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


def engine_config(
    settings: Mapping[str, Any],
    *,
    num_parameters: int,
    grad_clip: float | None,
    is_bfloat16: bool,
) -> dict[str, Any]:
    """Returns the configuration for `deepspeed.initialize`.

    Args:
        settings: as of `.learners(deepspeed=...)`; they win over `default_sizes`.
        num_parameters: of the whole policy.
        grad_clip: norm to clip to; None: no clipping.
        is_bfloat16: the policy's dtype; ZeRO then keeps float32 master weights.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    zero = {**default_sizes(given["stage"], num_parameters), **given}
    return {
        # Batches are the learner's own, of any size; it says itself where a step ends.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": grad_clip or 0.0,
        "bf16": {"enabled": is_bfloat16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        # PyTorch's AdamW steps on offloaded state too; DeepSpeed's own would have to
        # be compiled where it runs.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def default_sizes(stage: int, num_parameters: int) -> dict[str, int]:
    """Returns sizes of buckets, in elements, for a policy of any size.

    DeepSpeed's own defaults, a billion live parameters among them, hold all of a small
    policy, so that stage 3 would save nothing. Here each is a tenth of the policy, and
    at most DeepSpeed's; and even, which `allgather_bucket_size` has to be.

    Args:
        stage: 1, 2 or 3.
        num_parameters: of the whole policy.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    share = max(_LEAST_BUCKET, num_parameters // 20 * 2)
    own = DeepSpeedZeroConfig().model_dump(by_alias=True)
    names = _BUCKETS_OF_STAGE_3 if stage == 3 else _BUCKETS
    return {name: min(share, own[name]) for name in names}
