"""Rollouts as a Weights & Biases table."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pure_rllib.reporting.records import ResponseRecord

if TYPE_CHECKING:
    import wandb

COLUMNS = (
    "iteration",
    "prompt",
    "response",
    "answer",
    "extracted",
    "verdict",
    "step rewards",
    "min reward",
    "tokens",
)


def rollout_table(
    records: Iterable[ResponseRecord], iteration: int, max_rows: int = 64
) -> "wandb.Table":
    """Makes a table with one row per response.

    Args:
        records: responses, in the order of the rows.
        iteration: stands in each row.
        max_rows: rows kept, the first ones.

    Returns:
        A table, to be logged with `run.log({"rollouts": table})`.
    """
    import wandb

    table = wandb.Table(columns=list(COLUMNS), allow_mixed_types=True)
    for index, record in enumerate(records):
        if index == max_rows:
            break
        rewards = record.step_rewards
        table.add_data(
            iteration,
            record.prompt,
            record.response_text,
            record.answer,
            record.extracted_answer,
            record.outcome,
            None if rewards is None else " ".join(f"{r:+.2f}" for r in rewards),
            record.min_reward,
            record.num_tokens,
        )
    return table
