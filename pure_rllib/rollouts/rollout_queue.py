"""Batches of groups for the learners, one after the other or one ahead."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from pure_rllib.data.order import ProblemOrder
from pure_rllib.rollouts.group import Group, has_signal
from pure_rllib.rollouts.sampler import (
    SampledBatch,
    SamplingCall,
    Turn,
    collect,
    launch,
    sample_groups,
)
from pure_rllib.weight_sync.object_store import Weights

STOP_PATIENCE_S = 10.0
"""How long a run that ends waits for a batch under way before it ends env runners."""


class RolloutQueue:
    """Samples `num_prompts` groups an iteration, and with a lag the next ones as well.

    With `max_weight_lag` 0 a batch is sampled when it is asked for. With 1 the batch
    after it is begun before it is returned, with the same weights: env runners sample
    it while learners update, and by the time it is learned from, it is one version old.

    The queue has no state that a checkpoint would have to hold. The cursor, which the
    algorithm keeps, counts groups that were returned, and what is under way begins
    there: a restored run asks the same prompts again, none twice and none not at all.

    Args:
        env_runners: local or, with a lag, remote.
        order: of the problems.
        config: the `PUREConfig`.
    """

    def __init__(self, env_runners: EnvRunnerGroup, order: ProblemOrder, config: Any):
        self._env_runners = env_runners
        self._order = order
        self._config = config
        self._pending: SamplingCall | None = None

    def next_batch(self, cursor: int, weights: Weights) -> SampledBatch:
        """Returns the groups of the prompts from `cursor` on, one per prompt.

        Args:
            cursor: prompts asked before; the caller adds the number of groups returned.
            weights: the newest ones. A batch that is begun here may read them until it
                is returned by the next call.

        Raises:
            RuntimeError: see `sample_groups`.
        """
        config = self._config
        call, self._pending = self._pending, None
        if call is None:
            call = launch(
                self._env_runners, self._turns(cursor, config.num_prompts), weights
            )
        batch = collect(self._env_runners, call)
        if config.no_signal_groups == "refill":
            self._refill(batch, cursor, weights)
        if config.max_weight_lag:
            turns = self._turns(cursor + len(batch.groups), config.num_prompts)
            self._pending = launch(self._env_runners, turns, weights)
        return batch

    def _refill(self, batch: SampledBatch, cursor: int, weights: Weights) -> None:
        """Adds groups, sampled with the newest weights, until enough of them teach."""
        config = self._config
        for _ in range(config.max_refill_rounds):
            num_useful = sum(has_signal(g.records, config) for g in batch.groups)
            if num_useful >= config.num_prompts:
                return
            turns = self._turns(
                cursor + len(batch.groups), config.num_prompts - num_useful
            )
            batch.extend(sample_groups(self._env_runners, turns, weights))

    def sample_again(self, group_ids: Sequence[int], weights: Weights) -> list[Group]:
        """Samples groups that were lost after they were returned."""
        # A group's id is the number of its turn.
        turns = [turn for i in group_ids for turn in self._turns(i, 1)]
        return sample_groups(self._env_runners, turns, weights).groups

    def _turns(self, cursor: int, count: int) -> list[Turn]:
        return [
            Turn(ticket, cursor + i)
            for i, ticket in enumerate(self._order.take(cursor, count))
        ]

    def drop(self) -> None:
        """Forgets the batch that is under way: its prompts will be asked again."""
        self._pending = None

    def wait(self, timeout_s: float | None = None) -> list[int]:
        """Waits until the batch that is under way has been sampled.

        Args:
            timeout_s: how long at most; None: without end.

        Returns:
            Ids of the env runners that are still at it.
        """
        if self._pending is None:
            return []
        answers = {first: i for i, (first, *_) in self._pending.calls}
        _, busy = ray.wait(list(answers), num_returns=len(answers), timeout=timeout_s)
        return [answers[answer] for answer in busy]

    def close(self, patience_s: float = STOP_PATIENCE_S) -> None:
        """Ends a batch that is under way, so that nobody waits for it.

        Args:
            patience_s: env runners that need longer are killed: an actor hears of
                nothing, not even of its end, before it is done with a call.
        """
        actors = self._env_runners._worker_manager.actors()
        for i in self.wait(patience_s):
            if i in actors:
                ray.kill(actors[i])
        self._pending = None


def mark_lags(groups: Sequence[Group], version: int) -> None:
    """Notes in each record how many versions the learner is ahead of its weights."""
    for group in groups:
        for record in group.records:
            sampled_with = record.metadata["weights_version"]
            record.metadata["weights_lag"] = version - sampled_with
