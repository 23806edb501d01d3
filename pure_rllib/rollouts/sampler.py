"""Having env runners sample, wherever they run and whichever of them fail."""

import logging
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
)
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from pure_rllib.data.order import ProblemOrder, ProblemTicket, shard
from pure_rllib.rollouts.group import Group, has_signal
from pure_rllib.weight_sync.handle import Weights, WeightsNotHeldError
from pure_rllib.weight_sync.sync import WeightSync

_LOGGER = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""How often prompts are given to other env runners after theirs was lost."""

FETCH_S = 1.0
"""How long an answer may take to arrive that was given within `sample_timeout_s`."""

RESTART_WAIT_S = 120.0
"""How long a run without any env runner waits for Ray to restart one."""

STOP_PATIENCE_S = 10.0
"""How long a run that ends waits for batches under way before it ends env runners."""


@dataclass(slots=True)
class SampledBatch:
    """Groups of responses from all env runners, in the order of their prompts.

    Attributes:
        groups: one per prompt.
        seconds: by phase, the slowest env runner's.
        num_resampled: groups that were sampled again after an env runner was lost.
        counts: what step scorers and verifiers counted, see `JUDGE_COUNTS`.
        weights_version: of the policy that was sampled from; the newest where groups of
            lost env runners were sampled again with newer weights.
        logp_gap: the largest of those that env runners found when they took over the
            weights.
        metrics: of each env runner's samples, see `RunnerSample`.
    """

    groups: list[Group] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    num_resampled: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    weights_version: int = 0
    logp_gap: float = math.nan
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def extend(self, other: "SampledBatch") -> None:
        """Adds a batch that was sampled after this one."""
        self.groups += other.groups
        for phase, seconds in other.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self.num_resampled += other.num_resampled
        self.counts += other.counts
        self.logp_gap = max(self.logp_gap, other.logp_gap)
        self.metrics += other.metrics


@dataclass(slots=True)
class SamplingCall:
    """Groups that env runners were asked for.

    Attributes:
        prompts: which problems, by the ids of the groups that they make.
        weights: of the policy to sample from.
        kwargs: further arguments of `LLMEnvRunner.sample`.
        answers: id of the env runner and its values to come, as `sample_apart` returns
            them; none where the local env runner samples, which begins when the groups
            are collected.
    """

    prompts: Mapping[int, ProblemTicket]
    weights: Weights
    kwargs: dict[str, Any]
    answers: list[tuple[int, list[ray.ObjectRef]]] = field(default_factory=list)


class Sampler:
    """Samples `num_prompts` groups an iteration, and with a lag the next ones as well.

    With `max_weight_lag` 0 a batch is sampled when it is asked for. With k > 0 the k
    batches after it are under way before it is returned: env runners sample while
    learners update, one that is done with its part of a batch goes on with the next,
    and by the time a batch is learned from, its weights are at most k versions old.
    Batches are returned in the order of their prompts, and all of them are.

    There is no state that a checkpoint would have to hold. The cursor, which the
    algorithm keeps, counts groups that were returned, and what is under way begins
    there: a restored run asks the same prompts again, none twice and none not at all.

    Env runners that are lost while they sample, or do not answer within
    `sample_timeout_s`, are made up for: others sample their groups. What an env runner
    raises is raised here.

    Args:
        env_runners: local or, with a lag, remote.
        sync: sees to it that env runners can take over weights.
        order: of the problems; may be replaced after `drop`.
        config: the algorithm's.
    """

    def __init__(
        self,
        env_runners: EnvRunnerGroup,
        sync: WeightSync,
        order: ProblemOrder,
        config: Any,
    ):
        self._env_runners = env_runners
        self._sync = sync
        self.order = order
        self._config = config
        self._pending: deque[SamplingCall] = deque()  # in the order of their prompts

    def next_batch(self, cursor: int, weights: Weights) -> SampledBatch:
        """Returns the groups of the prompts from `cursor` on, one per prompt.

        Args:
            cursor: prompts asked before; the caller adds the number of groups returned.
            weights: the newest ones. A batch that is begun here may read them until it
                is returned.

        Raises:
            RuntimeError: see `sample`.
        """
        config = self._config
        if not self._pending:
            self._begin(cursor, weights)
        batch = self._collect(self._pending.popleft())
        if config.no_signal_groups == "refill":
            self._refill(batch, cursor, weights)
        ahead = cursor + len(batch.groups)
        while len(self._pending) < config.max_weight_lag:
            self._begin(ahead + len(self._pending) * config.num_prompts, weights)
        return batch

    def _begin(self, cursor: int, weights: Weights) -> None:
        """Begins the batch of the prompts from `cursor` on, behind those under way."""
        prompts = self._prompts(cursor, self._config.num_prompts)
        self._pending.append(self._launch(prompts, weights))

    def _refill(self, batch: SampledBatch, cursor: int, weights: Weights) -> None:
        """Adds groups, sampled with the newest weights, until enough of them teach."""
        config = self._config
        for _ in range(config.max_refill_rounds):
            num_useful = sum(has_signal(g.records, config) for g in batch.groups)
            if num_useful >= config.num_prompts:
                return
            prompts = self._prompts(
                cursor + len(batch.groups), config.num_prompts - num_useful
            )
            batch.extend(self.sample(prompts, weights))

    def sample_again(self, group_ids: Sequence[int], weights: Weights) -> list[Group]:
        """Samples groups that were lost after they were returned."""
        prompts: dict[int, ProblemTicket] = {}
        for i in group_ids:
            prompts |= self._prompts(i, 1)
        return self.sample(prompts, weights).groups

    def _prompts(self, cursor: int, count: int) -> dict[int, ProblemTicket]:
        """The prompts from `cursor` on; a group's id is its prompt's number."""
        return dict(enumerate(self.order.take(cursor, count), start=cursor))

    def sample(
        self, prompts: Mapping[int, ProblemTicket], weights: Weights, **kwargs: Any
    ) -> SampledBatch:
        """Samples one group per prompt.

        Args:
            prompts: which problems, by the ids of the groups.
            weights: env runners that hold another version take these first.
            **kwargs: further arguments of `LLMEnvRunner.sample`.

        Raises:
            RuntimeError: no env runner is left, or prompts failed `MAX_ATTEMPTS` times.
        """
        return self._collect(self._launch(prompts, weights, **kwargs))

    def drop(self) -> None:
        """Forgets the batches that are under way: their prompts will be asked again."""
        self._pending.clear()

    def wait(self, timeout_s: float | None = None) -> list[int]:
        """Waits until the batches that are under way have been sampled.

        Args:
            timeout_s: how long at most; None: without end.

        Returns:
            Ids of the env runners that are still at it.
        """
        answers = {a: i for call in self._pending for i, (a, *_) in call.answers}
        if not answers:
            return []
        _, busy = ray.wait(list(answers), num_returns=len(answers), timeout=timeout_s)
        return sorted({answers[answer] for answer in busy})

    def close(self, patience_s: float = STOP_PATIENCE_S) -> None:
        """Ends batches that are under way, so that nobody waits for them.

        Args:
            patience_s: env runners that need longer are killed: an actor hears of
                nothing, not even of its end, before it is done with a call.
        """
        for i in self.wait(patience_s):
            if i in self._actors():
                ray.kill(self._actors()[i])
        self.drop()

    def _actors(self) -> dict[int, Any]:
        actors: dict[int, Any] = self._env_runners._worker_manager.actors()
        return actors

    def _launch(
        self, prompts: Mapping[int, ProblemTicket], weights: Weights, **kwargs: Any
    ) -> SamplingCall:
        """Has remote env runners begin."""
        call = SamplingCall(prompts, weights, kwargs)
        if self._env_runners.num_remote_env_runners():
            self._ask(call, prompts)
        return call

    def _collect(self, call: SamplingCall) -> SampledBatch:
        """Waits for a call's groups; asks again for those of lost env runners."""
        if self._env_runners.num_remote_env_runners() == 0:
            runner = self._env_runners.local_env_runner
            return _batch([runner.sample(**_arguments(call, call.prompts))], call)
        results: list[Any] = []
        num_resampled = 0
        for attempt in range(1, MAX_ATTEMPTS + 1):
            results += self._answers(call)
            done = {group.group_id for result in results for group in result.groups}
            missing = {i: p for i, p in call.prompts.items() if i not in done}
            if not missing:
                batch = _batch(results, call)
                batch.num_resampled = num_resampled
                return batch
            if attempt < MAX_ATTEMPTS:
                num_resampled += len(missing)
                self._ask(call, missing)
        raise RuntimeError(
            f"{len(missing)} of {len(call.prompts)} groups could not be sampled in "
            f"{MAX_ATTEMPTS} attempts, because env runners were lost each time, or did "
            "not answer within `sample_timeout_s` "
            f"({self._env_runners._remote_config.sample_timeout_s}); Ray's logs say "
            "why. The last checkpoint is intact: resume from it."
        )

    def _ask(self, call: SamplingCall, prompts: Mapping[int, ProblemTicket]) -> None:
        """Deals prompts to the healthy env runners, which begin at once."""
        ids: list[int] = []
        while not ids:
            living = self._living()
            call.weights, ids = self._sync.before_launch(
                {i: self._actors()[i] for i in living}, call.weights, self._wait_for
            )
        # Not by RLlib's `foreach_env_runner` or `foreach_actor`: under these an env
        # runner exits on any error, and a failed verifier or PRM would look like a lost
        # process. It must be raised here, and only a lost process is made up for.
        call.answers = [
            (
                i,
                self._actors()[i]
                .sample_apart.options(num_returns=1 + len(share))
                .remote(**_arguments(call, dict(share))),
            )
            for i, share in zip(ids, shard([*prompts.items()], len(ids)), strict=True)
            if share
        ]

    def _answers(self, call: SamplingCall) -> list[Any]:
        """Waits for a call; returns what the env runners that live made."""
        samples = self._wait_for({i: first for i, (first, *_) in call.answers})
        for i, (_, *episodes) in call.answers:
            if i in samples:
                for group, ref in zip(samples[i].groups, episodes, strict=True):
                    group.episodes = ref
        return list(samples.values())

    def _wait_for(self, answers: Mapping[int, ray.ObjectRef]) -> dict[int, Any]:
        """Waits for one value of each env runner; returns those of ones that live.

        An env runner that has not answered `sample_timeout_s` after this began is
        killed, so that Ray starts it anew, and counts as lost.
        """
        manager = self._env_runners._worker_manager
        asked: float | None = self._env_runners._remote_config.sample_timeout_s
        limit_s = math.inf if asked is None else asked
        values, deadline = {}, monotonic() + limit_s
        for i, answer in answers.items():
            left_s = max(FETCH_S, deadline - monotonic())
            try:
                values[i] = ray.get(
                    answer, timeout=left_s if math.isfinite(left_s) else None
                )
            except WeightsNotHeldError:
                continue  # Ray started it anew since it was seen to hold them
            except RayTaskError:
                raise  # its own error, also where that is one of Ray's
            except RayActorError:
                manager.set_actor_state(i, healthy=False)
            except GetTimeoutError:
                _LOGGER.warning(
                    "Env runner %d did not answer within `sample_timeout_s` (%g); it "
                    "is killed, and its groups are sampled again.",
                    i,
                    limit_s,
                )
                manager.set_actor_state(i, healthy=False)
                ray.kill(self._actors()[i], no_restart=False)
        return values

    def _living(self) -> list[int]:
        """Ids of the healthy env runners; where none is left, waits for a restart."""
        ids = self._env_runners.healthy_env_runner_ids()
        deadline = monotonic() + RESTART_WAIT_S
        while not ids and monotonic() < deadline:
            # Answers at once that an actor is not available, for as long as it starts.
            ids = self._env_runners.probe_unhealthy_env_runners()
            if not ids:
                sleep(1.0)
        if not ids:
            raise RuntimeError(
                "No env runner is alive. Ray's logs say why they died; the last "
                "checkpoint is intact: resume from it."
            )
        return list(ids)


def _arguments(
    call: SamplingCall, prompts: Mapping[int, ProblemTicket]
) -> dict[str, Any]:
    """What an env runner is called with that samples some of a call's prompts."""
    return {
        "tickets": list(prompts.values()),
        "group_ids": list(prompts),
        "weights": call.weights,
        **call.kwargs,
    }


def _batch(results: Sequence[Any], call: SamplingCall) -> SampledBatch:
    by_id = {group.group_id: group for result in results for group in result.groups}
    # The one that all others waited for; phases of different env runners do not add up.
    slowest = max(results, key=lambda result: result.seconds["total"])
    return SampledBatch(
        groups=[by_id[i] for i in call.prompts],
        seconds=dict(slowest.seconds),
        counts=sum((result.counts for result in results), Counter()),
        weights_version=call.weights.version,
        logp_gap=max(result.logp_gap for result in results),
        metrics=[result.metrics for result in results],
    )


def mark_lags(groups: Sequence[Group], version: int) -> None:
    """Notes in each record how many versions the learner is ahead of its weights."""
    for group in groups:
        for record in group.records:
            sampled_with = record.metadata["weights_version"]
            record.metadata["weights_lag"] = version - sampled_with


def episodes_of(group: Group) -> list[Any] | None:
    """Returns a group's episodes; None if the node that held them is lost."""
    episodes = group.episodes
    if not isinstance(episodes, ray.ObjectRef):
        return episodes
    try:
        return list(ray.get(episodes))
    except ObjectLostError:
        return None
