"""The setter of what is reported, with the monitor of reward hacking."""

from collections.abc import Mapping
from typing import Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.utils.annotations import override


class HackingSettings(AlgorithmConfig):
    """Adds the monitor's settings to RLlib's `reporting`."""

    @override(AlgorithmConfig)
    def reporting(
        self,
        *,
        hacking_monitor: str | None = NotProvided,
        hacking_thresholds: Mapping[str, float] = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets what is reported.

        Args:
            hacking_monitor: adds a `RewardHackingMonitor` that on an alarm will "warn",
                "stop" (the trial) or "go_back" (to the last good checkpoint); None adds
                none.
            hacking_thresholds: the fields of `HackingThresholds`, of this monitor and
                of one that was added by `.callbacks(RewardHackingMonitor)`.
            **kwargs: RLlib's own.
        """
        super().reporting(**kwargs)
        if hacking_monitor is not NotProvided:
            self.hacking_monitor = hacking_monitor
        if hacking_thresholds is not NotProvided:
            self.hacking_thresholds = hacking_thresholds
        return self

    def add_hacking_monitor(self) -> None:
        """Adds the monitor to the callbacks, if it is asked for and not there yet."""
        from pure_rllib.hacking.monitor import RewardHackingMonitor

        if self.hacking_monitor is None:
            return
        given = vars(self)["callbacks_class"]
        classes = list(given) if isinstance(given, list | tuple) else [given]
        if RewardHackingMonitor not in classes:
            self.callbacks_class = [*classes, RewardHackingMonitor]
