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


# Of the two text environments: one trains, the other is a Gymnasium environment.
OF_TURNS = """
import json
from gymnasium.utils.env_checker import check_env
from pure_rllib.testing import check_token_env
check_env(game, skip_render_check=True)
check_env(quiz, skip_render_check=True)
check_text_env(HigherLower, turns=["50", "25", "75"])
check_text_env(capitals, turns=["Paris", "Rome"])
chat = byte_tokenizer()
chat.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
chat.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>\\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"
)
tools = TextTokenEnv(tokenizer=chat, **with_tools)
check_env(tools, skip_render_check=True)
check_token_env(tools)
algo = config.build_algo()
result = algo.train()
algo.stop()
print("RESULT", json.dumps({
    "responses": result["env_runners"]["num_episodes"],
    "turns": result["turns"]["mean"],
    "observed": result["turns"]["observation_tokens"],
    "errors": result["env"]["errors"],
}))
"""


def test_the_text_environments_of_the_page_are_short():
    for name, most in (("Sum:", 30), ("HigherLower", 40), ("Tools", 60)):
        (block,) = (b for b in BLOCKS if f"class {name}" in b)
        assert len([line for line in block.splitlines() if line.strip()]) <= most


@pytest.mark.slow
def test_the_text_environments_of_the_page_run(tmp_path: Path):
    blocks = [b for b in BLOCKS if "TextTokenEnv" in b or "check_text_env" in b]
    output = run_python("\n".join([*blocks, OF_TURNS]), tmp_path)
    result = json.loads(output.partition("RESULT ")[2])
    assert result == {"responses": 16, "turns": 1.0, "observed": 0.0, "errors": 0.0}


def test_the_environment_of_the_page_is_short():
    (block,) = (b for b in BLOCKS if "class SortLetters" in b)
    environment = block.split("class ShuffledLetters")[1].split("config =")[0]
    lines = [line for line in environment.splitlines() if line.strip()]
    assert len(lines) <= 30


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path: Path):
    assert len(BLOCKS) == 7
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
