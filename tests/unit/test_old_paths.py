"""What earlier checkpoints pickle is found where they look for it."""

import importlib

import pytest

from pure_rllib.old_paths import MOVED


@pytest.mark.parametrize("module", MOVED)
def test_every_old_module_is_importable(module):
    importlib.import_module(f"pure_rllib.{module}")


@pytest.mark.parametrize(
    "name",
    [
        "envs.generative_prm.GenerativeLoader",
        "envs.process_rewards.DeferredScorer",
        "envs.process_rewards._random_prm",
        "rewards.generative_prm.GenerativePRM",
        "rewards.generative_prm.ModelJudge",
        "rewards.generative_prm.VoteJudge",
        "rewards.hybrid_verifier.HybridVerifier",
        "rewards.minimum_scorer.MinimumScorer",
        "rewards.prm_formats.PRMFormat",
        "rewards.prm_input.PRMInputBuilder",
        "rewards.prm_text.PRMTextBuilder",
        "rewards.process_reward.ProcessRewardModel",
        "rewards.row_scorer.RowScorer",
        "rewards.score_adjustment.ScoreAdjustment",
        "rewards.verifier.MathVerifier",
    ],
)
def test_classes_of_rewards_keep_their_old_names(name):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(f"pure_rllib.{module}"), attribute)
