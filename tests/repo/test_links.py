"""The root shows the rooms of the package through three relative links."""

from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["algorithms", "envs", "tuned_examples"])
def test_root_link_points_into_the_package(name: str) -> None:
    link = REPO / name
    assert link.is_symlink(), f"{name} must be a symbolic link, not a copy"
    assert link.readlink() == Path("pure_rllib") / name
    assert link.is_dir(), f"{name} leads nowhere"


def test_the_root_holds_no_other_link() -> None:
    links = {path.name for path in REPO.iterdir() if path.is_symlink()}
    assert links == {"algorithms", "envs", "tuned_examples"}
