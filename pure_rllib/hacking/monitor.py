"""Watches a run for reward hacking and does something about it."""

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.annotations import override
from ray.tune.utils import flatten_dict

from pure_rllib.hacking.detector import SIGNALS, HackingThresholds, find_alarms
from pure_rllib.hacking.flags import settings_from

CHECKPOINT_EVERY = 10
"""Iterations between the checkpoints to go back to."""
MIN_AGE = 10
"""Iterations that such a checkpoint must be older than the alarm, which comes late."""
MAX_RETURNS = 3
"""Times that a run goes back before it stops instead."""


class RewardHackingMonitor(RLlibCallback):
    """Warns of reward hacking, and can stop the trial or go back to before it.

    `PUREConfig().callbacks(RewardHackingMonitor)` warns; `.reporting(hacking_monitor=
    "stop")` adds the monitor as well and says what it is to do. Every result gets the
    metrics `hacking/alarm` and `hacking/signal/NAME`, NAME out of `SIGNALS`.

    Going back restores the learners; iterations and problems go on counting, so that
    other problems are asked. It keeps checkpoints of its own in a temporary folder.

    What it remembers is part of the algorithm's checkpoints (`PURE.get_state`), so that
    a run that is resumed is compared with what it was before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[dict[str, float]] = []
        self._ringing: frozenset[str] = frozenset()
        self._num_returns = 0
        self._folder: Path | None = None
        # With the iteration of each, oldest first.
        self._checkpoints: list[tuple[int, Path]] = []

    def get_state(self) -> dict[str, Any]:
        """Returns what it remembers, but for the checkpoints to go back to."""
        return {
            "rows": list(self._rows),
            "ringing": sorted(self._ringing),
            "num_returns": self._num_returns,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_state` returned."""
        self._rows = list(state["rows"])
        self._ringing = frozenset(state["ringing"])
        self._num_returns = state["num_returns"]

    @override(RLlibCallback)
    def on_train_result(
        self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any
    ) -> None:
        """Looks at an iteration's result, and changes it."""
        config = algorithm.config
        thresholds = HackingThresholds(**config.hacking_thresholds)
        flat = flatten_dict(dict(result), delimiter="/")
        self._rows.append(
            {k: float(v) for k, v in flat.items() if isinstance(v, int | float)}
        )
        self._rows = self._rows[-thresholds.memory :]
        alarms = find_alarms(self._rows, thresholds)
        names = frozenset(alarm.signal for alarm in alarms)
        result["hacking"] = {
            **result.get("hacking", {}),
            "alarm": float(bool(alarms)),
            "signal": {name: float(name in names) for name in SIGNALS},
        }
        iteration = algorithm.iteration
        if names - self._ringing:
            reasons = "; ".join(str(alarm) for alarm in alarms)
            _say(f"iteration {iteration}: {reasons}. See docs/reward_hacking.md.")
        self._ringing = names
        action = config.hacking_monitor or "warn"
        if alarms and action == "stop":
            self._stop(result, iteration)
        elif alarms and action == "go_back":
            self._go_back(algorithm, result, iteration)
        elif action == "go_back" and (iteration - 1) % CHECKPOINT_EVERY == 0:
            self._save(algorithm, iteration)

    def _stop(self, result: dict[str, Any], iteration: int) -> None:
        result["done"] = True
        _say(f"stopping the trial after iteration {iteration}.")

    def _save(self, algorithm: Any, iteration: int) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="pure_rllib_good_"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"checkpoint_{iteration:06d}"
        algorithm.save_to_path(str(path))
        self._checkpoints.append((iteration, path))
        # The last but one is old enough whenever the last is not.
        for _, old in self._checkpoints[:-2]:
            shutil.rmtree(old)
        self._checkpoints = self._checkpoints[-2:]

    def _go_back(self, algorithm: Any, result: dict[str, Any], iteration: int) -> None:
        if not self._checkpoints or self._num_returns == MAX_RETURNS:
            self._stop(result, iteration)
            return
        old_enough = [c for c in self._checkpoints if iteration - c[0] >= MIN_AGE]
        good = (old_enough or self._checkpoints[:1])[-1]
        algorithm.go_back(good[1])
        for _, path in self._checkpoints:
            if path != good[1]:
                shutil.rmtree(path)
        self._checkpoints = [good]
        # What comes now is another road: compared only with itself.
        self._rows, self._ringing = [], frozenset()
        self._num_returns += 1
        _say(f"iteration {iteration}: back to the policy of iteration {good[0]}.")


def check_monitor(config: Any) -> None:
    """Raises a ValueError if a setting of the monitor cannot work."""
    settings_from(HackingThresholds, "hacking_thresholds", config.hacking_thresholds)


def _say(text: str) -> None:
    # Not the logger: the runs' console shows none of RLlib's and Ray's.
    print(f"Reward hacking? {text}", flush=True)
