"""Learner connector: groups of episodes -> one row per response.

B responses, L columns, T response tokens, S steps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from torch import Tensor

from pure_rllib.envs.text_episode import interleave, own_positions
from pure_rllib.models import columns
from pure_rllib.rollouts.group import SampledResponse


class EpisodesToRows(ConnectorV2):
    """Pads prompts, responses and rewards to tensors with one row per response.

    Reads the episodes' actions, `ACTION_LOGP` outputs and `SampledResponse`.

    Writes `INPUT_IDS` `[B, L]`, `PROMPT_LENS`, `RESPONSE_LENS`, `GROUP_ID`,
    `VERIFIABLE_REWARDS` and `TOTAL_REWARDS` `[B]`, `ACTIONS`, `ACTION_LOGP` and
    `LOSS_MASK` `[B, T]`, `STEP_REWARDS`, `STEP_MASK` and `STEP_ENDS` `[B, S]`;
    `ACTION_POSITIONS` `[B, T]` where the environment's tokens stand within responses.
    These are in `INPUT_IDS` and nowhere else.

    Args:
        mask_truncated: leave responses that ran out of tokens out of the loss.
    """

    def __init__(self, mask_truncated: bool = False):
        super().__init__()
        self.mask_truncated = mask_truncated

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        batch: dict[str, Any],
        episodes: Sequence[SingleAgentEpisode],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Adds the columns to the batch of the default module."""
        data = [SampledResponse.of(episode) for episode in episodes]
        judged = [d.judged for d in data]
        actions = [np.asarray(e.get_actions(), np.int64) for e in episodes]
        logps = [
            np.asarray(e.get_extra_model_outputs(Columns.ACTION_LOGP), np.float32)
            for e in episodes
        ]
        spans = [j.step_spans for j in judged]
        rows = [
            np.concatenate([d.prompt_ids, interleave(a, d.turns.observations)])
            for d, a in zip(data, actions, strict=True)
        ]
        response_lens = torch.tensor([len(a) for a in actions])
        loss_mask = columns.length_mask(response_lens)
        if self.mask_truncated:
            is_truncated = torch.tensor([e.is_truncated for e in episodes])
            loss_mask = loss_mask & ~is_truncated[:, None]
        batch[DEFAULT_MODULE_ID] = {
            columns.INPUT_IDS: _pad(rows),
            columns.PROMPT_LENS: torch.tensor([len(d.prompt_ids) for d in data]),
            columns.RESPONSE_LENS: response_lens,
            columns.GROUP_ID: torch.tensor([d.group_id for d in data]),
            columns.VERIFIABLE_REWARDS: _rewards([j.outcome_reward for j in judged]),
            columns.TOTAL_REWARDS: _rewards([d.total_reward for d in data]),
            columns.STEP_REWARDS: _pad([j.step_rewards for j in judged]),
            columns.STEP_MASK: columns.length_mask(
                torch.tensor([len(s) for s in spans])
            ),
            columns.STEP_ENDS: _pad(
                [s[:, 1] - 1 for s in spans], columns.PADDING[columns.STEP_ENDS]
            ),
            Columns.ACTIONS: _pad(actions),
            Columns.ACTION_LOGP: _pad(logps),
            Columns.LOSS_MASK: loss_mask,
        }
        if any(d.turns.observations for d in data):
            batch[DEFAULT_MODULE_ID][columns.ACTION_POSITIONS] = _pad(
                [
                    len(d.prompt_ids) + own_positions(len(a), d.turns.observations)
                    for d, a in zip(data, actions, strict=True)
                ]
            )
        return batch


def _rewards(known: Sequence[float | None]) -> Tensor:
    return torch.tensor(
        [float("nan") if reward is None else reward for reward in known]
    )


def _pad(arrays: Sequence[np.ndarray], padding: int = 0) -> Tensor:
    """Stacks arrays of different lengths, padding behind them."""
    return torch.nn.utils.rnn.pad_sequence(
        # A copy, because Ray hands out read-only arrays.
        [torch.tensor(a) for a in arrays],
        batch_first=True,
        padding_value=padding,
    )
