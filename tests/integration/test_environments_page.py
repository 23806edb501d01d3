"""docs/environments.md runs as it stands, its environment of one's own included."""

import json
import re
from pathlib import Path

import pytest

from tests.integration.conftest import python_blocks, run_python

BLOCKS = python_blocks("environments.md")
# Put behind the page's own code, to look at what it made.
REPORT = """
import json
print("RESULT", json.dumps({
    "iteration": result["training_iteration"],
    "process": result["reward"]["process_mean"],
    "responses": result["env_runners"]["num_episodes"],
    "outcomes": sum(result["verifier"].values()),
    "version": result["weights"]["version"],
}))
"""


def test_the_environment_of_the_page_is_short():
    (block,) = (b for b in BLOCKS if "class SortLetters" in b)
    environment = block.split("class ShuffledLetters")[1].split("config =")[0]
    lines = [line for line in environment.splitlines() if line.strip()]
    assert len(lines) <= 30


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path: Path):
    assert len(BLOCKS) == 3
    output = run_python("\n".join([*BLOCKS, REPORT]), tmp_path)
    printed, _, report = output.partition("RESULT ")
    # What the page says that it prints.
    shown = re.findall(r"^# (.*)$", BLOCKS[0], re.M)
    assert len(shown) == 3 and printed.splitlines() == shown
    result = json.loads(report)
    # Sampled with the weights that no update has changed yet.
    assert result["iteration"] == 1 and result["version"] == 0
    # 4 prompts, 4 responses each, all with a known answer.
    assert result["responses"] == 16 and result["outcomes"] == 16
    assert -1.0 <= result["process"] <= 1.0
