"""A learner's groups for its next update, fetched from wherever they lie."""

from collections.abc import Mapping
from time import monotonic
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

FETCH_TIMEOUT_S = 300.0
"""How long a learner tries to fetch its groups; what is not there then is lost."""


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
