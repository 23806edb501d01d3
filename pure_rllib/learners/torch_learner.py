"""The learner: whole responses in, clipped policy-gradient updates out.

B responses, T response tokens.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import DEFAULT_OPTIMIZER, Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED,
)
from torch import Tensor

from pure_rllib.credit.kl import kl_estimate
from pure_rllib.credit.policy_loss import (
    LossScale,
    clipped_policy_loss,
    loss_denominator,
)
from pure_rllib.distributed.collectives import (
    broadcast_parameters,
    limit_collectives,
    rank,
    sum_gradients,
    sum_over_learners,
)
from pure_rllib.learners.balance import RowBalance
from pure_rllib.learners.delivery import GroupInbox
from pure_rllib.learners.master_weights import MasterWeights
from pure_rllib.learners.rollout_correction import add_first_gaps, correct_rollouts
from pure_rllib.learners.stats import LOGGED, STATS, LearnerStats, batch_stats
from pure_rllib.learners.train_batch import MiniBatchPlan
from pure_rllib.models import columns
from pure_rllib.models.batching import cut_rows, micro_batches
from pure_rllib.models.export import (
    CPU,
    MAX_SHARD_BYTES,
    cut_into_shards,
    export_policy,
    untied_tensors,
)
from pure_rllib.models.flat_attention import takes_flat_rows
from pure_rllib.models.llm_rl_module import ENTROPY
from pure_rllib.models.logprobs import sequence_logps
from pure_rllib.models.lora import has_lora, lora_merged, merged_tensors, save_merged
from pure_rllib.weight_sync.nccl import WeightSender

_UPDATES_DONE = "num_updates"
_MASTERS = "float32_masters"
_CONNECTORS = "learner_connector"


class NonFiniteLossError(FloatingPointError):
    """A loss or a gradient was NaN or infinite; the weights were left as they are."""


class LLMTorchLearner(TorchLearner):
    """Updates the policy with PPO's clipped loss on per-token advantages.

    An optimiser step sees one mini-batch of whole groups, the same groups whatever the
    number of learners. Each learner works through its share in micro-batches under a
    token budget; losses are divided by the global number of loss tokens and gradients
    are summed over the learners, so that neither the number of learners nor the cut
    into micro-batches changes an update.

    An algorithm with another loss overrides `compute_loss_for_module`, which is called
    once per micro-batch and finds there whatever its learner connectors wrote.

    Attributes:
        trained_tensors: what the optimiser updates: the policy's trainable parameters,
            or float32 copies of those of a lower precision.
        outputs: what the forward pass gives for each token, `[B, T]` each; see
            `LLMRLModule.forward_train`.
        scale: aggregation and global denominator of the present optimiser step.
    """

    outputs: ClassVar[tuple[str, ...]] = (Columns.ACTION_LOGP, ENTROPY)
    scale: LossScale

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._num_updates = 0
        self._inbox = GroupInbox()
        self._stats = LearnerStats()
        self.sender = WeightSender()

    @property
    def _policy(self) -> Any:
        return self.module[DEFAULT_MODULE_ID].unwrapped().policy

    @override(TorchLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        """Leaves the module as it is: `_apply_gradients` sums gradients."""

    @override(Learner)
    def configure_optimizers(self) -> None:
        """Has the optimiser made; all learners start from the first one's weights.

        Raises:
            ValueError: an own `configure_optimizers_for_module` made another kind.
        """
        limit_collectives(self.config.collective_timeout_s)
        broadcast_parameters(self._policy.state_dict().values())
        self.trained_tensors = self._optimized_tensors()
        super().configure_optimizers()
        names = list(self._named_optimizers)
        if names != [f"{DEFAULT_MODULE_ID}_{DEFAULT_OPTIMIZER}"] or not set(
            self._params
        ) <= set(self.trained_tensors):
            raise ValueError(
                f"`configure_optimizers_for_module` ({names}) must register one "
                "optimiser, of `self.trained_tensors` and under RLlib's default name, "
                "because these hold the weights in float32. Give it "
                "`params=self.trained_tensors` and `lr_or_lr_schedule=config.lr`."
            )

    @override(TorchLearner)
    def configure_optimizers_for_module(
        self, module_id: str, config: AlgorithmConfig | None = None
    ) -> None:
        """Makes AdamW of `trained_tensors` with the settings of `.training()`."""
        assert config is not None
        params = self.trained_tensors
        optimizer = torch.optim.AdamW(
            params,
            lr=0.0,  # set before each step
            # Else a step on a GPU makes temporaries as large as all weights.
            fused=params[0].is_cuda or None,
            **self._optimizer_settings(config),
        )
        self.register_optimizer(
            module_id=module_id,
            optimizer=optimizer,
            params=params,
            lr_or_lr_schedule=config.lr,
        )

    def _optimized_tensors(self) -> list[Tensor]:
        """Makes what the optimiser updates."""
        self._masters = MasterWeights(self._policy)
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        module.on_load = self._masters.follow
        return self._masters.tensors

    @staticmethod
    def _optimizer_settings(config: Any) -> dict[str, Any]:
        return {
            "betas": tuple(config.adam_betas),
            "eps": config.adam_epsilon,
            "weight_decay": config.weight_decay,
        }

    def fetch_groups(self, groups: Mapping[int, Any]) -> list[int]:
        """Fetches the next update's groups; returns the ids of those that are lost."""
        return self._inbox.fetch(groups)

    @override(Learner)
    def update(  # type: ignore[override]
        self,
        *,
        plan: MiniBatchPlan,
        timesteps: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Makes one optimiser step per mini-batch of the plan, on the fetched groups.

        Args:
            plan: which groups make up which mini-batch; the same for all learners.
            timesteps: as for RLlib's learning-rate schedules.
            **kwargs: ignored.

        Returns:
            Sums for `stats.merge`, and what was logged by RLlib's means.

        Raises:
            NonFiniteLossError: before the weights change.
        """
        self._check_is_built()
        self.before_gradient_based_update(timesteps=timesteps or {})
        # RLlib moves its schedules on after an update and does not save where they
        # are; from the number of timesteps, a resumed run finds its place.
        self._optimizer_lr_schedules[self.get_optimizer(DEFAULT_MODULE_ID)].update(
            timestep=(timesteps or {}).get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
        )
        self._weights_seq_no += 1
        stats = self._stats = LearnerStats()
        batch = self._train_batch(self._inbox.take())
        batch_stats(batch, stats)
        correct_rollouts(batch, self.config, stats)
        balance = RowBalance(batch, packing=takes_flat_rows(self._policy))
        for index, group_ids in enumerate(plan.mini_batches):
            share, imbalance = balance.share(group_ids)
            stats.mean("tokens/imbalance", imbalance)
            self._step(share, group_ids, index, plan)
        self.after_gradient_based_update(timesteps=timesteps or {})
        return stats.as_dict() | {LOGGED: self.metrics.reduce()}

    def _train_batch(self, episodes: Sequence[Any]) -> dict[str, Any]:
        """Runs the connectors; their result stays on the CPU until it is needed.

        Those that measure something add it to `shared_data[STATS]`.
        """
        assert self._learner_connector is not None
        batch = self._learner_connector(
            rl_module=self.module,
            batch={},
            episodes=list(episodes),
            shared_data={STATS: self._stats},
            metrics=self.metrics,
        )
        columns_of_module: dict[str, Any] = batch[DEFAULT_MODULE_ID]
        return columns_of_module

    def _step(
        self,
        batch: dict[str, Any],
        group_ids: Sequence[int],
        index: int,
        plan: MiniBatchPlan,
    ) -> None:
        """Makes one optimiser step on this learner's share of the given groups."""
        own = loss_denominator(
            batch[Columns.LOSS_MASK],
            self.config.loss_aggregation,
            plan.max_response_tokens,
        )
        denominator = torch.tensor(float(own))
        sum_over_learners(denominator, "denominator")
        self.scale = LossScale(
            self.config.loss_aggregation, denominator.item(), plan.max_response_tokens
        )
        self._zero_gradients()  # of a step that failed
        self._stats.begin_step()
        self._log_trained(int(batch[columns.RESPONSE_LENS].sum()))
        loss, norm, lr = torch.zeros(()), 0.0, self._learning_rate()
        if self.scale.denominator:
            cuts = cut_rows(
                batch,
                self.config.micro_batch_tokens,
                packing=takes_flat_rows(self._policy),
            )
            loss = self._accumulate(batch, cuts, is_first=index == 0)
            sum_over_learners(loss, "loss")
            norm = self._apply_gradients(lr, bool(torch.isfinite(loss)))
        # Else all learners are without a loss token: AdamW would still follow its
        # momentum on gradients of 0.
        if not (torch.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLossError(
                f"The loss ({loss.item()}) or the gradient norm ({norm}) of mini-batch "
                f"{index + 1} of {len(plan.mini_batches)} in iteration "
                f"{plan.iteration + 1} is not finite; its groups are "
                f"{list(group_ids)}. The weights have not been changed by it. Look at "
                "these groups' rollouts, lower `lr`, set `grad_clip`, or use float32."
            )
        self._num_updates += 1
        self._stats.set("learning_rate", lr)
        self._stats.mean("gradient_norm", norm)
        self._stats.mean("loss/total", loss.item())
        self.metrics.log_value((DEFAULT_MODULE_ID, self.TOTAL_LOSS_KEY), loss, window=1)

    def _log_trained(self, num_tokens: int) -> None:
        """Logs an optimiser step's size by RLlib's names; a timestep is a token."""
        for module_id, name in (
            (ALL_MODULES, NUM_ENV_STEPS_TRAINED),
            (ALL_MODULES, NUM_MODULE_STEPS_TRAINED),
            (DEFAULT_MODULE_ID, NUM_MODULE_STEPS_TRAINED),
        ):
            log = partial(self.metrics.log_value, value=num_tokens)
            log((module_id, name), reduce="sum")
            log(
                (module_id, f"{name}_lifetime"),
                reduce="lifetime_sum",
                with_throughput=True,
            )
        size_key = (DEFAULT_MODULE_ID, MODULE_TRAIN_BATCH_SIZE_MEAN)
        self.metrics.log_value(size_key, num_tokens, reduce="mean")

    def _accumulate(
        self, batch: dict[str, Any], cuts: Sequence[Tensor], *, is_first: bool
    ) -> Tensor:
        """Adds up the gradients of all micro-batches; returns the loss."""
        total = torch.zeros(())
        for _, micro_batch in micro_batches(
            batch, cuts, self._device, packing=takes_flat_rows(self._policy)
        ):
            self._stats.add_passed(micro_batch)
            output = self._forward(micro_batch)
            if is_first:
                add_first_gaps(self._stats, micro_batch, output[Columns.ACTION_LOGP])
            loss = self.compute_losses(
                fwd_out={DEFAULT_MODULE_ID: output},
                batch={DEFAULT_MODULE_ID: micro_batch},
            )[DEFAULT_MODULE_ID]
            self._backward(loss)
            total += loss.detach().cpu()
        return total

    def _forward(self, micro_batch: dict[str, Tensor]) -> dict[str, Tensor]:
        output: dict[str, Tensor] = self.module[DEFAULT_MODULE_ID].forward_train(
            micro_batch, outputs=dict.fromkeys((Columns.ACTION_LOGP, *self.outputs))
        )
        return output

    def _backward(self, loss: Tensor) -> None:
        """Adds one micro-batch's gradients to those of the optimiser step."""
        loss.backward()

    @override(Learner)
    def compute_loss_for_module(
        self,
        *,
        module_id: str,
        config: Any,
        batch: dict[str, Tensor],
        fwd_out: dict[str, Tensor],
    ) -> Tensor:
        """PPO's clipped loss, with a KL and an entropy term where they are asked for.

        Args:
            module_id: of the policy.
            config: the `LLMConfig`, with the module's own settings.
            batch: a micro-batch, with all columns of the train batch.
            fwd_out: `outputs`, `[B, T]` each.

        Returns:
            Scalar, this micro-batch's share of the loss: shares are added over
            micro-batches and learners. `self.scale.aggregate` makes one of `[B, T]`
            losses; a term that is not one of tokens is multiplied by
            `self.scale.share(batch[LOSS_MASK])`.
        """
        logp, mask = fwd_out[Columns.ACTION_LOGP], batch[Columns.LOSS_MASK]
        policy_loss, sums = clipped_policy_loss(
            logp,
            batch.get(columns.OLD_LOGP, batch[Columns.ACTION_LOGP]),
            batch[Columns.ADVANTAGES],
            mask,
            clip_low=config.clip_param,
            clip_high=config.clip_param_high or config.clip_param,
            dual_clip=config.dual_clip,
            ratio_level=config.ratio_level,
            weights=batch.get(columns.CORRECTION_WEIGHT),
            scale=self.scale,
        )
        self._stats.add_loss(sums)
        kl_loss = entropy_loss = torch.zeros_like(policy_loss)
        if config.kl_coeff:
            ref_logp = batch[columns.REF_LOGP]
            kl_k3 = kl_estimate(logp.detach(), ref_logp, "k3")
            self._stats.add_tokens("kl/reference", kl_k3, mask)
            if config.kl_placement == "loss":
                kl = kl_estimate(logp, ref_logp, config.kl_estimator)
                kl_loss = config.kl_coeff * self.scale.aggregate(kl, mask)
        self._stats.add_tokens("entropy", fwd_out[ENTROPY], mask)
        if config.entropy_coeff:
            bonus = self.scale.aggregate(fwd_out[ENTROPY], mask)
            entropy_loss = -config.entropy_coeff * bonus
        terms = {"policy": policy_loss, "kl": kl_loss, "entropy": entropy_loss}
        self.log_loss_terms(terms)
        return torch.stack(list(terms.values())).sum()

    def log_loss_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Logs a micro-batch's shares of the terms of the loss, as `loss/NAME`."""
        for name, value in terms.items():
            self._stats.add_share(f"loss/{name}", value)

    def _apply_gradients(self, lr: float, is_finite: bool) -> float:
        """Makes the optimiser step from what `_backward` added up on all learners.

        Gradients go through RLlib's hooks, `postprocess_gradients` and
        `apply_gradients`, and are gone after.

        Args:
            lr: of this step.
            is_finite: whether the loss was; if not, or if the gradients are not, the
                weights are left as they are.

        Returns:
            The gradients' norm before clipping.
        """
        sum_gradients(self.trained_tensors)
        gradients = {
            self.get_param_ref(tensor): tensor.grad
            for tensor in self.trained_tensors
            if tensor.grad is not None
        }
        norm = torch.nn.utils.get_total_norm(list(gradients.values())).item()
        if is_finite and math.isfinite(norm):
            self._set_optimizer_lr(self.get_optimizer(DEFAULT_MODULE_ID), lr)
            self.apply_gradients(self.postprocess_gradients(gradients))
        self._zero_gradients()
        return norm

    @override(Learner)
    def postprocess_gradients_for_module(
        self,
        *,
        module_id: str,
        config: Any = None,
        module_gradients_dict: dict[Any, Tensor],
    ) -> dict[Any, Tensor]:
        """Clips the gradients of an optimiser step to `grad_clip`, by their norm.

        Args:
            module_id: of the policy.
            config: the `LLMConfig`.
            module_gradients_dict: by tensor of `trained_tensors`, summed over
                micro-batches and learners; changed in place.

        Returns:
            The same.
        """
        for reference, gradient in module_gradients_dict.items():
            self._params[reference].grad = gradient
        if config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(module_gradients_dict, config.grad_clip)
        return module_gradients_dict

    @override(TorchLearner)
    def apply_gradients(self, gradients_dict: dict[Any, Tensor]) -> None:
        """Makes the optimiser step; called once per mini-batch, with finite gradients.

        Args:
            gradients_dict: as `postprocess_gradients` returned them.
        """
        for reference, gradient in gradients_dict.items():
            self._params[reference].grad = gradient
        self._masters.step(self.get_optimizer(DEFAULT_MODULE_ID))

    def _zero_gradients(self) -> None:
        for parameter in (*self._policy.parameters(), *self._masters.copies):
            parameter.grad = None

    def _learning_rate(self) -> float:
        """RLlib's schedule, times a linear warm-up over the first updates."""
        schedule = self._optimizer_lr_schedules[self.get_optimizer(DEFAULT_MODULE_ID)]
        warm_up = self.config.lr_warmup_updates
        share = min(1.0, (self._num_updates + 1) / warm_up) if warm_up else 1.0
        return float(schedule.get_current_value()) * share

    def connector_states(self) -> dict[str, Any]:
        """Returns what the learner connectors remember, by class name."""
        assert self._learner_connector is not None
        states: dict[str, Any] = self._learner_connector.get_state()
        return states

    @override(Learner)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Adds what the learner connectors remember, which RLlib does not save."""
        state: dict[str, Any] = super().get_state(
            components, not_components=not_components, **kwargs
        )
        if self._check_component(_CONNECTORS, components, not_components):
            state[_CONNECTORS] = self.connector_states()
        return state

    @override(Learner)
    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_state` returned."""
        super().set_state(state)
        if _CONNECTORS in state and self._learner_connector is not None:
            self._learner_connector.set_state(state[_CONNECTORS])

    @override(TorchLearner)
    def _get_optimizer_state(self) -> dict[str, Any]:
        """Returns the optimisers' states and how many updates were made.

        As tensors: NumPy, RLlib's choice, has no bfloat16.
        """
        states = {}
        for name, optimizer in self._named_optimizers.items():
            adam_state, masters = self._adam_state(optimizer)
            states[name] = {
                "module_id": self._optimizer_name_to_module[name],
                "state": adam_state,
                _UPDATES_DONE: self._num_updates,
                _MASTERS: masters,
            }
        return states

    def _adam_state(
        self, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Any], list[Tensor]]:
        """AdamW's state over whole tensors, and the masters' copies.

        On the CPU, and not changed by later updates.
        """
        return (
            _copied_to_cpu(optimizer.state_dict()),
            _copied_to_cpu(self._masters.copies),
        )

    def _load_adam_state(
        self,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        masters: Sequence[Tensor],
    ) -> None:
        """Takes over what `_adam_state` returned."""
        optimizer.load_state_dict(state)
        self._masters.load(masters)

    @override(TorchLearner)
    def _set_optimizer_state(self, state: dict[str, Any]) -> None:
        for name, saved in state.items():
            optimizer = self._named_optimizers[name]
            self._load_adam_state(optimizer, saved["state"], saved[_MASTERS])
            # What the configuration says now, which a trial of Tune may have changed.
            for group in optimizer.param_groups:
                group.update(self._optimizer_settings(self.config))
            self._num_updates = saved[_UPDATES_DONE]

    def weight_shards(
        self, max_shard_bytes: int = MAX_SHARD_BYTES, *, device: torch.device = CPU
    ) -> Iterator[dict[str, Tensor]]:
        """Yields the policy's weights under their Hugging Face names, LoRA merged in.

        All learners call it together; the first learner's shards count.
        """
        tensors = merged_tensors(self._policy)
        return cut_into_shards(tensors, max_shard_bytes, device=device)

    def num_weight_bytes(self) -> int:
        """Returns the size of what `weight_shards` yields."""
        return sum(tensor.nbytes for _, tensor in untied_tensors(self._policy))

    def probe_logps(self, sequences: Sequence[Sequence[int]]) -> list[Any]:
        """Log-probabilities as `Generator.logps` gives them; all learners call it.

        Of the weights that generators get: with an adapter, of merged and rounded ones.
        """
        with torch.no_grad(), lora_merged(self._policy):
            return [
                sequence_logps(self._policy, token_ids, self._device)
                for token_ids in sequences
            ]

    def export_policy(self, tokenizer: Any, folder: str) -> None:
        """Writes the policy in Hugging Face layout; all learners call it."""
        if rank() == 0:
            save = save_merged if has_lora(self._policy) else None
            export_policy(self._policy, tokenizer, folder, save)

    @override(TorchLearner)
    def get_parameters(self, module: Any) -> Iterable[torch.nn.Parameter]:  # type: ignore[override]
        """Returns the trainable parameters of the policy."""
        return [p for p in module.unwrapped().policy.parameters() if p.requires_grad]


def _copied_to_cpu(state: Any) -> Any:
    """Copies nested tensors, so that later updates do not change what was saved."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: _copied_to_cpu(value) for name, value in state.items()}
    if isinstance(state, list):
        return [_copied_to_cpu(value) for value in state]
    return state


PURETorchLearner = LLMTorchLearner
"""Its name in earlier checkpoints."""
