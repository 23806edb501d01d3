"""From a judged response to the record that metrics and reports are made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pure_rllib.credit.returns import step_credits
from pure_rllib.credit.steps import StepSplitter
from pure_rllib.credit.text_metrics import reflection
from pure_rllib.data.problems import Problem
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.generation.base import Response
from pure_rllib.reporting.records import ResponseRecord

# Rewards that differ by less are equal: a PRM's last digits hang on the batch.
_DECIMALS = 5


def make_record(
    problem: Problem,
    response: Response,
    judged: JudgedResponse,
    *,
    group_id: int,
    num_prompt_tokens: int,
    splitter: StepSplitter,
    total_reward: float,
    weights_version: int,
    repetition: float,
    hacks: frozenset[str],
) -> ResponseRecord:
    """Gathers what is known of a response before it is learned from.

    Args:
        problem: what was asked.
        response: what was sampled.
        judged: its steps and rewards.
        group_id: of its group.
        num_prompt_tokens: template included.
        splitter: counts separators.
        total_reward: see `total_rewards`.
        weights_version: of the policy that was sampled from.
        repetition: of its text.
        hacks: marks of `rewards.hack_flags.HACKS`.
    """
    verdict = judged.verdict
    return ResponseRecord(
        group_id=str(group_id),
        prompt=problem.prompt,
        answer=problem.answer,
        response_text=judged.text,
        response_tokens=None,
        token_ids=response.token_ids,
        step_spans=judged.step_spans,
        step_rewards=judged.step_rewards,
        verifiable_reward=judged.verifiable_reward,
        outcome=None if verdict is None else verdict.outcome,
        extracted_answer=None if verdict is None else verdict.answer,
        terminated=response.terminated,
        num_separators=splitter.num_separators(response.token_ids),
        has_visible=judged.has_visible,
        repetition=repetition,
        hacks=sorted(hacks),
        reflection=reflection(judged.text),
        total_reward=total_reward,
        num_prompt_tokens=num_prompt_tokens,
        metadata={
            "problem_id": problem.problem_id,
            "weights_version": weights_version,
        },
    )


def has_signal(records: Sequence[ResponseRecord], config: Any) -> bool:
    """Tells whether the responses to one prompt differ in what the run rewards.

    Args:
        records: of a group.
        config: the `PUREConfig`; a reward stream whose coefficient is 0 does not count.
            Where steps end does, unless the baseline is that for whole responses: the
            others take something off for each token or step.
    """
    earned = {
        (
            r.verifiable_reward if config.verifiable_reward_coeff else None,
            tuple(np.round(np.asarray(r.step_rewards), _DECIMALS).tolist())
            if config.process_reward_coeff
            else None,
            tuple(np.asarray(r.step_spans)[:, 1].tolist())
            if config.process_reward_coeff and config.baseline != "response"
            else None,
        )
        for r in records
    }
    return len(earned) > 1


def total_rewards(judged: Sequence[JudgedResponse], config: Any) -> list[float]:
    """Each response's credited process and verifiable rewards, weighted and added."""
    rewards = [torch.from_numpy(j.step_rewards) for j in judged]
    sizes = torch.tensor([len(r) for r in rewards])
    credits = step_credits(
        torch.nn.utils.rnn.pad_sequence(rewards, batch_first=True),
        torch.arange(int(sizes.max()))[None] < sizes[:, None],
        credit_assignment=config.credit_assignment,
        credit_temperature=config.credit_temperature,
    )
    process = (config.process_reward_coeff * credits.sum(dim=1)).tolist()
    return [
        total + config.verifiable_reward_coeff * (j.verifiable_reward or 0.0)
        for total, j in zip(process, judged, strict=True)
    ]
