"""Learner connectors: log-probabilities under the policy or its reference.

B responses, T response tokens.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from pure_rllib.models import columns
from pure_rllib.models.batching import cut_rows, micro_batches
from pure_rllib.models.flat_attention import takes_flat_rows
from pure_rllib.models.logprobs import LOGP, MEAN_LOGP

_READS = (
    columns.INPUT_IDS,
    columns.PROMPT_LENS,
    columns.ACTION_POSITIONS,
    Columns.ACTIONS,
    Columns.LOSS_MASK,
)


class _ModelLogps(ConnectorV2):
    """Adds what a model thinks of each sampled token.

    Reads the columns of `EpisodesToRows`; writes one of `writes` for each of
    `outputs`, `[B, T]` float32 on the CPU, at the sampling temperature; 0.0 behind
    responses.

    Args:
        micro_batch_tokens: at most so many tokens, padding included, per forward pass.
        outputs: what the model is asked for, see `models.logprobs`.
    """

    writes: ClassVar[Mapping[str, str]]

    def __init__(self, micro_batch_tokens: int, outputs: Sequence[str] = (LOGP,)):
        super().__init__()
        self.micro_batch_tokens = micro_batch_tokens
        self.outputs = outputs

    @abstractmethod
    def _model(self, module: Any) -> AbstractContextManager[Any]:
        """Returns the model of an `LLMRLModule` that is asked."""

    @override(ConnectorV2)
    @torch.no_grad()
    def __call__(
        self, *, rl_module: Any, batch: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        """Adds the columns to the batch of the default module.

        Not only on the loss mask: a response that is left out of the loss still has a
        KL, which counts for the others' baseline where the KL is part of the reward.
        """
        rows, module = batch[DEFAULT_MODULE_ID], rl_module[DEFAULT_MODULE_ID]
        shape = rows[Columns.ACTIONS].shape
        written = {name: torch.zeros(shape) for name in self.outputs}
        whole = {**rows, Columns.LOSS_MASK: columns.response_mask(rows)}
        with self._model(module) as model:
            device = next(model.parameters()).device
            read = [name for name in _READS if name in whole]
            packing = takes_flat_rows(model)
            cuts = cut_rows(whole, self.micro_batch_tokens, packing=packing)
            pieces = list(
                micro_batches(whole, cuts, device, columns=read, packing=packing)
            )
            passes = [
                partial(module.token_outputs, model, one, self.outputs)
                for _, one in pieces
            ]
            run = module.run_passes if model is module.policy else None
            outputs = (run or _one_by_one)(passes)
            for (index, _), found in zip(pieces, outputs, strict=True):
                for name, values in found.items():
                    written[name][index, : values.shape[1]] = values.cpu()
        for name, values in written.items():
            rows[self.writes[name]] = values
        return batch


class ReferenceLogps(_ModelLogps):
    """Adds `REF_LOGP`: what the reference policy thinks of each sampled token."""

    writes: ClassVar = {LOGP: columns.REF_LOGP}

    def _model(self, module: Any) -> AbstractContextManager[Any]:
        reference: AbstractContextManager[Any] = module.reference_policy()
        return reference


class OldLogps(_ModelLogps):
    """Adds `OLD_LOGP`: what the learner's policy thinks before the first update.

    And `OLD_MEAN_LOGP` where it is asked for.

    Where the generator's own log-probabilities are not trusted to be the same, this is
    what PPO's ratio is taken to; see `credit.rollout_correction`.
    """

    writes: ClassVar = {LOGP: columns.OLD_LOGP, MEAN_LOGP: columns.OLD_MEAN_LOGP}

    def _model(self, module: Any) -> AbstractContextManager[Any]:
        return nullcontext(module.policy)


def _one_by_one(passes: Sequence[Callable[[], Any]]) -> Iterator[Any]:
    """Makes each pass when its result is asked for."""
    for one in passes:
        yield one()
