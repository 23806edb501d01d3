"""Names of the train batch's columns beside RLlib's own.

B rows (one per response), L columns of a row, T response tokens, S steps.
From RLlib, all `[B, T]`: `Columns.ACTIONS`, `ACTION_LOGP`, `LOSS_MASK`, `ADVANTAGES`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

INPUT_IDS = "input_ids"
"""`[B, L]` int64: prompt, then response with the environment's tokens, padding."""

PROMPT_LENS = "prompt_lens"
"""`[B]` int64: tokens of the prompt."""

RESPONSE_LENS = "response_lens"
"""`[B]` int64: the response's own tokens, EOS included."""

ACTION_POSITIONS = "action_positions"
"""`[B, T]` int64: columns of `INPUT_IDS` in which a response's own tokens stand, where
the environment's stand between them; 0 behind responses. Every other `[B, T]` is of own
tokens only. Absent where no response of the batch has tokens of the environment."""

GROUP_ID = "group_id"
"""`[B]` int64: the same for all responses to one prompt."""

STEP_REWARDS = "step_rewards"
"""`[B, S]` float32: process rewards; 0.0 off mask."""

STEP_MASK = "step_mask"
"""`[B, S]` bool: True on real steps."""

STEP_ENDS = "step_ends"
"""`[B, S]` int64: position of the step's last token in the response; -1 off mask."""

VERIFIABLE_REWARDS = "verifiable_rewards"
"""`[B]` float32: 1.0, 0.0, or NaN without a gold answer."""

TOTAL_REWARDS = "total_rewards"
"""`[B]` float32: what the whole response earned, see `LLMConfig.total_rewards`."""

RETURNS = "returns"
"""`[B, T]` float32: (weighted) rewards from a token on, before any baseline."""

OLD_LOGP = "old_logp"
"""`[B, T]` float32: log-probabilities under the policy before the iteration's first
update; 0.0 behind responses. Absent where those of the generator stand for them."""

OLD_MEAN_LOGP = "old_mean_logp"
"""`[B, T]` float32: mean log-probability over the vocabulary under the same policy; 0.0
behind responses. Absent unless a loss reads it."""

CORRECTION_WEIGHT = "correction_weight"
"""`[B, T]` float32 >= 0: factors of the tokens' losses; 0.0 off mask. May be absent."""

REF_LOGP = "ref_logp"
"""`[B, T]` float32: log-probabilities under the reference policy; 0.0 off mask."""

FLAT_ROW = "flat_row"
"""The micro-batch's rows as one `FlatRow`, no tensor. Absent where rows are padded."""


PADDING = {STEP_ENDS: -1}
"""What stands behind a row's items in a column, where that is not 0."""


def row_lens(rows: Mapping[str, Tensor]) -> Tensor:
    """Returns `[B]` int64: tokens of prompts and responses, the environment's included.

    Args:
        rows: reads `PROMPT_LENS`, `RESPONSE_LENS` and `ACTION_POSITIONS`.
    """
    if ACTION_POSITIONS in rows:
        # A response ends with a token of its own.
        return rows[ACTION_POSITIONS].amax(dim=1) + 1
    return rows[PROMPT_LENS] + rows[RESPONSE_LENS]


def plain_positions(rows: Mapping[str, Tensor]) -> Tensor:
    """Returns `ACTION_POSITIONS` of rows without tokens of the environment.

    Args:
        rows: reads `PROMPT_LENS`, `RESPONSE_LENS` and RLlib's `Columns.ACTIONS`.
    """
    times = torch.arange(rows["actions"].shape[1])
    is_own = times < rows[RESPONSE_LENS][:, None]
    return (rows[PROMPT_LENS][:, None] + times) * is_own


def response_mask(rows: Mapping[str, Tensor]) -> Tensor:
    """Returns `[B, T]` bool, True on all response tokens, the loss's or not.

    Args:
        rows: reads `RESPONSE_LENS`; the longest response is T.
    """
    return length_mask(rows[RESPONSE_LENS])


def length_mask(lengths: Tensor) -> Tensor:
    """Returns `[B, longest]` bool: True where a row of `[B]` lengths has an item."""
    return torch.arange(int(lengths.max()))[None] < lengths[:, None]
