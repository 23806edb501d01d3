"""What every test runs under: no network, few threads, fast tests first."""

import os

# Before the libraries that read them are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("WANDB_MODE", "offline")

from pathlib import Path

import hypothesis
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

REPO = Path(__file__).resolve().parents[1]

# The models of the tests are so small that more threads only wait for each other, and
# tests that run side by side have a core each.
if "OMP_NUM_THREADS" not in os.environ:
    is_alone = "PYTEST_XDIST_WORKER" not in os.environ
    torch.set_num_threads(min(1 + is_alone, os.cpu_count() or 1))

# A busy machine must not fail a property test for being slow.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts slow tests last and skips tests of a missing GPU."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device: not run"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real prompts, the real Qwen2.5 tokenizer, golden vectors; skips if absent.

    The folder is `../shared` beside the repository, or `PURE_SHARED_DIR`.
    """
    folder = Path(os.environ.get("PURE_SHARED_DIR", REPO.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(
            f"{folder} is absent: this test on real prompts, the real Qwen2.5 "
            "tokenizer or the golden vectors was not run (set PURE_SHARED_DIR)"
        )
    return folder


@pytest.fixture(scope="session")
def qwen_folder(shared_dir: Path) -> Path:
    """The real tokenizer of Qwen2.5; skips if absent."""
    folder = shared_dir / "data" / "tokenizers" / "qwen2.5"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: the real Qwen2.5 tokenizer was not tried")
    return folder


@pytest.fixture
def qwen_tokenizer(qwen_folder: Path) -> PreTrainedTokenizerBase:
    """The same, loaded anew for a test that may change it."""
    return AutoTokenizer.from_pretrained(qwen_folder)
