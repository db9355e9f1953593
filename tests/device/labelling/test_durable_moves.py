# SPDX-License-Identifier: Apache-2.0
"""Moves overwrite no file, also between file systems, and are finished after a kill."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from splitee_device.labelling.durable_moves import finish_move, free_name, move_file, open_regular

DATA = b"an image"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "from" / "image.png"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, which is on another file system than the tests' folders."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    assert folder.stat().st_dev != tmp_path.stat().st_dev
    yield folder
    shutil.rmtree(folder)


def test_move_does_not_overwrite_a_file_and_takes_a_free_name(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "image.png"
    target.write_bytes(b"another")
    with pytest.raises(FileExistsError):
        move_file(source, target)
    assert (source.read_bytes(), target.read_bytes()) == (DATA, b"another")
    move_file(source, free_name(target))
    assert (tmp_path / "image-2.png").read_bytes() == DATA
    assert not source.exists()


def test_move_between_file_systems_keeps_content_and_time(source: Path, elsewhere: Path) -> None:
    target, time = elsewhere / "image.png", source.stat().st_mtime_ns
    move_file(source, target)
    assert (target.read_bytes(), source.exists()) == (DATA, False)
    assert target.stat().st_mtime_ns == time
    assert [path.name for path in elsewhere.iterdir()] == ["image.png"]


def test_move_of_a_missing_file_leaves_no_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        move_file(tmp_path / "absent.png", tmp_path / "image.png")
    assert list(tmp_path.iterdir()) == []


def reserved(source: Path, target: Path) -> None:
    target.touch()


def renamed(source: Path, target: Path) -> None:
    source.rename(target)


def copied(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


@pytest.mark.parametrize("killed_after", [lambda *_: None, reserved, renamed, copied])
def test_killed_move_is_finished_from_any_point(
    source: Path, tmp_path: Path, killed_after: Callable[[Path, Path], None]
) -> None:
    target = tmp_path / "image.png"
    killed_after(source, target)
    for _ in range(2):  # a kill while it is finished changes nothing
        finish_move(source, target)
        assert (target.read_bytes(), source.exists()) == (DATA, False)


def test_new_file_under_the_old_name_stays_when_a_move_is_finished(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "image.png"
    move_file(source, target)
    source.write_bytes(b"a new one")
    finish_move(source, target)
    assert (source.read_bytes(), target.read_bytes()) == (b"a new one", DATA)


def test_links_and_folders_are_not_opened(tmp_path: Path, source: Path) -> None:
    (tmp_path / "link.png").symlink_to(source)
    for path in (tmp_path / "link.png", tmp_path):
        with pytest.raises(OSError, match=r"symbolic links|no regular file|directory"):
            open_regular(path)
