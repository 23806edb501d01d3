"""Having env runners sample, wherever they run and whichever of them fail."""

import logging
import math
from collections import Counter
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

from pure_rllib.data.order import ProblemTicket, shard
from pure_rllib.rollouts.group import Group
from pure_rllib.weight_sync.nccl import (
    BroadcastWeights,
    WeightsNotHeldError,
)
from pure_rllib.weight_sync.object_store import Weights

_LOGGER = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""How often prompts are given to other env runners after theirs was lost."""

FETCH_S = 1.0
"""How long an answer may take to arrive that was given within `sample_timeout_s`."""

RESTART_WAIT_S = 120.0
"""How long a run without any env runner waits for Ray to restart one."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One prompt's turn: which problem, and the id of the group that it makes."""

    ticket: ProblemTicket
    group_id: int


@dataclass(slots=True)
class SampledBatch:
    """Groups of responses from all env runners, in the order of their turns.

    Attributes:
        groups: one per turn.
        seconds: by phase, the slowest env runner's.
        num_resampled: groups that were sampled again after an env runner was lost.
        counts: what step scorers and verifiers counted, see `JUDGE_COUNTS`.
        weights_version: of the policy that was sampled from; the newest where groups of
            lost env runners were sampled again with newer weights.
        logp_gap: the largest of those that env runners found when they took over the
            weights.
    """

    groups: list[Group] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    num_resampled: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    weights_version: int = 0
    logp_gap: float = math.nan

    def extend(self, other: "SampledBatch") -> None:
        """Adds a batch that was sampled after this one."""
        self.groups += other.groups
        for phase, seconds in other.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self.num_resampled += other.num_resampled
        self.counts += other.counts
        self.logp_gap = max(self.logp_gap, other.logp_gap)


@dataclass(slots=True)
class SamplingCall:
    """Turns that env runners were asked for; `collect` waits for their groups.

    Attributes:
        turns: which prompts.
        weights: must stay readable until the call is collected; newer ones where they
            are sent and an env runner has to be sent them again.
        kwargs: further arguments of `LLMEnvRunner.sample`.
        calls: id of the env runner and its values to come, as `sample_apart` returns
            them; none where the local env runner samples, which begins when the call
            is collected.
    """

    turns: list[Turn]
    weights: Weights
    kwargs: dict[str, Any]
    calls: list[tuple[int, list[ray.ObjectRef]]] = field(default_factory=list)


def sample_groups(
    env_runners: EnvRunnerGroup,
    turns: Sequence[Turn],
    weights: Weights,
    **kwargs: Any,
) -> SampledBatch:
    """Samples one group per turn.

    Args:
        env_runners: local or remote.
        turns: which prompts.
        weights: env runners that hold another version take these first.
        **kwargs: further arguments of `LLMEnvRunner.sample`.

    Raises:
        RuntimeError: no env runner is left, or turns failed `MAX_ATTEMPTS` times.
    """
    return collect(env_runners, launch(env_runners, turns, weights, **kwargs))


def launch(
    env_runners: EnvRunnerGroup,
    turns: Sequence[Turn],
    weights: Weights,
    **kwargs: Any,
) -> SamplingCall:
    """Has remote env runners begin; the arguments are those of `sample_groups`."""
    call = SamplingCall(list(turns), weights, kwargs)
    if env_runners.num_remote_env_runners():
        call.calls = _ask(env_runners, call, call.turns)
    return call


def collect(env_runners: EnvRunnerGroup, call: SamplingCall) -> SampledBatch:
    """Waits for a call's groups; asks again for those of lost env runners.

    An env runner that has not answered `sample_timeout_s` after this began to wait is
    killed, so that Ray starts it anew, and counts as lost.

    Raises:
        RuntimeError: see `sample_groups`.
    """
    turns = call.turns
    if env_runners.num_remote_env_runners() == 0:
        runner = env_runners.local_env_runner
        shared = {"weights": call.weights, **call.kwargs}
        return _collect([runner.sample(**_arguments(turns), **shared)], call)
    results, num_resampled, calls = [], 0, call.calls
    for attempt in range(1, MAX_ATTEMPTS + 1):
        results += _answers(env_runners, calls)
        done = {group.group_id for result in results for group in result.groups}
        missing = [turn for turn in turns if turn.group_id not in done]
        if not missing:
            batch = _collect(results, call)
            batch.num_resampled = num_resampled
            return batch
        if attempt < MAX_ATTEMPTS:
            num_resampled += len(missing)
            calls = _ask(env_runners, call, missing)
    raise RuntimeError(
        f"{len(missing)} of {len(turns)} groups could not be sampled in {MAX_ATTEMPTS} "
        "attempts, because env runners were lost each time, or did not answer within "
        "`sample_timeout_s` "
        f"({env_runners._remote_config.sample_timeout_s}); Ray's logs say why. The "
        "last checkpoint is intact: resume from it."
    )


def _arguments(turns: Sequence[Turn]) -> dict[str, Any]:
    return {
        "tickets": [turn.ticket for turn in turns],
        "group_ids": [turn.group_id for turn in turns],
    }


def _ask(
    env_runners: EnvRunnerGroup, call: SamplingCall, turns: Sequence[Turn]
) -> list[tuple[int, list[ray.ObjectRef]]]:
    """Deals turns to the healthy env runners, which begin at once."""
    ids = _ready(env_runners, call)
    if not ids:
        raise RuntimeError(
            "No env runner is alive. Ray's logs say why they died; the last checkpoint "
            "is intact: resume from it."
        )
    # Not by RLlib's `foreach_env_runner` or `foreach_actor`: under these an env runner
    # exits on any error, and a failed verifier or PRM would look like a lost process.
    # It must be raised here, and only a lost process is made up for.
    actors = env_runners._worker_manager.actors()
    shared = {"weights": call.weights, **call.kwargs}
    return [
        (
            i,
            actors[i]
            .sample_apart.options(num_returns=1 + len(share))
            .remote(**_arguments(share), **shared),
        )
        for i, share in zip(ids, shard(turns, len(ids)), strict=True)
        if share
    ]


def _answers(
    env_runners: EnvRunnerGroup, calls: Sequence[tuple[int, list[ray.ObjectRef]]]
) -> list[Any]:
    """Waits for calls; returns what the env runners that live made."""
    samples = _results(env_runners, {i: first for i, (first, *_) in calls})
    for i, (_, *episodes) in calls:
        if i in samples:
            for group, ref in zip(samples[i].groups, episodes, strict=True):
                group.episodes = ref
    return list(samples.values())


def _results(
    env_runners: EnvRunnerGroup, calls: Mapping[int, ray.ObjectRef]
) -> dict[int, Any]:
    """Waits for one value of each env runner; returns those of the ones that live."""
    manager, limit_s = env_runners._worker_manager, _sample_timeout_s(env_runners)
    results, deadline = {}, monotonic() + limit_s
    for i, call in calls.items():
        left_s = max(FETCH_S, deadline - monotonic())
        try:
            results[i] = ray.get(
                call, timeout=left_s if math.isfinite(left_s) else None
            )
        except WeightsNotHeldError:
            continue  # Ray started it anew since it was asked what it holds
        except RayTaskError:
            raise  # its own error, also where that is one of Ray's
        except RayActorError:
            manager.set_actor_state(i, healthy=False)
        except GetTimeoutError:
            _LOGGER.warning(
                "Env runner %d did not answer within `sample_timeout_s` (%g); it is "
                "killed, and its groups are sampled again.",
                i,
                limit_s,
            )
            manager.set_actor_state(i, healthy=False)
            ray.kill(manager.actors()[i], no_restart=False)
    return results


def _sample_timeout_s(env_runners: EnvRunnerGroup) -> float:
    limit_s: float | None = env_runners._remote_config.sample_timeout_s
    return math.inf if limit_s is None else limit_s


def _ready(env_runners: EnvRunnerGroup, call: SamplingCall) -> list[int]:
    """Ids of env runners that live and hold the call's weights, or can read them."""
    ids = _living(env_runners)
    actors = env_runners._worker_manager.actors()
    while ids and isinstance(call.weights.source, BroadcastWeights):
        held = _results(env_runners, {i: actors[i].held_weights.remote() for i in ids})
        if held:
            assert call.weights.source.hand_over is not None, "the driver's own"
            call.weights = call.weights.source.hand_over(actors, held)
            return list(held)
        ids = _living(env_runners)
    return ids


def _living(env_runners: EnvRunnerGroup) -> list[int]:
    """Ids of the healthy env runners; where none is left, waits for a restart."""
    ids = env_runners.healthy_env_runner_ids()
    deadline = monotonic() + RESTART_WAIT_S
    while not ids and monotonic() < deadline:
        # Answers at once that an actor is not available, for as long as it starts.
        ids = env_runners.probe_unhealthy_env_runners()
        if not ids:
            sleep(1.0)
    return list(ids)


def _collect(results: Sequence[Any], call: SamplingCall) -> SampledBatch:
    by_id = {group.group_id: group for result in results for group in result.groups}
    # The one that all others waited for; phases of different env runners do not add up.
    slowest = max(results, key=lambda result: result.seconds["total"])
    return SampledBatch(
        groups=[by_id[turn.group_id] for turn in call.turns],
        seconds=dict(slowest.seconds),
        counts=sum((result.counts for result in results), Counter()),
        weights_version=call.weights.version,
        logp_gap=max(result.logp_gap for result in results),
    )


def episodes_of(group: Group) -> list[Any] | None:
    """Returns a group's episodes; None if the node that held them is lost."""
    episodes = group.episodes
    if not isinstance(episodes, ray.ObjectRef):
        return episodes
    try:
        return list(ray.get(episodes))
    except ObjectLostError:
        return None
