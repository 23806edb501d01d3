"""What holds for the files of the repository as a whole."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
MAX_LINES = 600

# Folders of one developer's machine; nobody else has them.
_MACHINE_PATH = re.compile(r"(?<![\w.~}-])/(?:work|farm|root|home/\w+|opt/\w+)/")


def tracked_files() -> list[Path]:
    """Files of the repository, new ones included; links and ignored files not."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the files of the repository were not read")
    paths = [REPO / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def text_of(path: Path) -> str:
    """A file's text; "" for a picture or other binary file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_no_source_file_is_long() -> None:
    lines = {
        str(path.relative_to(REPO)): len(text_of(path).splitlines())
        for path in tracked_files()
        if path.suffix == ".py"
    }
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}


def test_no_file_names_one_machine() -> None:
    found = [
        f"{path.relative_to(REPO)}:{number}: {line.strip()[:80]}"
        for path in tracked_files()
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if _MACHINE_PATH.search(line)
    ]
    assert found == []


def test_the_package_does_not_reach_outside_itself() -> None:
    found = [
        str(path.relative_to(REPO))
        for path in tracked_files()
        if path.is_relative_to(REPO / "pure_rllib") and "../shared" in text_of(path)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("see " + "/".join(["", "work", "main"]), True),
        ("'" + "/".join(["", "root", ".cache"]) + "'", True),
        ("https://example.org/work/1", False),
        ("../work/file and ./home/x/y", False),
    ],
)
def test_machine_paths_are_told_from_others(line: str, expected: bool) -> None:
    assert bool(_MACHINE_PATH.search(line)) is expected


def test_the_root_shows_rooms_of_the_package_through_links() -> None:
    links = {path.name: path for path in REPO.iterdir() if path.is_symlink()}
    assert set(links) == {"algorithms", "envs", "tuned_examples"}
    for name, link in links.items():
        assert link.readlink() == Path("pure_rllib") / name and link.is_dir()


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
def test_metrics_page_is_the_generated_one(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("pure_rllib.reporting.metrics", run_name="__main__")
    printed = capsys.readouterr().out
    assert (REPO / "docs/metrics.md").read_text(encoding="utf-8") == printed, (
        "run: python -m pure_rllib.reporting.metrics > docs/metrics.md"
    )


def test_hooks_run_the_pinned_ruff() -> None:
    pinned = re.search(r"^ruff==(\S+)$", text_of(REPO / "constraints.txt"), re.M)
    assert pinned
    hooks = text_of(REPO / ".pre-commit-config.yaml")
    assert re.search(rf"ruff-pre-commit\n +rev: v{re.escape(pinned[1])}\n", hooks)


# Run in a fresh interpreter in an empty folder; prints one line per side effect.
_WATCH_IMPORT = """
import importlib, logging, os, pathlib, pkgutil, signal, sys, threading
environ, handlers = dict(os.environ), list(logging.root.handlers)
on_interrupt = signal.getsignal(signal.SIGINT)
import pure_rllib
if sys.argv[1] == "all":
    # What others do when imported is not ours to judge.
    import gymnasium, ray.rllib, torch
    from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer
    import matplotlib.pyplot
    threads = set(threading.enumerate())
    environ, handlers = dict(os.environ), list(logging.root.handlers)
    on_interrupt = signal.getsignal(signal.SIGINT)
    for module in pkgutil.walk_packages(pure_rllib.__path__, "pure_rllib."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert set(threading.enumerate()) <= threads, "a thread was started"
    assert not ray.is_initialized(), "Ray was started"
    assert not torch.cuda.is_initialized(), "a device was set up"
else:
    heavy = {"torch", "ray", "transformers", "gymnasium", "numpy"} & set(sys.modules)
    assert not heavy, f"imported {sorted(heavy)}"
assert dict(os.environ) == environ, "environment variables were changed"
assert logging.root.handlers == handlers, "logging was set up"
assert signal.getsignal(signal.SIGINT) is on_interrupt, "Ctrl-C was taken over"
assert not list(pathlib.Path.cwd().iterdir()), "files were written"
"""


@pytest.mark.parametrize(
    "what", ["package", pytest.param("all", marks=pytest.mark.slow)]
)
def test_import_has_no_side_effects(what: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WATCH_IMPORT, what],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
