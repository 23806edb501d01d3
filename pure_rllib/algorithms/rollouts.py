"""Groups of responses as the loss saw them, for reports."""

from collections.abc import Sequence
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from pure_rllib.models import columns
from pure_rllib.reporting.records import ResponseRecord
from pure_rllib.rollouts.group import Group, SampledResponse
from pure_rllib.rollouts.sampler import episodes_of


def records_with_advantages(
    groups: Sequence[Group], pipeline: Any, tokenizer: Any
) -> list[list[ResponseRecord]]:
    """Makes records of the groups' responses, with returns and advantages.

    Args:
        groups: whole groups; those whose episodes are lost are left out.
        pipeline: learner connectors from episodes to advantages.
        tokenizer: decodes the tokens.
    """
    found = [
        (group, episodes)
        for group in groups
        if (episodes := episodes_of(group)) is not None
    ]
    if not found:
        return []
    episodes = [episode for _, group in found for episode in group]
    batch = pipeline(
        rl_module=None, batch={}, episodes=episodes, shared_data={}, metrics=None
    )
    rows = batch[DEFAULT_MODULE_ID]
    returns, advantages = rows[columns.RETURNS], rows[Columns.ADVANTAGES]
    filled, row = [], 0
    for group, episodes in found:
        records = []
        for episode, numbers in zip(episodes, group.records, strict=True):
            sampled, size = SampledResponse.of(episode), numbers.num_tokens
            records.append(
                sampled.record(
                    numbers,
                    response_tokens=tokenizer.batch_decode(
                        [[int(i)] for i in sampled.response.token_ids]
                    ),
                    returns=returns[row, :size].tolist(),
                    advantages=advantages[row, :size].tolist(),
                )
            )
            row += 1
        filled.append(records)
    return filled
