"""Bringing groups from where they were sampled to the learners, before an update.

An update has two phases. First every learner fetches the groups that it is dealt, and
says which of them are lost; lost ones are sampled again and all are dealt anew. Only
when every learner holds its groups does the update with its collectives begin: there, a
learner that stopped for a missing group would leave the others waiting.
"""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError
from ray.rllib.core.learner.learner_group import LearnerGroup

from pure_rllib.distributed.calls import on_learners
from pure_rllib.learners.train_batch import deal_by_tokens
from pure_rllib.rollouts.group import Group
from pure_rllib.rollouts.sampler import MAX_ATTEMPTS

FETCH_TIMEOUT_S = 300.0
"""How long a learner tries to fetch its groups; what is not there then is lost."""


def deliver(
    learners: LearnerGroup,
    groups: Sequence[Group],
    mini_batches: Sequence[Sequence[int]],
    sample_again: Callable[[list[int]], Sequence[Group]],
) -> int:
    """Has every learner fetch its share of whole groups, balanced by tokens.

    Args:
        learners: they hold the groups afterwards, until their next update.
        groups: lost ones are replaced in place.
        mini_batches: ids of the groups of each optimiser step.
        sample_again: makes the groups of these ids once more.

    Returns:
        How many groups were lost and sampled again.

    Raises:
        RuntimeError: groups were lost `MAX_ATTEMPTS` times.
    """
    num_resampled = 0
    for attempt in range(MAX_ATTEMPTS):
        lost = _fetch(learners, groups, mini_batches)
        if not lost:
            return num_resampled
        if attempt == MAX_ATTEMPTS - 1:
            break
        num_resampled += len(lost)
        again = {group.group_id: group for group in sample_again(lost)}
        for group in groups:
            if group.group_id in again:
                group.take_over(again[group.group_id])
    raise RuntimeError(
        f"{len(lost)} of {len(groups)} groups did not reach the learners in "
        f"{MAX_ATTEMPTS} attempts, because the nodes that held them were lost each "
        "time; Ray's logs say why. The last checkpoint is intact: resume from it."
    )


def _fetch(
    learners: LearnerGroup,
    groups: Sequence[Group],
    mini_batches: Sequence[Sequence[int]],
) -> list[int]:
    """Deals groups to learners; returns the ids of those that are lost, rising."""
    index_of = {group.group_id: i for i, group in enumerate(groups)}
    shares = deal_by_tokens(
        [group.num_tokens for group in groups],
        1 if learners.is_local else len(learners),
        [[index_of[i] for i in ids] for ids in mini_batches],
        together=learners.config.groups_together(),
    )
    lost = on_learners(
        learners,
        lambda learner, share: learner.fetch_groups(share),
        [
            {groups[i].group_id: _sendable(groups[i], learners) for i in share}
            for share in shares
        ],
        longer_s=FETCH_TIMEOUT_S,
    )
    return sorted(i for ids in lost for i in ids)


def _sendable(group: Group, learners: LearnerGroup) -> Any:
    """A reference for a remote learner; what a local env runner made, as it is."""
    if learners.is_remote and not isinstance(group.episodes, ray.ObjectRef):
        group.episodes = ray.put(group.episodes)
    return group.episodes


class GroupInbox:
    """Holds the groups that a learner has fetched for its next update."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Any, list[Any]]] = {}

    def fetch(self, groups: Mapping[int, Any]) -> list[int]:
        """Fetches groups; of those fetched before, it keeps what is asked for again.

        Args:
            groups: group id -> episodes, or a reference to them.

        Returns:
            Ids of the groups that are lost.
        """
        deadline = monotonic() + FETCH_TIMEOUT_S
        held = {
            i: self._held[i]
            for i, source in groups.items()
            if isinstance(source, ray.ObjectRef)
            and i in self._held
            and self._held[i][0] == source
        }
        missing = {i: source for i, source in groups.items() if i not in held}
        fetched = _all_or_none(missing, deadline)
        if fetched is None:
            fetched = {}
            for i, source in missing.items():
                fetched |= _all_or_none({i: source}, deadline) or {}
        held |= {i: (groups[i], episodes) for i, episodes in fetched.items()}
        self._held = {i: held[i] for i in groups if i in held}
        return [i for i in groups if i not in held]

    def take(self) -> list[Any]:
        """Hands over all episodes, in the groups' order, and is empty."""
        held, self._held = self._held, {}
        return [episode for _, episodes in held.values() for episode in episodes]


def _all_or_none(
    groups: Mapping[int, Any], deadline: float
) -> dict[int, list[Any]] | None:
    refs = {i: v for i, v in groups.items() if isinstance(v, ray.ObjectRef)}
    if not refs:
        return dict(groups)
    try:
        # A last second for each, where one that never arrives took all the time.
        values = ray.get(list(refs.values()), timeout=max(1.0, deadline - monotonic()))
    except (ObjectLostError, GetTimeoutError):
        return None
    return {**groups, **dict(zip(refs, values, strict=True))}
