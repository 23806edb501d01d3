"""The order of the learner connectors."""

from typing import Any

from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.connector_v2 import ConnectorV2

from pure_rllib.connectors.episodes_to_rows import EpisodesToRows
from pure_rllib.connectors.model_logps import OldLogps, ReferenceLogps
from pure_rllib.connectors.normalize_advantages import NormalizeAdvantages


def prepend_connectors(pipeline: ConnectorPipelineV2, config: Any) -> None:
    """Puts the pieces of a learner in front of a pipeline.

    Args:
        pipeline: may already hold a user's own pieces, which then see advantages.
        config: the `LLMConfig`, whose `advantage_connectors` are in the middle.
    """
    tokens = config.micro_batch_tokens
    pieces: list[ConnectorV2] = [EpisodesToRows(config.mask_truncated)]
    if config.kl_coeff:
        pieces.append(ReferenceLogps(tokens))
    pieces += config.advantage_connectors()
    if config.normalize_advantages:
        style = config.normalize_advantages
        pieces.append(NormalizeAdvantages("tokens" if style is True else style))
    old_outputs = config.old_outputs()
    if old_outputs:
        pieces.append(OldLogps(tokens, old_outputs))
    for piece in reversed(pieces):
        pipeline.prepend(piece)


def report_connectors(config: Any) -> ConnectorPipelineV2:
    """Returns the pieces that need no weights and no other learners.

    For looking at the advantages of a few groups outside of a learner.
    """
    pieces = [EpisodesToRows(config.mask_truncated), *config.advantage_connectors()]
    return ConnectorPipelineV2(connectors=pieces)
