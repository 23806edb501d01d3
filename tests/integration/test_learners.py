"""Many learners, real actors: equal updates, and no silence when one of them fails."""

import os
import signal
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from ray.rllib.connectors.connector_v2 import ConnectorV2

from pure_rllib.algorithms import PUREConfig, placement
from pure_rllib.distributed.calls import LearnerLostError, on_learners
from pure_rllib.distributed.collectives import CollectiveTimeoutError, rank
from pure_rllib.learners.delivery import deliver
from pure_rllib.learners.train_batch import MiniBatchPlan
from pure_rllib.rollouts.group import Group
from tests.integration.conftest import built, weights

Weights = dict[str, np.ndarray]
Deal = Callable[[Any, Sequence[Group], MiniBatchPlan], None]
SMALL_BUDGET = 64


def evenly(algo: Any, groups: Sequence[Group], plan: MiniBatchPlan) -> None:
    deliver(algo.learner_group, groups, plan.mini_batches, lambda ids: [])


def one_to_the_first(algo: Any, groups: Sequence[Group], plan: MiniBatchPlan) -> None:
    """One group to the first learner, all others to the second.

    The groups are in the object store: they were delivered to a remote learner before.
    """
    shares = [groups[:1], groups[1:]]
    on_learners(
        algo.learner_group,
        lambda learner, share: learner.fetch_groups(share),
        [{group.group_id: group.episodes for group in share} for share in shares],
    )


def three_updates(
    config: PUREConfig, num_learners: int, deal: Deal, groups: list[Group]
) -> tuple[Weights, list[Group]]:
    """The weights after three optimiser steps; groups are sampled if none are given."""
    config = config.copy(copy_frozen=False).learners(
        num_learners=num_learners, num_cpus_per_learner=0.5
    )
    with built(config) as algo:
        groups = groups or algo._sample_again(range(algo.config.num_prompts))
        ids = [group.group_id for group in groups]
        plan = MiniBatchPlan(
            tuple((i, j) for i, j in zip(ids[::2], ids[1::2], strict=True)), 0, 24
        )
        deal(algo, groups, plan)
        algo._update(plan)
        return weights(algo), groups


@pytest.mark.slow
def test_the_number_of_learners_does_not_change_updates(
    tiny_config: PUREConfig,
) -> None:
    tiny_config.env_runners(num_prompts=6)
    tiny_config.training(normalize_advantages=True, kl_coeff=0.1, kl_placement="loss")
    expected, groups = three_updates(tiny_config, 0, evenly, [])
    alone, _ = three_updates(tiny_config, 1, evenly, groups)
    # Many micro-batches here, few or none there: two of the three mini-batches have
    # no group of the first learner.
    tiny_config.training(micro_batch_tokens=SMALL_BUDGET)
    unequal, _ = three_updates(tiny_config, 2, one_to_the_first, groups)
    for name, array in expected.items():
        np.testing.assert_allclose(alone[name], array, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(unequal[name], array, atol=1e-5, err_msg=name)


class FailsOnTheSecond(ConnectorV2):
    """A user's piece with a bug that shows on one learner only."""

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        if dist.get_rank() == 1:
            raise KeyError("the user's own bug")
        return batch


@pytest.mark.slow
def test_what_one_learner_raises_is_raised_within_seconds(
    tiny_config: PUREConfig,
) -> None:
    tiny_config.learners(num_learners=2, num_cpus_per_learner=0.5)
    tiny_config.training(learner_connector=lambda *_: FailsOnTheSecond())
    with built(tiny_config) as algo:
        start = monotonic()
        with pytest.raises(KeyError, match="the user's own bug"):
            algo.train()
        assert monotonic() - start < 20.0
        # The first one waited for the second in vain: it is not left behind.
        with pytest.raises(LearnerLostError):
            algo.train()


@pytest.mark.slow
def test_learners_without_room_are_an_error(
    tiny_config: PUREConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "PLACEMENT_TIMEOUT_S", 1.0)
    tiny_config.env_runners(num_prompts=9).learners(num_learners=9)
    with pytest.raises(RuntimeError, match=r"`num_learners` \(9\), with {'CPU': 1} e"):
        tiny_config.build_algo()


def stop_in(algo: Any, method: str) -> int:
    """Has the second learner stop in a method, as by a debugger or a dead disk.

    Returns:
        Its process id.
    """

    def plant(learner: Any) -> int:
        own = getattr(learner, method)

        def stopping(*args: Any, **kwargs: Any) -> Any:
            os.kill(os.getpid(), signal.SIGSTOP)
            return own(*args, **kwargs)

        if rank() == 1:
            setattr(learner, method, stopping)
        return os.getpid()

    return on_learners(algo.learner_group, plant)[1]


WAITED = r'learner 0 waited for \d+ s in phase "{}"; learner 1 gave no answer'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "method", "told"),
    [
        (None, "update", WAITED.format("row sizes")),
        (None, "_backward", WAITED.format("loss")),
        # After the last collective: nobody but the driver waits.
        (None, "after_gradient_based_update", ": learner 1 gave no answer for"),
        (2, "_backward", WAITED.format("(backward|optimizer step)")),
        (3, "_forward", WAITED.format("(forward|backward)")),
        (3, "_apply_gradients", WAITED.format("optimizer step")),
    ],
)
def test_a_stopped_learner_ends_the_run_with_phase_and_rank(
    tiny_config: PUREConfig, stage: int | None, method: str, told: str
) -> None:
    if stage is not None:
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    tiny_config.learners(
        num_learners=2,
        num_cpus_per_learner=0.5,
        collective_timeout_s=6.0,
        deepspeed=stage and {"stage": stage},
    )
    with built(tiny_config) as algo:
        algo.train()
        pid = stop_in(algo, method)
        start = monotonic()
        try:
            with pytest.raises(CollectiveTimeoutError, match=told) as raised:
                algo.train()
            assert "`collective_timeout_s` (6)" in str(raised.value)
            assert monotonic() - start < 20.0
        finally:
            deadline = monotonic() + 30.0
            while _is_alive(pid) and monotonic() < deadline:
                sleep(0.2)
            gone = not _is_alive(pid)
            if not gone:
                os.kill(pid, signal.SIGKILL)
        assert gone, "the stopped process was left behind"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
