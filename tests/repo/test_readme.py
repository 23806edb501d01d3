"""The code blocks of the README and of docs/: they parse, and their names exist.

A block below the comment `<!-- run: fast -->` (or `slow`) is executed as well, in an
empty folder, by itself.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")])

_BLOCK = re.compile(
    r"(?:^<!-- run: (?P<run>fast|slow) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.M | re.S,
)
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
SHELLS = {"bash", "sh", "shell", "console"}


class Block(NamedTuple):
    """A fenced block: where it stands, its language, and when it is to be run."""

    where: str
    language: str
    code: str
    run: str | None


def blocks_of(page: str, text: str) -> list[Block]:
    """All fenced blocks of a page that name a language."""
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.M)
        found.append(Block(f"{page}:{line}", match["language"], code, match["run"]))
    return found


BLOCKS = [
    block
    for page in PAGES
    for block in blocks_of(str(page.relative_to(REPO)), page.read_text("utf-8"))
]


def cases(*languages: str) -> list:
    """The blocks in some languages as test cases."""
    chosen = [block for block in BLOCKS if block.language in languages]
    return [pytest.param(block, id=block.where) for block in chosen]


def run_cases() -> list:
    """The blocks that are marked to be run as test cases."""
    return [
        pytest.param(b, id=b.where, marks=[pytest.mark.slow] * (b.run == "slow"))
        for b in BLOCKS
        if b.run
    ]


def commands_of(code: str) -> list[list[str]]:
    """The words of every simple command in a shell block, without prompts."""
    lines = re.sub(r"\\\n", " ", code).splitlines()
    found = []
    for line in lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        command: list[str] = []
        for word in [*words, ";"]:
            if word in {";", "&&", "||", "|", "&"}:
                found.append(command)
                command = []
            elif command or not re.match(r"\w+=", word):
                command.append(word)
    return [command for command in found if command]


def make_targets() -> set[str]:
    makefile = (REPO / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z]+):", makefile, re.M))


def check_pure_rllib(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command line of ours names a subcommand, options and a file that exist."""
    from pure_rllib.cli.main import main

    subcommand = [word for word in words[1:2] if not word.startswith("-")]
    with pytest.raises(SystemExit) as ended:
        main([*subcommand, "--help"])
    help_text = capsys.readouterr().out
    assert ended.value.code == 0, f"no subcommand {subcommand}"
    options = {w.partition("=")[0] for w in words if re.match(r"--?[a-z]", w)}
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_text))
    assert options <= known, f"{subcommand} has no {sorted(options - known)}"
    if subcommand == ["train"] and len(words) > 2 and not words[2].startswith("-"):
        name = words[2]
        examples = (REPO / "pure_rllib/tuned_examples").rglob("*.yaml")
        stems = {path.stem for path in examples}
        is_placeholder = name == name.upper() or "|" in name
        assert is_placeholder or name.endswith(".yaml") or name in stems, name


def test_the_readme_has_code() -> None:
    readme = [block for block in BLOCKS if block.where.startswith("README.md:")]
    assert {"python", "bash"} <= {block.language for block in readme}


@pytest.mark.parametrize("block", cases("python"))
def test_python_block_compiles(block: Block) -> None:
    compile(block.code, block.where, "exec")


@pytest.mark.parametrize("block", cases("yaml"))
def test_yaml_block_parses(block: Block) -> None:
    assert yaml.safe_load(block.code) is not None


@pytest.mark.parametrize("block", cases(*SHELLS))
def test_shell_block_names_what_exists(
    block: Block, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands_of(block.code):
        if words[0] == "make":
            targets = {w for w in words[1:] if not re.match(r"-|\w+=", w)}
            assert targets <= make_targets(), words
        elif Path(words[0]).name == "pure-rllib":
            check_pure_rllib(words, capsys)
        elif Path(words[0]).name.startswith("python"):
            scripts = [w for w in words[1:] if w.endswith(".py")]
            assert all((REPO / script).is_file() for script in scripts), words


@pytest.mark.parametrize("block", run_cases())
def test_marked_block_runs(block: Block, tmp_path: Path) -> None:
    interpreter = [sys.executable, "-c"]
    if block.language in SHELLS:
        interpreter = ["bash", "-euo", "pipefail", "-c"]
    here = str(Path(sys.executable).parent)
    done = subprocess.run(
        [*interpreter, block.code],
        cwd=tmp_path,
        env={**os.environ, "PATH": here + os.pathsep + os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block.where}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_no_figure_is_missing(page: Path) -> None:
    assert not re.search("@[A-Z_]*@", page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    targets = _LINK.findall(text)
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_blocks_and_commands_are_found() -> None:
    text = (
        "a\n\n<!-- run: fast -->\n```python\nx = 1\n```\n"
        "- item\n  ```bash\n  A=1 make test && pure-rllib train x \\\n    -s 1 # c\n"
        "  ```\n"
    )
    python, bash = blocks_of("p.md", text)
    assert python == Block("p.md:4", "python", "x = 1\n", "fast")
    assert (bash.where, bash.run) == ("p.md:8", None)
    assert commands_of(bash.code) == [
        ["make", "test"],
        ["pure-rllib", "train", "x", "-s", "1"],
    ]
