"""What docs/reward_hacking.md names exists under that name."""

import re
import runpy
from dataclasses import fields
from pathlib import Path
from typing import get_args

import yaml

from pure_rllib.algorithms import PUREConfig
from pure_rllib.algorithms.llm_config import MonitorAction
from pure_rllib.hacking.detector import SIGNALS, HackingThresholds
from pure_rllib.hacking.flags import FLAGS
from pure_rllib.reporting.metrics import METRICS

REPO = Path(__file__).parents[2]
PAGE = (REPO / "docs" / "reward_hacking.md").read_text()
GROUPS = {name.split("/")[0] for name in METRICS if "/" in name}


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def table(heading: str) -> list[str]:
    """What stands in the first column of the table with this first heading."""
    lines = PAGE.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    found = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        found += quoted(line.split("|")[1])
    return found


def test_metrics_exist() -> None:
    named = {
        name
        for name in quoted(PAGE)
        if "/" in name
        and name.split("/")[0] in GROUPS
        and name != "hacking/signal/NAME"
    }
    assert len(named) >= 12
    assert named <= METRICS.keys()


def test_flags_signals_and_actions_are_all_there() -> None:
    assert table("flag") == list(FLAGS)
    assert table("signal") == list(SIGNALS)
    assert table("`hacking_monitor`") == list(get_args(MonitorAction))


def test_the_penalties_of_the_example_are_accepted() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    training = yaml.safe_load(block)["training"]
    config = PUREConfig().training(**training).reporting(hacking_monitor="warn")
    config.validate()
    assert config.hack_caps == training["hack_caps"]
    inline = re.findall(r"`hack_caps: (\{.*?\})`", PAGE)
    for caps in inline:
        PUREConfig().training(hack_caps=yaml.safe_load(caps)).validate()
    assert len(inline) == 2


def test_the_numbers_are_those_of_the_thresholds() -> None:
    limits = {field.name: field.default for field in fields(HackingThresholds)}
    start = PAGE.index("A console line")
    text = " ".join(PAGE[start : PAGE.index("What the monitor remembers")].split())
    for name, said in (
        ("window", "5 iterations (`window`)"),
        ("memory", "the last 30 (`memory`)"),
        ("noise", "four standard errors large (`noise`)"),
        ("least_groups", "fewer than 5 (`least_groups`)"),
    ):
        assert said in text
        number = {"noise": "four"}.get(name, f"{limits[name]}")
        assert number in said
    assert limits["noise"] == 4.0


def test_the_table_is_what_the_benchmark_prints() -> None:
    benchmark = runpy.run_path(str(REPO / "benchmarks" / "reward_hacking.py"))
    runs = Path(__file__).with_name("hacking_runs.json")
    assert benchmark["table"](runs) in PAGE
