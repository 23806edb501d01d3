"""The check that a generator holds the learner's weights.

By fingerprints of its tensors where it holds those that were sent, and in any case by
log-probabilities, which also pass through everything that is made of the tensors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pure_rllib.models.fingerprints import MODULUS, HeldTensors

_MAX_UNCHANGED = 3
"""So many updates in a row may leave all of a generator's log-probabilities the same.

One may: in bfloat16 a small update changes few weights, and rounding can hide them."""

_MAX_MISSED = 0.1
"""So large a share of the learner's movement may be missing in the generator's."""

_CLEARLY = 5.0
"""What is missing is no rounding if it is so many times as large."""

_LEAST_ROUNDING = 1e-4
"""As a share of the limit; two that agree by chance at first do not for ever."""


class StaleWeightsError(RuntimeError):
    """A generator computes other log-probabilities than the learner it follows."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A few fixed sequences and what the learner thinks of them.

    Attributes:
        token_ids: lists of L token ids.
        logps: for each the learner's `[L - 1]` log-probabilities at temperature 1.
    """

    token_ids: tuple[tuple[int, ...], ...]
    logps: tuple[np.ndarray, ...]


class SyncCheck:
    """Follows what learner and generator hold and think, from version to version.

    `check_tensors` sees a tensor that kept an old value, however small the update,
    since nothing is rounded on the way: at once if one of its columns in 16 changed,
    else within 16 versions (`fingerprints.columns`). It judges those tensors that were
    the same with the first version's weights, which have just been loaded as a whole: a
    generator may hold others in another form, such as quantised.

    `check` sees what log-probabilities show, of weights in any form. Three signs tell
    of weights that did not arrive. The two disagree by more than `limit`: what a stale
    tensor does after large updates. The learner has moved since the first version, the
    generator has not moved with it: what small updates show after a while, unless they
    are lost in rounding. The generator's numbers stay what they were to the last bit,
    update after update.

    How the two round must not look like the second sign. It is measured with the first
    version's weights: it is what the two disagree by then. All is judged by root mean
    squares over the tokens, since the largest difference of a few hundred says little
    of the others. In bfloat16 two engines disagree by about .1 nats, which hides many
    updates of a single tensor.

    Args:
        limit: of the largest difference, in nats.
    """

    def __init__(self, limit: float):
        self._limit = limit
        self._first: tuple[np.ndarray, np.ndarray] | None = None
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self._num_unchanged = 0
        self._comparable: list[bool] | None = None

    def check(self, version: int, probe: Probe, logps: Sequence[np.ndarray]) -> float:
        """Compares a generator with the learner after it took over a version.

        Args:
            version: of the weights.
            probe: the learner's side.
            logps: the generator's, as `Generator.logps` gives them.

        Returns:
            The largest difference of their log-probabilities, in nats.

        Raises:
            StaleWeightsError: weights did not arrive.
        """
        theirs = np.concatenate(probe.logps).astype(np.float64)
        ours = np.concatenate(list(logps)).astype(np.float64)
        gap = float(np.abs(ours - theirs).max())
        # Asked this way round, NaN fails too.
        if not gap <= self._limit:
            raise _stale(
                version,
                f"`generator_learner_logp_gap` ({gap:.3g}) must be <= `max_logp_gap` "
                f"({self._limit:g})",
            )
        if self._first is None:
            self._first = (theirs, ours)
        self._check_movement(version, theirs, ours)
        self._check_unchanged(version, theirs, ours)
        self._last = (theirs, ours)
        return gap

    def check_tensors(
        self, version: int, sent: Mapping[str, int], held: HeldTensors
    ) -> None:
        """Compares tensors that were sent with those that a generator holds.

        Args:
            version: of the weights.
            sent: fingerprints by name.
            held: see `Generator.held_tensors`.

        Raises:
            StaleWeightsError: one that was the same with the first version is not.
        """
        is_same = [
            all(name in sent for name in names)
            and sum(sent[name] for name in names) % MODULUS == found
            for names, found in held
        ]
        if self._comparable is None:
            self._comparable = is_same
        stale = [
            " + ".join(names)
            for (names, _), before, now in zip(
                held, self._comparable, is_same, strict=True
            )
            if before and not now
        ]
        if stale:
            others = f" and {len(stale) - 1} others" if stale[1:] else ""
            raise _stale(
                version,
                f"The generator must hold {stale[0]}{others} as the learner does, to "
                "the last bit",
            )

    def _check_movement(
        self, version: int, theirs: np.ndarray, ours: np.ndarray
    ) -> None:
        assert self._first is not None
        first_theirs, first_ours = self._first
        moved = theirs - first_theirs
        missed = moved - (ours - first_ours)
        rounding = max(_rms(first_ours - first_theirs), _LEAST_ROUNDING * self._limit)
        tolerated = math.hypot(_CLEARLY * rounding, _MAX_MISSED * _rms(moved))
        if _rms(missed) > tolerated:
            raise _stale(
                version,
                f"The generator must move with the learner, whose log-probabilities "
                f"changed by up to {np.abs(moved).max():.3g} nats since the first "
                f"weights; the generator missed up to {np.abs(missed).max():.3g} of it",
            )

    def _check_unchanged(
        self, version: int, theirs: np.ndarray, ours: np.ndarray
    ) -> None:
        if self._last is None:
            return
        has_learned = not np.array_equal(theirs, self._last[0])
        is_unchanged = np.array_equal(ours, self._last[1])
        # Versions without any change, of a learning rate of 0, tell nothing.
        if has_learned:
            self._num_unchanged = self._num_unchanged + 1 if is_unchanged else 0
        if self._num_unchanged >= _MAX_UNCHANGED:
            raise _stale(
                version,
                f"The generator's log-probabilities must change with the learner's; "
                f"they did not in {self._num_unchanged} updates",
            )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _stale(version: int, what: str) -> StaleWeightsError:
    return StaleWeightsError(
        f"{what}; because after it took over weights version {version} both compute "
        "the same tokens' log-probabilities from the same weights. The likely cause is "
        "a tensor that kept an old value in the generator (tied or packed embeddings), "
        'else another dtype or kernel. Compare `generator="vllm"` with '
        '"transformers"; if the log-probabilities differ by rounding, set '
        "`.env_runners(max_logp_gap=...)`."
    )
