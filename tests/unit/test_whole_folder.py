"""Folders that are whole or absent."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from pure_rllib import whole_folder
from pure_rllib.whole_folder import (
    delete_whole,
    exchange,
    find_whole,
    remove_leftovers,
    write_whole,
)


def writer(text: str):  # type: ignore[no-untyped-def]
    def write(folder: Path) -> None:
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "file").write_text(text)

    return write


def content(folder: Path) -> str:
    return (folder / "inner" / "file").read_text()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_new_folder_takes_the_place_of_an_older_one(
    tmp_path: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:  # as network file systems answer
        monkeypatch.setattr(whole_folder, "exchange", lambda first, second: False)
    target = tmp_path / "checkpoints" / "iteration_000001"
    for text in ("first", "second"):
        write_whole(target, writer(text))
        assert content(target) == text
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_an_empty_folder_is_no_older_one(tmp_path: Path) -> None:
    target = tmp_path / "made_by_tune"
    target.mkdir()
    write_whole(target, writer("first"))
    assert content(target) == "first"


def test_a_failed_write_leaves_the_older_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write_whole(target, writer("first"))

    def fail(folder: Path) -> None:
        writer("half")(folder)
        raise OSError(errno.ENOSPC, "no space left")

    with pytest.raises(OSError, match="no space left"):
        write_whole(target, fail)
    assert content(target) == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_folders_are_exchanged_in_one_step(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    writer("1")(first)
    assert not exchange(first, second), "there is nothing to exchange with"
    writer("2")(second)
    if not exchange(first, second):
        pytest.skip("this file system cannot exchange two folders: not tested")
    assert (content(first), content(second)) == ("2", "1")


def test_what_was_killed_between_two_renames_is_found(tmp_path: Path) -> None:
    target = tmp_path / "target"
    outdated = tmp_path / ".target.outdated-77"
    writer("first")(outdated)
    writer("second")(tmp_path / ".target.partial-77")
    assert content(find_whole(target)) == "first"
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [target]
    # With a target in its place, an older folder is only a leftover.
    writer("zeroth")(outdated)
    assert content(find_whole(target)) == "first"


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    writer("half")(tmp_path / ".iteration_000002.partial-1")
    writer("old")(tmp_path / ".iteration_000001.outdated-1")
    (tmp_path / ".experiment.yaml.partial-1").write_text("half")
    kept = [tmp_path / "iteration_000003", tmp_path / ".hidden"]
    for path in kept:
        writer("kept")(path)
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    assert os.listdir(tmp_path / "iteration_000003") == ["inner"]


def test_a_killed_deletion_is_never_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "iteration_000001"
    writer("old")(target)

    def killed(folder: Path) -> None:
        (folder / "inner" / "file").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            delete_whole(target)
    assert not find_whole(target).exists()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_new_name_is_sent_to_the_disk_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    flushed: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: flushed.append(
            (os.fstat(descriptor).st_ino, target.exists())
        ),
    )
    write_whole(target, writer("new"))
    assert flushed[-1] == (tmp_path.stat().st_ino, True)
    inside = {path.stat().st_ino for path in [target, *target.rglob("*")]}
    assert {inode for inode, _ in flushed[:-1]} == inside
    assert not any(is_named for _, is_named in flushed[:-1])
