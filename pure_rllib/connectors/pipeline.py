"""The order of PURE's learner connectors."""

from dataclasses import replace
from typing import Any

from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2

from pure_rllib.connectors.episodes_to_rows import EpisodesToRows
from pure_rllib.connectors.leave_one_out_advantages import (
    LeaveOneOutAdvantages,
)
from pure_rllib.connectors.model_logps import OldLogps, ReferenceLogps
from pure_rllib.connectors.normalize_advantages import NormalizeAdvantages
from pure_rllib.connectors.process_returns import ProcessReturns
from pure_rllib.learners.rollout_correction import correction_mode


def add_pure_connectors(
    pipeline: ConnectorPipelineV2, config: Any, *, with_model: bool = True
) -> None:
    """Puts PURE's pieces in front of a pipeline.

    Args:
        pipeline: may already hold a user's own pieces, which then see advantages.
        config: the `PUREConfig`.
        with_model: False leaves out the pieces that need weights or other learners, for
            looking at the advantages of a few groups outside a learner.
    """
    credit = config.credit_config()
    if not with_model:
        credit = replace(credit, kl_coeff=0.0)
    pieces = [
        EpisodesToRows(mask_truncated=config.mask_truncated),
        ProcessReturns(
            credit_assignment=credit.credit_assignment,
            credit_temperature=credit.credit_temperature,
            gamma=credit.gamma,
        ),
    ]
    if credit.kl_coeff:
        pieces.append(ReferenceLogps(micro_batch_tokens=config.micro_batch_tokens))
    pieces.append(LeaveOneOutAdvantages(credit=credit))
    if config.normalize_advantages and with_model:
        style = config.normalize_advantages
        pieces.append(NormalizeAdvantages(style="tokens" if style is True else style))
    if with_model and correction_mode(config) != "none":
        pieces.append(OldLogps(micro_batch_tokens=config.micro_batch_tokens))
    for piece in reversed(pieces):
        pipeline.prepend(piece)
