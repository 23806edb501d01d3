"""Which groups of responses are learned from together, and by which learner."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pure_rllib.rollouts.group import Group, has_signal


@dataclass(frozen=True, slots=True)
class MiniBatchPlan:
    """The optimiser steps of one iteration; the same for all learners.

    Attributes:
        mini_batches: for each optimiser step the ids of its groups.
        iteration: number of the iteration, for messages.
        max_response_tokens: the token budget of a response.
    """

    mini_batches: tuple[tuple[int, ...], ...]
    iteration: int
    max_response_tokens: int


def groups_to_learn_from(groups: list[Group], config: Any) -> list[Group]:
    """Leaves out groups that teach nothing, if the configuration says so.

    Args:
        groups: the iteration's.
        config: the `LLMConfig`.

    Returns:
        At least one group per learner.
    """
    if config.no_signal_groups == "keep":
        return groups
    # Every learner needs a group; one that teaches nothing does no harm.
    least = max(1, config.num_learners)
    teaches = [has_signal(group.records, config) for group in groups]
    order = sorted(range(len(groups)), key=lambda i: not teaches[i])
    return [groups[i] for i in order[: max(least, sum(teaches))]]


def plan_mini_batches(
    group_ids: Sequence[int],
    *,
    groups_per_step: int | None,
    num_epochs: int,
    seed: int,
    iteration: int,
    max_response_tokens: int,
) -> MiniBatchPlan:
    """Deals groups out to optimiser steps, shuffled anew in each epoch.

    Args:
        group_ids: the iteration's groups.
        groups_per_step: groups per optimiser step; None means all. The last step of an
            epoch takes what is left over.
        num_epochs: passes over the groups.
        seed: of the run; with `iteration` it fixes the order.
        iteration: number of the iteration.
        max_response_tokens: handed on.
    """
    size = groups_per_step or max(1, len(group_ids))
    steps = []
    for epoch in range(num_epochs):
        order = np.random.default_rng([seed, iteration, epoch]).permutation(
            len(group_ids)
        )
        ids = [int(group_ids[i]) for i in order]
        steps += [tuple(ids[i : i + size]) for i in range(0, len(ids), size)]
    return MiniBatchPlan(tuple(steps), iteration, max_response_tokens)


def deal_by_tokens(
    num_tokens: Sequence[int],
    num_learners: int,
    mini_batches: Sequence[Sequence[int]] = (),
    *,
    together: int = 1,
) -> list[list[int]]:
    """Deals groups to learners so that each gets about as many tokens.

    These are whole until they have advantages; what is then left uneven is evened out
    by rows, see `balance.even_out`. Learners wait for each other in every optimiser
    step, so it is each learner's share of each mini-batch that counts; where that
    leaves a choice, its share of all.

    Args:
        num_tokens: tokens of each group.
        num_learners: >= 1.
        mini_batches: for each optimiser step the indices of its groups; without any,
            all groups are one.
        together: so many consecutive groups, the last ones perhaps fewer, go to one
            learner; see `LLMConfig.groups_together`.

    Returns:
        For each learner the indices of its groups, rising. The largest bundle is dealt
        first, each to the learner with the fewest tokens in its mini-batches so far; no
        learner is left without a group while another has two bundles.
    """
    bundles = [
        range(i, min(i + together, len(num_tokens)))
        for i in range(0, len(num_tokens), together)
    ]
    steps = mini_batches or [range(len(num_tokens))]
    # By step, and only of the few steps that a bundle is in: what a group costs must
    # not grow with their number.
    tokens: list[Counter[int]] = [Counter() for _ in bundles]
    for step, indices in enumerate(steps):
        for index in indices:
            tokens[index // together][step] += num_tokens[index]
    sizes = np.array([sum(num_tokens[i] for i in bundle) for bundle in bundles])
    shares: list[list[int]] = [[] for _ in range(num_learners)]
    loads = np.zeros((len(steps), num_learners), dtype=np.int64)
    totals = np.zeros(num_learners, dtype=np.int64)
    for number in np.argsort(-sizes, kind="stable"):
        beside = loads[list(tokens[number])].sum(axis=0)
        # The last key counts most.
        lightest = int(np.lexsort((totals, beside, totals > 0))[0])
        shares[lightest] += bundles[number]
        for step, count in tokens[number].items():
            loads[step, lightest] += count
        totals[lightest] += sizes[number]
    return [sorted(share) for share in shares]
