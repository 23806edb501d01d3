"""A version of the weights as env runners are told of it, and how they take it over."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pure_rllib.models.export import WeightSource
from pure_rllib.models.fingerprints import FingerprintedWeights
from pure_rllib.weight_sync.check import Probe, SyncCheck


class WeightsNotHeldError(RuntimeError):
    """An env runner lacks weights that were sent before its process started."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A policy's weights of one version.

    Attributes:
        version: how many iterations they have been through.
        sync_id: names this weight sync: after a checkpoint was restored, a version
            comes a second time with other weights.
        source: the weights, or where they lie; None: they are sent.
        probe: to check that they arrived.
    """

    version: int
    sync_id: str
    source: WeightSource | None
    probe: Probe


@dataclass(frozen=True, slots=True)
class ReceivedWeights:
    """What an engine was sent.

    Attributes:
        group: the learner and the engines that it has joined; None: none yet.
        sync_id: what it received last; None: nothing, or not all of it.
    """

    group: str | None = None
    sync_id: str | None = None


class WeightReceiver:
    """Takes over weights for an env runner's generator, and checks that they arrived.

    Args:
        generator: returns the generator, which may have to be made for it.
        max_logp_gap: see `SyncCheck`.
    """

    def __init__(self, generator: Callable[[], Any], max_logp_gap: float):
        self._generator = generator
        self._check = SyncCheck(max_logp_gap)
        self._sync_id: str | None = None
        self._received = ReceivedWeights()
        self._is_asleep = False
        self.logp_gap = math.nan

    def take_over(self, weights: Weights) -> None:
        """Loads and checks weights, unless the generator has them already.

        Raises:
            WeightsNotHeldError: they were sent, and not to this process.
            StaleWeightsError: they did not arrive.
        """
        if weights.sync_id == self._sync_id:
            return
        # Not this one's any more from here on, if anything fails.
        self._sync_id = None
        generator = self._generator()
        read: FingerprintedWeights | None = None
        if weights.source is not None:
            read = FingerprintedWeights(weights.source)
            if self._is_asleep:
                generator.wake(read)
                self._is_asleep = False
            else:
                generator.load_weights(read)
        elif self._received.sync_id != weights.sync_id:
            raise WeightsNotHeldError(
                f"This env runner was sent weights {self._received.sync_id} and is "
                f"asked to sample with {weights.sync_id} (version {weights.version})."
            )
        logps = generator.logps(weights.probe.token_ids)
        self.logp_gap = self._check.check(weights.version, weights.probe, logps)
        if read is not None:
            held = generator.held_tensors(weights.version)
            self._check.check_tensors(weights.version, read.fingerprints, held)
        self._sync_id = weights.sync_id

    def sleep(self) -> None:
        """Puts the generator to sleep; it has none of the weights after that."""
        self._sync_id = None
        self._is_asleep = True
        self._generator().sleep()

    def received(self) -> ReceivedWeights:
        """Returns what the engine was sent, once it has been made."""
        self._generator()
        return self._received

    def join_transfer(self, group: str, init_info: Mapping[str, Any]) -> None:
        """Joins a learner and other engines; see `ReceivedWeights`."""
        self._received = ReceivedWeights()
        self._generator().join_transfer(init_info)
        self._received = ReceivedWeights(group)

    def receive(
        self, version: int, sync_id: str, update_info: Mapping[str, Any]
    ) -> None:
        """Receives what the learner sends meanwhile."""
        group = self._received.group
        self._received = ReceivedWeights(group)
        self._generator().receive_weights(version, update_info)
        self._received = ReceivedWeights(group, sync_id)
