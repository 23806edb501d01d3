"""What an iteration's time goes to, from the log of a run.

    pure-rllib train arithmetic --out RUN
    python benchmarks/overhead.py RUN [RUN ...]

`other` is everything that is not sampling, scoring, verifying, learning or weight sync.
The first iteration, in which models are loaded and workers start, is left out.
"""

import json
import sys
from pathlib import Path

from pure_rllib.reporting.tables import format_table

PHASES = ("sample", "score", "verify", "learn", "sync", "other")


def seconds_of(run: Path) -> dict[str, float]:
    """Total seconds by phase over a run's iterations from the second on."""
    lines = (run / "result.json").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if row["training_iteration"] > 1]
    if not rows:
        raise SystemExit(f"{run} has no iteration after the first.")
    return {
        phase: sum(_seconds(row, phase) for row in rows)
        for phase in (*PHASES, "iteration")
    }


def _seconds(row: dict, phase: str) -> float:
    nested = row.get("seconds")
    return float(nested[phase] if nested else row[f"seconds/{phase}"])


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    rows = []
    for name in sys.argv[1:]:
        seconds = seconds_of(Path(name))
        total = seconds["iteration"]
        rows.append([name, *(f"{seconds[phase] / total:.1%}" for phase in PHASES)])
    print(format_table(["run", *PHASES], rows))


if __name__ == "__main__":
    main()
