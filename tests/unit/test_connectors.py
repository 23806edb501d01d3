"""Two groups by hand: one with a gold answer, one without; blank and cut responses."""

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.learner.learner_connector_pipeline import (
    LearnerConnectorPipeline,
)
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from pure_rllib.algorithms import PUREConfig
from pure_rllib.connectors.episodes_to_rows import EpisodesToRows
from pure_rllib.connectors.group_advantages import GroupAdvantages
from pure_rllib.connectors.model_logps import OldLogps, ReferenceLogps
from pure_rllib.connectors.normalize_advantages import NormalizeAdvantages
from pure_rllib.connectors.pipeline import prepend_connectors, report_connectors
from pure_rllib.connectors.pure_advantages import PUREAdvantages
from pure_rllib.credit.presets import CreditConfig
from pure_rllib.data.problems import Problem
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.generation.base import Response
from pure_rllib.models import columns
from pure_rllib.models.llm_rl_module import LLMRLModule
from pure_rllib.rewards.base import Verdict
from pure_rllib.rollouts.group import SampledResponse
from pure_rllib.testing import tiny_model_config

NAN = float("nan")


def episode(
    ids: list[int],
    spans: list[tuple[int, int]],
    rewards: list[float],
    *,
    prompt: list[int],
    group_id: int,
    verdict: Verdict | None,
    terminated: bool = True,
    has_visible: bool = True,
) -> SingleAgentEpisode:
    response = Response(
        np.array(ids, np.int64),
        -np.arange(1, len(ids) + 1, dtype=np.float32),
        terminated,
    )
    judged = JudgedResponse(
        "", np.array(spans), np.array(rewards, np.float32), has_visible, verdict
    )
    return SampledResponse(
        group_id=group_id,
        problem=Problem(""),
        prompt_ids=np.array(prompt, np.int64),
        response=response,
        judged=judged,
        weights_version=0,
    ).episode()


def four_episodes() -> list[SingleAgentEpisode]:
    r"""Rows a and b answer a problem with a gold answer, c and d one without.

    ::

        row   tokens                 steps and their rewards      verdict
        a     10 11 | 12 13 | 14     [0 2) 1.0 [2 4) -1 [4 5) .5  correct
        b     15 16                  [0 2) 0.5, out of tokens     incorrect
        c     17                     [0 1) -1.0, blank            no gold answer
        d     18 19 | 20             [0 2) 0.5; 20 is in no step  no gold answer
    """
    known: dict[str, Any] = {"prompt": [1, 2], "group_id": 7}
    unknown: dict[str, Any] = {"prompt": [3], "group_id": 9, "verdict": None}
    return [
        episode(
            [10, 11, 12, 13, 14],
            [(0, 2), (2, 4), (4, 5)],
            [1.0, -1.0, 0.5],
            verdict=Verdict("correct"),
            **known,
        ),
        episode(
            [15, 16],
            [(0, 2)],
            [0.5],
            verdict=Verdict("incorrect"),
            terminated=False,
            **known,
        ),
        episode([17], [(0, 1)], [-1.0], has_visible=False, **unknown),
        episode([18, 19, 20], [(0, 2)], [0.5], **unknown),
    ]


def rows_after(*pieces: ConnectorV2, rl_module: Any = None) -> dict[str, Any]:
    batch: dict[str, Any] = {}
    for piece in pieces:
        batch = piece(rl_module=rl_module, batch=batch, episodes=four_episodes())
    rows: dict[str, Any] = batch[DEFAULT_MODULE_ID]
    return rows


def advantages_after(credit: CreditConfig, **of_rows: Any) -> torch.Tensor:
    rows = rows_after(EpisodesToRows(**of_rows), PUREAdvantages(credit))
    advantages: torch.Tensor = rows[Columns.ADVANTAGES]
    return advantages


def credit(**settings: Any) -> CreditConfig:
    return CreditConfig(
        **{
            "credit_assignment": "strict_min",
            "verifiable_reward_coeff": 2.0,
            "mask_separators": False,
            **settings,
        }
    )


def test_an_episode_holds_one_token_per_timestep() -> None:
    a, b, c, _ = four_episodes()
    # Observation t is the token before action t, the last prompt token for t = 0.
    assert a.get_observations().tolist() == [2, 10, 11, 12, 13, 14]
    assert a.get_actions().tolist() == [10, 11, 12, 13, 14]
    assert a.get_rewards().tolist() == [0.0, 1.0, 0.0, -1.0, 0.5]
    assert (a.is_terminated, a.is_truncated) == (True, False)
    assert (b.is_terminated, b.is_truncated) == (False, True)
    assert len(c) == 1
    assert SampledResponse.of(a).judged.verifiable_reward == 1.0
    assert SampledResponse.of(c).judged.verifiable_reward is None


def test_episodes_to_rows_pads_prompts_responses_and_steps() -> None:
    rows = rows_after(EpisodesToRows())
    assert rows[columns.INPUT_IDS].tolist() == [
        # P  P   t0  t1  t2  t3  t4
        [1, 2, 10, 11, 12, 13, 14],
        [1, 2, 15, 16, 0, 0, 0],
        # P  t0
        [3, 17, 0, 0, 0, 0, 0],
        [3, 18, 19, 20, 0, 0, 0],
    ]
    assert rows[columns.PROMPT_LENS].tolist() == [2, 2, 1, 1]
    assert rows[columns.RESPONSE_LENS].tolist() == [5, 2, 1, 3]
    assert rows[columns.GROUP_ID].tolist() == [7, 7, 9, 9]
    assert rows[Columns.ACTIONS].tolist() == [
        [10, 11, 12, 13, 14],
        [15, 16, 0, 0, 0],
        [17, 0, 0, 0, 0],
        [18, 19, 20, 0, 0],
    ]
    assert rows[Columns.ACTION_LOGP].tolist() == [
        [-1.0, -2.0, -3.0, -4.0, -5.0],
        [-1.0, -2.0, 0.0, 0.0, 0.0],
        [-1.0, 0.0, 0.0, 0.0, 0.0],
        [-1.0, -2.0, -3.0, 0.0, 0.0],
    ]
    assert rows[Columns.LOSS_MASK].sum(1).tolist() == [5, 2, 1, 3]
    assert rows[columns.STEP_REWARDS].tolist() == [
        [1.0, -1.0, 0.5],
        [0.5, 0.0, 0.0],
        [-1.0, 0.0, 0.0],
        [0.5, 0.0, 0.0],
    ]
    assert rows[columns.STEP_MASK].sum(1).tolist() == [3, 1, 1, 1]
    assert rows[columns.STEP_ENDS].tolist() == [
        [1, 3, 4],
        [1, -1, -1],
        [0, -1, -1],
        [1, -1, -1],
    ]
    verifiable = rows[columns.VERIFIABLE_REWARDS]
    assert verifiable[:2].tolist() == [1.0, 0.0]
    assert verifiable[2:].isnan().all()
    for name in (columns.INPUT_IDS, columns.PROMPT_LENS, columns.GROUP_ID):
        assert rows[name].dtype == torch.int64
    for name in (Columns.ACTION_LOGP, columns.STEP_REWARDS):
        assert rows[name].dtype == torch.float32


def test_episodes_to_rows_takes_responses_that_were_cut_out_of_the_loss() -> None:
    rows = rows_after(EpisodesToRows(mask_truncated=True))
    assert rows[Columns.LOSS_MASK].sum(1).tolist() == [5, 0, 1, 3]
    # What it answered stays: it still counts for the others' baseline.
    assert rows[columns.RESPONSE_LENS].tolist() == [5, 2, 1, 3]


def test_process_returns_by_hand() -> None:
    rows = rows_after(EpisodesToRows(), PUREAdvantages(credit()))
    expected = [
        # the minimum, -1, up to the worst step's end, then nothing
        [-1.0, -1.0, -1.0, -1.0, 0.0],
        [0.5, 0.5, 0.0, 0.0, 0.0],
        [-1.0, 0.0, 0.0, 0.0, 0.0],
        # token 2 lies behind the last step
        [0.5, 0.5, 0.0, 0.0, 0.0],
    ]
    assert rows[columns.RETURNS].tolist() == expected
    by_sum = credit(credit_assignment="sum", gamma=0.5)
    summed = rows_after(EpisodesToRows(), PUREAdvantages(by_sum))
    # 1 + (-1)/2 + .5/4 = .625; -1 + .5/2 = -.75; .5
    assert summed[columns.RETURNS][0].tolist() == [0.625, 0.625, -0.75, -0.75, 0.5]


def test_leave_one_out_advantages_by_hand() -> None:
    # Others' reward per token: a: .5/2 = .25, b: -1/5 = -.2, c: .5/2 = .25, d: -1/1.
    # a  steps    -1 - 5 x .25 = -2.25   -1 - 3 x .25 = -1.75   0 - 1 x .25 = -.25
    #    verified 2 x (1 - 0) = 2        on every token
    # b  step     .5 + 2 x .2 = .9       verified 2 x (0 - 1) = -2
    # c  step     -1 - 1 x .25 = -1.25   not verified: nothing
    # d  step     .5 + 2 x 1 = 2.5       token 2 lies behind the last step
    expected = [
        [-0.25, -0.25, 0.25, 0.25, 1.75],
        [-1.1, -1.1, 0.0, 0.0, 0.0],
        [-1.25, 0.0, 0.0, 0.0, 0.0],
        [2.5, 2.5, 0.0, 0.0, 0.0],
    ]
    advantages = advantages_after(credit())
    torch.testing.assert_close(advantages, torch.tensor(expected))


def test_a_response_out_of_the_loss_still_counts_for_the_others() -> None:
    whole = advantages_after(credit())
    masked = advantages_after(credit(), mask_truncated=True)
    assert masked[1].tolist() == [0.0] * 5
    torch.testing.assert_close(masked[[0, 2, 3]], whole[[0, 2, 3]])


def test_kl_still_to_come_is_taken_off_the_advantages() -> None:
    rows = rows_after(EpisodesToRows())
    batch = {DEFAULT_MODULE_ID: rows}
    # One nat per token: the policy likes each token e times as much.
    rows[columns.REF_LOGP] = rows[Columns.ACTION_LOGP] - 1.0
    piece = PUREAdvantages(credit(kl_coeff=0.1, kl_estimator="k1"))
    piece(rl_module=None, batch=batch, episodes=four_episodes())
    # d: 3, 2 and 1 tokens to come, times .1
    torch.testing.assert_close(
        rows[Columns.ADVANTAGES][3],
        torch.tensor([2.5 - 0.3, 2.5 - 0.2, 0.0 - 0.1, 0.0, 0.0]),
    )


def test_reference_logps_cover_every_response_token() -> None:
    module = LLMRLModule(
        observation_space=None,
        action_space=None,
        model_config={"model": tiny_model_config(32), "with_reference": True},
    )
    rows = rows_after(
        EpisodesToRows(mask_truncated=True),
        ReferenceLogps(micro_batch_tokens=8),
        rl_module={DEFAULT_MODULE_ID: module},
    )
    ref_logp = rows[columns.REF_LOGP]
    is_response = torch.arange(5) < rows[columns.RESPONSE_LENS][:, None]
    # Row b is out of the loss, but its KL is part of what the group earned.
    assert (ref_logp[is_response] < 0.0).all()
    assert not ref_logp[~is_response].any()


def test_normalize_advantages_by_hand() -> None:
    rows = {
        Columns.ADVANTAGES: torch.tensor([[1.0, 1.0, 99.0], [3.0, -1.0, 99.0]]),
        Columns.LOSS_MASK: torch.tensor([[True, True, False]] * 2),
    }
    batch = {DEFAULT_MODULE_ID: rows}
    NormalizeAdvantages(style="tokens")(rl_module=None, batch=batch, episodes=[])
    # Mean 4/4 = 1, variance (0 + 0 + 4 + 4)/4 = 2.
    z = 2.0 / 2.0**0.5
    torch.testing.assert_close(
        rows[Columns.ADVANTAGES], torch.tensor([[0.0, 0.0, 0.0], [z, -z, 0.0]])
    )


def test_old_logps_are_the_policys() -> None:
    module = LLMRLModule(
        observation_space=None,
        action_space=None,
        model_config={"model": tiny_model_config(32), "temperature": 0.5},
    )
    rows = rows_after(
        EpisodesToRows(),
        OldLogps(micro_batch_tokens=8),
        rl_module={DEFAULT_MODULE_ID: module},
    )
    whole = {name: column for name, column in rows.items() if len(column)}
    expected = module.forward_train(whole)[Columns.ACTION_LOGP].detach()
    assert not rows[columns.OLD_LOGP].requires_grad
    torch.testing.assert_close(rows[columns.OLD_LOGP], expected)
    # Added last: advantages do not know of a correction.
    pipeline = LearnerConnectorPipeline(connectors=[])
    config = PUREConfig().training(rollout_correction="sequence_mask")
    prepend_connectors(pipeline, config)
    assert type(pipeline.connectors[-1]) is OldLogps


class Doubled(ConnectorV2):
    """A user's own piece."""

    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        batch[DEFAULT_MODULE_ID][Columns.ADVANTAGES] *= 2.0
        return batch


def test_pipeline_order_and_the_users_own_piece_last() -> None:
    config = PUREConfig().training(
        kl_coeff=0.1, normalize_advantages=True, mask_truncated=True
    )
    pipeline = LearnerConnectorPipeline(connectors=[Doubled()])
    prepend_connectors(pipeline, config)
    assert [type(piece).__name__ for piece in pipeline.connectors] == [
        "EpisodesToRows",
        "ReferenceLogps",
        "PUREAdvantages",
        "NormalizeAdvantages",
        "Doubled",
    ]
    config.training(rollout_correction="token_truncated")
    assert [type(piece).__name__ for piece in report_connectors(config).connectors] == [
        "EpisodesToRows",
        "PUREAdvantages",
    ]


def test_a_users_piece_sees_advantages() -> None:
    config = PUREConfig().training(
        credit_assignment="strict_min", mask_separators=False
    )
    ends = []
    for own in ([], [Doubled()]):
        pipeline = LearnerConnectorPipeline(connectors=own)
        prepend_connectors(pipeline, config)
        batch = pipeline(
            rl_module=None,
            batch={},
            episodes=four_episodes(),
            shared_data={},
            metrics=None,
        )
        ends.append(batch[DEFAULT_MODULE_ID][Columns.ADVANTAGES])
    torch.testing.assert_close(ends[1], 2.0 * ends[0])


def test_group_advantages_by_hand() -> None:
    rows = rows_after(EpisodesToRows(), GroupAdvantages("leave_one_out"))
    # a 1 - 0, b 0 - 1 on all their tokens; c and d have no gold answer.
    expected = torch.zeros(4, 5)
    expected[0], expected[1, :2] = 1.0, -1.0
    torch.testing.assert_close(rows[Columns.ADVANTAGES], expected)
    assert rows[columns.RETURNS].tolist() == [[1.0] * 5, *[[0.0] * 5] * 3]
    # The mean is .5, the unbiased deviation 1 / sqrt(2).
    scaled = rows_after(EpisodesToRows(), GroupAdvantages("mean", scale="std"))
    torch.testing.assert_close(
        scaled[Columns.ADVANTAGES], 0.5**0.5 * expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("settings", [{"baseline": "loo"}, {"scale": "none"}])
def test_group_advantages_know_their_names(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"`{name}` \('{value}'\) must be one of"):
        GroupAdvantages(**{"baseline": "mean", **settings})
